"""Joining a Ray cluster, or starting one on this machine: a token, a short temporary folder, nothing on the network."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from fedgen.errors import FedgenError
from fedgen.parameters import canonical

PREFIX = "fedgen-"
PROBE_S = 5.0


@cache
def ray_home() -> Path:
    """This process's folder for Ray: short, because socket paths may have 107 characters; private, for the token."""
    parent = "/tmp" if os.access("/tmp", os.W_OK) else None
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    atexit.register(remove_ray_home, home)
    return home


def remove_ray_home(home: Path) -> None:
    """Remove such a folder, of this process or of a killed one; any other path is left alone."""
    if home.name.startswith(PREFIX):
        shutil.rmtree(home, ignore_errors=True)


def connect(address: str | None, workers: int) -> tuple[Any, bool]:
    """(the ray module, connected; whether this call connected it).

    A connection that this process has already is used; else the cluster at `address`, or a local one of `workers` CPUs.

    Raises FedgenError where that fails.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    if address is None:
        _use_token()
    import ray

    fresh = not ray.is_initialized()
    try:
        if fresh:
            _initialise(ray, address, workers)
    except Exception as error:
        where = f"runtime.address = {address!r}" if address else "a local cluster"
        raise FedgenError(
            f"Ray could not be reached or started ({where}): {type(error).__name__}: {error}; check the address, or "
            "set runtime.backend = 'serial'"
        ) from error
    register_serializer(ray)
    _silence(ray)
    return ray, fresh


def _initialise(ray: Any, address: str | None, workers: int) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is not None:
        _probe(address)
        ray.init(address=address, **quiet)
        return
    ray.init(num_cpus=workers, include_dashboard=False, _temp_dir=str(ray_home() / "ray"), **quiet)


def _probe(address: str) -> None:
    """Fail within seconds where nobody listens: Ray itself tries for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S).close()


def _use_token() -> None:
    """One token a process: Ray caches it, so that a second cluster of this process must use the same."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    path = ray_home() / "token"
    path.touch(mode=0o600)
    path.write_text(uuid4().hex)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _silence(ray: Any) -> None:
    """Ray prints a notice of every dead worker to stdout, which `--json` owns; our events log has them already."""
    if hasattr(ray._private.worker, "print_to_stdstream"):
        ray._private.worker.print_to_stdstream = lambda *words, **settings: None


def register_serializer(ray: Any) -> None:
    """Tensors cross as numpy arrays: 40 MB are put in 23 ms instead of 101 and got in 0.4 ms instead of 57."""
    ray.util.register_serializer(Tensor, serializer=_to_array, deserializer=_to_tensor)


def _to_array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


def _to_tensor(array: Any) -> Tensor:
    with warnings.catch_warnings():
        # The array is shared memory and read only, which torch warns about; nothing here writes in place.
        warnings.simplefilter("ignore", UserWarning)
        return canonical(torch.from_numpy(array))
