"""What the Ray pool keeps count of: its workers, the blocks that each has, and the calls that these belong to."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from fedgen.server.pools.ray_worker import Task

Ref = Any
"""A handle of Ray's: of an object that is computed or stored somewhere, or of an actor."""


@dataclass(frozen=True)
class Parcel:
    """A record whose leaves are with Ray already: its outline, and their handles."""

    outline: object
    handles: list[Ref]


@dataclass(eq=False)
class Job:
    """One call of `map`.  results: by number, until they are given.  deaths: of workers, by the number of the block
    that they were at; whoever stands here runs alone."""

    task: Task
    items: Sequence[object]
    shared: Parcel
    keep: int
    waiting: deque[int]
    results: dict[int, Any] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)


@dataclass(eq=False)
class Flight:
    """A block that a worker has: what is waited for, and what stays there."""

    job: Job
    number: int
    ref: Ref
    kept: list[Ref]


@dataclass(eq=False)
class Seat:
    """One worker.  Hired, it owes its greeting; greeted, it is given blocks, which run oldest first.

    since: when it was hired, and later when it was heard of last.  failed: workers that died on their way to this seat.
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
