"""What Ctrl-C and SIGTERM do: before a run they end the command, in a run they ask for a clean stop."""

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
    """SIGTERM is Ctrl-C, a KeyboardInterrupt: nothing has been written that has to be whole."""
    with _handled(signal.default_int_handler, signal.SIGTERM):
        yield


@contextmanager
def asking(interrupt: Interrupt, say: Callable[[str], None]) -> Iterator[None]:
    """SIGINT and SIGTERM ask for a stop, and `say` so; a second one is not waited for."""

    def request(number: int, frame: FrameType | None) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True
        _call_off_abort()
        say("stopping: what is not finished is dropped; Ctrl-C again ends at once")

    def listen() -> None:
        if _in_main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, request)

    with _handled(request, signal.SIGINT, signal.SIGTERM):
        interrupt.listen = listen
        yield


def ignored_from_now_on() -> None:
    """For a process that has done what it was asked, and ends: its exit code is that of the command."""
    if _in_main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _call_off_abort() -> None:
    """Ray's native handler of SIGTERM, where it came first, has ordered an abort in 3 s; other alarms stay."""
    left = signal.alarm(0)
    if left > ABORT_S:
        signal.alarm(left)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    """Python allows handlers in the main thread only; a run in another one goes without."""
    if not _in_main_thread():
        yield
        return
    before = {each: signal.signal(each, handler) for each in numbers}
    try:
        yield
    finally:
        for each, old in before.items():
            signal.signal(each, signal.SIG_DFL if old is None else old)  # None: it was not Python that set it
