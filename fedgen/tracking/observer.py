"""The contract of those that watch a run: a live view, a log of your own, a tracker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fedgen.tracking.record import RoundRecord
from fedgen.tracking.result import Result

if TYPE_CHECKING:
    from fedgen.config import Experiment


@dataclass(frozen=True)
class Plan:
    """What an observer knows before the first round.

    experiment: with every key, and what "auto" became.  folder: the run folder.  directions: {metric: whether a lower
    value is better}, of those that declare it.  first_round: the one that this process begins with.  earlier: the
    rounds before it, of a run that goes on.  earlier_s: seconds that the run has taken so far.
    """

    experiment: Experiment
    folder: Path
    directions: Mapping[str, bool] = field(default_factory=dict)
    first_round: int = 0
    earlier: tuple[RoundRecord, ...] = ()
    earlier_s: float = 0.0

    @property
    def title(self) -> str:
        return self.experiment.experiment.name

    @property
    def rounds(self) -> int:
        """How many are planned in all."""
        return self.experiment.federation.rounds


class Observer:
    """Watches a run; a subclass overrides what it wants to know.

    All calls come one after another, from the process that runs the experiment. A round is in the run folder before
    `round` is called. One that raises is dropped, with an event, and the run goes on without it.
    """

    def start(self, plan: Plan) -> None:
        """The first round comes next, or, of a run that goes on, the one after its last checkpoint."""

    def doing(self, what: str) -> None:
        """The next round waits for something, such as workers that start; "" where it begins now."""

    def round(self, record: RoundRecord) -> None:
        """A round has ended."""

    def note(self, message: str) -> None:
        """A warning or an event that is worth a person's attention."""

    def end(self, result: Result) -> None:
        """The run has ended, in whatever state. A run that is killed, or stopped by a second Ctrl-C, has no end."""
