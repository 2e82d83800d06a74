"""Handlers of Ctrl-C and SIGTERM: before a run they end the command, in a run they request a clean stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedgen.server.pools.pool import Interrupt

ABORT_S = 3


@contextmanager
def ending_at_once() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt like Ctrl-C; no file needs to be completed yet."""
    with _handled(signal.default_int_handler, signal.SIGTERM):
        yield


@contextmanager
def asking(interrupt: Interrupt, say: Callable[[str], None]) -> Iterator[None]:
    """SIGINT and SIGTERM request a clean stop and call `say`; a second signal ends the process at once."""

    def request(number: int, frame: FrameType | None) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True
        _call_off_abort()
        say("stopping: the unfinished round is dropped; Ctrl-C again ends at once")

    def listen() -> None:
        if _in_main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, request)

    with _handled(request, signal.SIGINT, signal.SIGTERM):
        interrupt.listen = listen
        yield


def ignored_from_now_on() -> None:
    """For a process that is about to exit, so that a signal does not change its exit code."""
    if _in_main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _call_off_abort() -> None:
    """Cancel the abort in 3 s that Ray's native handler of SIGTERM may have scheduled; keep other alarms."""
    left = signal.alarm(0)
    if left > ABORT_S:
        signal.alarm(left)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Install a handler; in a thread other than the main one do nothing, as Python does not allow it."""
    if not _in_main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)  # None: not set by Python
