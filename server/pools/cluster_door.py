"""Whether a Ray cluster answers and lets this process in, asked within seconds: Ray itself tries for minutes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import grpc

from fedgen.errors import FedgenError

PROBE_S = 5.0
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A call of Ray's head that every cluster knows; it needs a token where the cluster asks for one."""


def admitted(address: str) -> dict[str, str | None]:
    """The variables with which Ray gets into the cluster at `address`.

    Raises FedgenError where nobody answers there, or where the cluster asks for a token that this process does not
    have; OSError where nobody listens.
    """
    if address.startswith(("http://", "https://")):
        raise FedgenError("this is the address of a dashboard; give the one of the head itself, such as 10.0.0.5:6379")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto", which Ray looks up
        return {}
    host = host.strip("[]")
    socket.create_connection((host, int(port)), timeout=PROBE_S).close()
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true") or mode not in ("", "token", "disabled"):
        return {}  # with certificates, or tokens of another kind: Ray asks itself
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if _lets_in(target, ""):
        return {"RAY_AUTH_MODE": "disabled"}
    token, source = _token()
    if not token:
        raise FedgenError(
            "the cluster asks for a token, and this process has none: set RAY_AUTH_TOKEN_PATH to a file that holds the "
            "cluster's token, or write it to ~/.ray/auth_token"
        )
    if not _lets_in(target, token):
        raise FedgenError(
            f"the cluster asks for a token, and the one of {source} is another: give the one with which its nodes were "
            "started"
        )
    return {"RAY_AUTH_MODE": "token"}


def _lets_in(target: str, token: str) -> bool:
    metadata = [("authorization", f"Bearer {token}")] if token else None
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(CHECK_ALIVE)(b"", timeout=PROBE_S, metadata=metadata)
        except grpc.RpcError as error:
            code = error.code()
            if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise FedgenError("somebody listens there, but does not answer as Ray does") from error
            return code is not grpc.StatusCode.UNAUTHENTICATED
    return True


def _token() -> tuple[str, str]:
    """(this process's token, where it comes from), in the order in which Ray looks; empty where there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip(), str(path)
    except OSError:
        return "", ""
