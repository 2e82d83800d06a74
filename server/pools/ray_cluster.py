"""The connection of this process to Ray: an existing connection, a cluster that it joins, or its own Ray."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from time import monotonic
from types import ModuleType
from uuid import uuid4

import torch
from torch import Tensor

from fedgen.errors import FedgenError
from fedgen.parameters import Array, canonical
from fedgen.server.pools.cluster_door import admitted
from fedgen.server.pools.pool import Interrupt
from fedgen.server.store.ray_home import ray_home

POLL_S = 0.05
CONNECT_S = 120.0
LEAVE_S = 20.0
OWN = "local"
"""The address that starts a Ray for this run, in Ray's spelling."""

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}


class Connection:
    """A connection to Ray.

    own: Ray was started for runs of this process, with CPUs for all workers. note: message for the user about the
    cluster, may be empty.
    """

    def __init__(self, ray: ModuleType, own: bool, note: str, home: _Home | None) -> None:
        self.ray, self.own, self.note = ray, own, note
        self._home = home

    def leave(self) -> None:
        """The last run that leaves stops or disconnects Ray, unless Ray was connected before the first run."""
        global _home
        with _LOCK:
            _USERS.remove(self)
            if _USERS:
                return
            _unsettle(self.ray)
            if self._home is not None:
                _home = None
                self._home.close()


_LOCK = threading.Lock()
_USERS: list[Connection] = []
_home: _Home | None = None


def connect(address: str | None, workers: int, interrupt: Interrupt | None = None) -> Connection:
    """Connect to Ray: use the existing connection; else join the cluster at `address` or RAY_ADDRESS; else, and for the
    address "local", start a Ray with `workers` CPUs.

    Raises FedgenError if that fails.
    """
    global _home
    interrupt = interrupt or Interrupt()
    while not _LOCK.acquire(timeout=POLL_S):
        interrupt.check()
    try:
        with _environment({}):  # the import sets an environment variable
            import ray
        named = address or os.environ.get("RAY_ADDRESS") or OWN
        if ray.is_initialized():
            note = _note_of_present(ray, address)
        else:
            _home = _opened(ray, named, "runtime.address" if address else "RAY_ADDRESS", workers, interrupt)
            note = "" if address or named == OWN else (
                f"joined the Ray cluster at RAY_ADDRESS = {named}; --address local starts one for this run"
            )  # fmt: skip
        connection = Connection(ray, _home is not None and _home.own, note, _home)
        if not _USERS:
            _settle(ray)
        _USERS.append(connection)
        return connection
    finally:
        _LOCK.release()


def _note_of_present(ray: ModuleType, address: str | None) -> str:
    """Message about an existing connection; empty if it was made for runs of this process."""
    present = ray.get_runtime_context().gcs_address
    if address == OWN and not (_home is not None and _home.own):
        raise FedgenError(
            f"runtime.address = 'local': this process is already connected to the Ray at {present}, and only one "
            "connection is possible; leave the address out to use it, or call ray.shutdown() first"
        )
    if _home is not None and (address is None or _home.address == address):
        return ""
    instead = f" instead of runtime.address = {address!r}" if address not in (None, "auto", present) else ""
    return f"uses the Ray at {present}, to which this process was connected already{instead}"


def _opened(ray: ModuleType, address: str, named_by: str, workers: int, interrupt: Interrupt) -> _Home:
    try:
        if address == OWN:
            environment = _own_token()
            settings = {"num_cpus": workers, "include_dashboard": False, "_temp_dir": str(ray_home() / "ray")}
        else:
            environment = admitted(address)
            settings = {}
        return _Home(ray, address, environment, settings, interrupt)
    except Exception as error:
        interrupt.check()
        where = "a Ray of its own" if address == OWN else f"{named_by} = {address!r}"
        why = str(error) if isinstance(error, FedgenError) else f"{type(error).__name__}: {error}"
        raise FedgenError(
            f"Ray could not be reached or started ({where}): {why}; check the address, or set runtime.backend = "
            "'serial'"
        ) from error


