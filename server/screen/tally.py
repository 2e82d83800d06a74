"""Totals over the rounds so far, for the views of a run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict

from fedgen.server.selection import Chosen, Directions, Points, chosen
from fedgen.server.words import OUTCOMES, leading_metric, measures, members_of, round_name
from fedgen.tracking.observer import Plan
from fedgen.tracking.record import RoundRecord

Clock = Callable[[], float]

RECENT_ROUNDS = 50


class Tally:
    """Totals over the records so far; the pace counts only rounds of this process."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.directions: Directions = {}
        self.rounds = 0
        self.members = "clients"
        self._empty()

    def _empty(self) -> None:
        self.done = 0
        self.at = 0
        self.last: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self.total: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self.skipped = 0
        self.up = 0
        self.down = 0
        self.histories: dict[str, Points] = {}
        self.latest: dict[str, float | str | None] = {}
        self.began = self.clock()
        self.wait_for("")

    def begin(self, plan: Plan) -> None:
        self.directions = plan.directions
        self.rounds = plan.rounds
        self.members = members_of(plan.experiment.federation.mode)
        self._empty()
        self.began -= plan.earlier_s
        for record in plan.earlier:
            self._count(record)
        self.done = max(0, plan.first_round)

    def wait_for(self, what: str) -> None:
        """Rounds wait for something, or begin (what = ""): the pace is measured anew."""
        self.waiting = what
        self.stamps: deque[float] = deque([self.clock()], maxlen=RECENT_ROUNDS + 1)

    def add(self, record: RoundRecord) -> None:
        self.stamps.append(self.clock())
        self._count(record)

    def _count(self, record: RoundRecord) -> None:
        self.at = record.round
        self.done = max(self.done, record.round + 1)
        self.skipped += record.skipped
        self.last = asdict(record.clients)
        for outcome, count in self.last.items():
            self.total[outcome] += count
        self.up += record.bytes.up
        self.down += record.bytes.down
        for name, value in measures(record.metrics).items():
            self.latest[name] = value
            if isinstance(value, float):
                self.histories.setdefault(name, []).append((record.round, value))

    @property
    def metric(self) -> str | None:
        """The leading metric: accuracy if there is one."""
        return leading_metric(self.latest)

    def chosen(self, name: str) -> Chosen | None:
        """The metric at the round that the validation set chooses so far, if there is one."""
        return chosen(name, self.histories, self.directions)

    @property
    def progress(self) -> str:
        """Number of finished and planned rounds; setup exchanges do not count."""
        return f"{round_name(-1) + ', ' if self.at < 0 else ''}{self.done}/{self.rounds} rounds"

    @property
    def seconds_a_round(self) -> float | None:
        """Mean over the last 50 rounds; None before the first one has ended."""
        stamps = self.stamps
        return (stamps[-1] - stamps[0]) / (len(stamps) - 1) if len(stamps) > 1 else None

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at the pace of the last 50 rounds, less the time of the running round."""
        pace = self.seconds_a_round
        if pace is None:
            return None
        return max(0.0, (self.rounds - self.done) * pace - (self.clock() - self.stamps[-1]))
