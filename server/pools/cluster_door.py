"""Checks within seconds that a Ray cluster answers and accepts this process; Ray itself tries for minutes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import grpc

from fedgen.errors import FedgenError

PROBE_S = 5.0
CHECK_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
"""A call that the head of every Ray cluster answers; it requires a token if the cluster does."""


def admitted(address: str) -> dict[str, str | None]:
    """Environment variables with which Ray can join the cluster at `address`.

    Raises FedgenError if nothing answers as Ray does, or if the cluster requires a token that this process lacks;
    OSError if the port is closed.
    """
    if address.startswith(("http://", "https://")):
        raise FedgenError("this is the address of a dashboard; give the address of the head, such as 10.0.0.5:6379")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():  # "auto": Ray finds the address itself
        return {}
    host = host.strip("[]")
    socket.create_connection((host, int(port)), timeout=PROBE_S).close()
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true") or mode not in ("", "token", "disabled"):
        return {}  # certificates or other kinds of tokens are left to Ray
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if _lets_in(target, ""):
        return {"RAY_AUTH_MODE": "disabled"}
    token, source = _token()
    if not token:
        raise FedgenError(
            "the cluster requires a token, and this process has none: set RAY_AUTH_TOKEN_PATH to a file with the "
            "cluster's token, or write it to ~/.ray/auth_token"
        )
    if not _lets_in(target, token):
        raise FedgenError(
            f"the cluster requires a token, and rejects the one of {source}: give the token with which its nodes were "
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
                raise FedgenError("the port is open, but what listens there does not answer as Ray does") from error
            return code is not grpc.StatusCode.UNAUTHENTICATED
    return True


def _token() -> tuple[str, str]:
    """(token of this process, its source), searched in Ray's order; empty if there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token, "RAY_AUTH_TOKEN"
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        return path.read_text().strip(), str(path)
    except OSError:
        return "", ""
