"""The records of the Ray pool: its workers, their blocks, and the calls of `map` to which these belong."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from fedgen.server.pools.pool import BlockFailure
from fedgen.server.pools.ray_worker import Task

Ref = Any
"""A Ray handle of an object or an actor."""


@dataclass(frozen=True)
class Parcel:
    """A record whose leaves are stored with Ray: its outline and the handles of the leaves."""

    outline: object
    handles: list[Ref]


@dataclass(eq=False)
class Job:
    """One call of `map`.

    results: by block number, until they are yielded. deaths: number of workers that died while they computed a block;
    such a block is sent to a worker without other blocks.
    """

    task: Task
    items: Sequence[object]
    shared: Parcel
    keep: int
    waiting: deque[int]
    results: dict[int, Any] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)

    def count_death(self, number: int, most: int) -> None:
        """A worker died while it computed this block: compute it again; after more than `most` deaths it fails."""
        self.deaths[number] = deaths = self.deaths.get(number, 0) + 1
        if deaths <= most:
            self.waiting.append(number)
            return
        self.results[number] = BlockFailure(
            f"{deaths} workers died while they computed it, the last {most} with no other block; if memory runs out, "
            "lower runtime.workers or training.block"
        )


@dataclass(eq=False)
class Flight:
    """A block that was sent to a worker: the handle of its result, and those of values that stay there."""

    job: Job
    number: int
    ref: Ref
    kept: list[Ref]


@dataclass(eq=False)
class Seat:
    """One worker. It gets blocks once its greeting has arrived, and computes the oldest first.

    since: time of its start, later of its last answer. failed: earlier workers of this seat that did not start.
    """

    actor: Ref
    greeting: Ref
    failed: int = 0
    name: str = ""
    running: deque[Flight] = field(default_factory=deque)
    since: float = field(default_factory=monotonic)

    @property
    def greeted(self) -> bool:
        return self.greeting is None
