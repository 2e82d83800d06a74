"""Process settings that change bits: equal in every process of a run, restored after it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import torch
from threadpoolctl import ThreadpoolController, threadpool_limits

from fedgen.resolve import BLOCK_BYTES_MOST


def prepare_process(threads: int) -> None:
    """Set what changes bits, equally in every process of a run."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)  # numpy's BLAS
    torch.set_flush_denormal(True)
    torch.backends.cudnn.deterministic = True
    _keep_heap()


@contextmanager
def process_kept() -> Iterator[None]:
    """Restores the threads of torch and BLAS, the handling of denormals and cuDNN's choice of kernels on exit."""
    threads = torch.get_num_threads()
    flush = _flushes_denormals()
    deterministic = torch.backends.cudnn.deterministic
    try:
        with _LIBRARIES:
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flush)
        torch.backends.cudnn.deterministic = deterministic


class _Libraries:
    """Threads of libraries belong to the process: of several concurrent runs, the last restores them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._runs = 0
        self._before: list[tuple[Any, int]] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._runs == 0:
                self._before = [(each, each.num_threads) for each in ThreadpoolController().lib_controllers]
            self._runs += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._runs -= 1
            if self._runs == 0:
                for library, threads in self._before:
                    library.set_num_threads(threads)


_LIBRARIES = _Libraries()


def _flushes_denormals() -> bool:
    return not bool(torch.full((1,), 1e-40).mul(1.0).item())


@cache
def _keep_heap() -> None:
    """Let glibc keep a block's arrays for the next block: page faults cost more than half of a small block's time.

    Larger ones, of all peers together, go back to the system, as the heap would grow around the holes they leave.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 2 * BLOCK_BYTES_MOST)
        mallopt(trim_threshold, 1 << 30)
