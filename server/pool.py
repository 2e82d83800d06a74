"""The serial pool: every task in this process, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor

from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.parameters import canonical


class StopRequested(FedgenError):
    """Ctrl-C or SIGTERM: the round in progress is dropped, everything before it is kept."""


class WorkLost(FedgenError):
    """What a round had computed is gone with a machine: the round has to be played again."""


class Interrupt:
    """Set by a signal, looked at between blocks.

    listen: take the signals again, where a library may have taken them over.
    """

    def __init__(self) -> None:
        self.requested = False
        self.listen: Callable[[], None] = lambda: None

    def check(self) -> None:
        if self.requested:
            raise StopRequested("stopped by a signal")


class SerialPool:
    """Runs tasks on the driver's own federation; a task that kills its process ends the run."""

    def __init__(self, federation: Federation, interrupt: Interrupt) -> None:
        self._federation, self._interrupt = federation, interrupt

    def map(
        self, task: Callable[..., Any], items: Sequence[tuple[Any, ...]], shared: Sequence[Any] = (), keep: int = 0
    ) -> Iterator[Any]:
        arguments = [canonical(each) if isinstance(each, Tensor) else each for each in shared]
        for item in items:
            self._interrupt.check()
            yield task(self._federation, *arguments, *item)

    def fetch(self, handle: Any) -> Any:
        return handle

    def close(self) -> None:
        pass
