"""Where blocks are computed: what every pool promises, and the serial one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.leaves import Held, with_leaves
from fedgen.parameters import canonical

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")
Kept = TypeVar("Kept")


class StopRequested(FedgenError):
    """Ctrl-C or SIGTERM: the round in progress is dropped, everything before it is kept."""


class WorkLost(FedgenError):
    """What a round had computed is gone with a machine: the round has to be played again."""


@dataclass(frozen=True)
class BlockFailure:
    """In place of a result that no worker could give."""

    reason: str


class Pool(Protocol):
    """Runs pure tasks on workers that each hold the federation; how many there are, or die, changes no result."""

    def map(
        self, task: Callable[[Federation, Shared, Item], Result], items: Sequence[Item], shared: Shared, keep: int = 0
    ) -> Iterator[Result | BlockFailure]:
        """task(federation, shared, item) in the order of items, each as soon as it and those before it are computed.

        shared and items are frozen dataclasses, or made of dicts, tuples and values.  Tensors of `shared` travel once:
        one that is unchanged since the last call is not sent again.  keep: how many `Held` values a result has; they
        stay with the workers and come as handles, which later items may hold.

        Nothing is computed before somebody asks, and no result is held once it was given.  An item that cannot be
        computed gives a `BlockFailure` in its place.
        """
        ...

    def fetch(self, held: Held[Kept]) -> Kept:
        """What stayed with the workers, here."""
        ...

    def close(self) -> None: ...


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
        self, task: Callable[[Federation, Shared, Item], Result], items: Sequence[Item], shared: Shared, keep: int = 0
    ) -> Iterator[Result | BlockFailure]:
        shared = with_leaves(shared, Tensor, canonical)
        for item in items:
            self._interrupt.check()
            yield task(self._federation, shared, item)

    def fetch(self, held: Held[Kept]) -> Kept:
        return held.value

    def close(self) -> None:
        pass


def default_workers() -> int:
    """One a CPU core that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
