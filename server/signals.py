"""What Ctrl-C and SIGTERM do: before a run they end the command, in a run they ask for a clean stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedgen.server.pool import Interrupt
    from fedgen.server.view import View


@contextmanager
def ending_at_once() -> Iterator[None]:
    """SIGTERM is Ctrl-C, a KeyboardInterrupt: nothing has been written that has to be whole."""
    with _handled(signal.default_int_handler, signal.SIGTERM):
        yield


@contextmanager
def asking(interrupt: Interrupt, view: View) -> Iterator[None]:
    """SIGINT and SIGTERM ask for a stop; a second one is not waited for."""

    def request(number: int, frame: Any) -> None:
        if interrupt.requested:
            raise KeyboardInterrupt
        interrupt.requested = True
        with suppress(RuntimeError):  # the signal came while the same stream was written to
            view.doing("stopping: what is not finished is dropped; Ctrl-C again ends at once")

    with _handled(request, signal.SIGINT, signal.SIGTERM):
        yield


@contextmanager
def _handled(handler: Callable[[int, Any], None], *numbers: signal.Signals) -> Iterator[None]:
    """Python allows handlers in the main thread only; a run in another one goes without."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, handler) for each in numbers}
    try:
        yield
    finally:
        for each, old in before.items():
            signal.signal(each, signal.SIG_DFL if old is None else old)  # None: it was not Python that set it
