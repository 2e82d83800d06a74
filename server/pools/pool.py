"""The interface of a pool, which computes blocks, and the serial pool."""

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
    """Ctrl-C or SIGTERM: the round in progress is dropped, all rounds before it are kept."""


class WorkLost(FedgenError):
    """Results of a round were lost with a machine: the round must be played again."""


@dataclass(frozen=True)
class BlockFailure:
    """Takes the place of a result that no worker could compute."""

    reason: str


class Pool(Protocol):
    """Runs pure tasks on workers that have the federation; results do not depend on the number of workers or deaths."""

    def map(
        self, task: Callable[[Federation, Shared, Item], Result], items: Sequence[Item], shared: Shared, keep: int = 0
    ) -> Iterator[Result | BlockFailure]:
        """Yield task(federation, shared, item) for every item, in order.

        shared and items are frozen dataclasses, dicts, tuples or plain values. A tensor of `shared` is sent once; one
        that was in the last call is not sent again. keep: number of `Held` values in a result; these stay with the
        workers, and the result has handles in their place, which later items may contain.

        The iterator is lazy and keeps no result that it has yielded. An item that no worker can compute yields a
        `BlockFailure`.
        """
        ...

    def fetch(self, held: Held[Kept]) -> Kept:
        """Copy a value that stayed with the workers into this process."""
        ...

    def close(self) -> None: ...


class Interrupt:
    """Set by a signal handler, checked between blocks.

    listen: install the signal handlers again, after a library may have replaced them.
    """

    def __init__(self) -> None:
        self.requested = False
        self.listen: Callable[[], None] = lambda: None

    def check(self) -> None:
        if self.requested:
            raise StopRequested("stopped by a signal")


class SerialPool:
    """Runs tasks in this process; a task that kills the process ends the run."""

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
    """One worker per CPU core that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