class _Home(threading.Thread):
    """The thread in which Ray starts and stops.

    It is not the main thread, where Ray's signal handlers would end the run silently and its waits cannot be
    interrupted. It lives as long as Ray, because Linux ends a child process with the thread that started it.
    """

    def __init__(
        self,
        ray: ModuleType,
        address: str,
        environment: Mapping[str, str | None],
        settings: dict[str, object],
        interrupt: Interrupt,
    ) -> None:
        super().__init__(name="fedgen-ray", daemon=True)
        self.own = address == OWN
        self.address = address
        self._ray, self._environment = ray, environment
        self._settings = {"address": address, "log_to_driver": False, "logging_level": "ERROR", **settings}
        self._connected, self._over = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self.start()
        self._await(interrupt)

    def _await(self, interrupt: Interrupt) -> None:
        began = monotonic()
        try:
            while not self._connected.wait(POLL_S):
                interrupt.listen()
                interrupt.check()
                if monotonic() - began > CONNECT_S:
                    raise FedgenError(f"no answer within {CONNECT_S:g} s")
        except BaseException:
            self.close()
            raise
        finally:
            interrupt.listen()
        if self._error is not None:
            raise self._error

    def run(self) -> None:
        try:
            with _environment(self._environment):
                _read_environment()
                self._ray.init(**self._settings)
        except BaseException as error:  # Ray may raise SystemExit when it gives up
            self._error = error if isinstance(error, Exception) else FedgenError("no answer")
        self._connected.set()
        if self._error is None:
            self._over.wait()
            self._ray.shutdown()
        _read_environment()

    def close(self) -> None:
        """Stop Ray; the wait is bounded, as its head may be gone."""
        self._over.set()
        self.join(LEAVE_S)


def _own_token() -> dict[str, str | None]:
    """Variables that protect this process's own Ray with a new token."""
    path = ray_home() / "token"
    path.touch(mode=0o600)
    path.write_text(uuid4().hex)
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path), "RAY_AUTH_TOKEN": None}


@contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables that Ray's processes inherit; afterwards restore the environment of this process."""
    before = dict(os.environ)
    wanted = {**QUIET, **before, **changes}
    try:
        os.environ.update({name: value for name, value in wanted.items() if value is not None})
        for name in [name for name, value in changes.items() if value is None]:
            os.environ.pop(name, None)
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _read_environment() -> None:
    """Make Ray read its authentication variables again; by itself it reads them only on import."""
    with suppress(ImportError):  # a Ray without tokens
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


def _settle(ray: ModuleType) -> None:
    """Silence Ray's notices of dead workers on stdout, which is reserved for `--json`; events.jsonl has them."""
    worker = ray._private.worker
    if hasattr(worker, "print_to_stdstream"):
        _PRINTS.append(worker.print_to_stdstream)
        worker.print_to_stdstream = lambda *words, **settings: None
    register_serializer(ray)


def _unsettle(ray: ModuleType) -> None:
    """Undo `_settle` for later users of this Ray."""
    if _PRINTS:
        ray._private.worker.print_to_stdstream = _PRINTS.pop()
    ray.util.deregister_serializer(Tensor)


_PRINTS: list[Callable[..., None]] = []


def register_serializer(ray: ModuleType) -> None:
    """Send tensors as numpy arrays: 40 MB take 23 ms to put instead of 101, and 0.4 ms to get instead of 57."""
    ray.util.register_serializer(Tensor, serializer=_to_array, deserializer=_to_tensor)


def _to_array(tensor: Tensor) -> Array:
    return tensor.detach().contiguous().numpy()


def _to_tensor(array: ModuleType) -> Tensor:
    with warnings.catch_warnings():
        # torch warns that the array, in shared memory, is read only; no code here writes to it.
        warnings.simplefilter("ignore", UserWarning)
        return canonical(torch.from_numpy(array))
