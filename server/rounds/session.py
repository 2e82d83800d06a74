"""The parts of a running federation, on which a loop plays its rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from fedgen.clients.cohort import Part, evaluate_state
from fedgen.errors import FedgenError
from fedgen.evaluation.held_out import with_domain_means
from fedgen.federation import Federation
from fedgen.own_code import explained
from fedgen.parameters import Tensors
from fedgen.rows import columns_of
from fedgen.server.pools.pool import BlockFailure, Item, Pool, Result
from fedgen.server.rounds.spare import Spare
from fedgen.server.store.checkpoint import Standing
from fedgen.server.store.journal import Journal
from fedgen.server.words import members_of, round_name

EVALUATION_SAMPLES = 2_048
"""Number of samples per evaluation task."""


@dataclass
class Session:
    """A running federation. Only `standing` changes, once per round and as a whole.

    given_up: (round, block) -> reason why an earlier process of this run could not compute the block.
    """

    federation: Federation
    pool: Pool
    standing: Standing
    journal: Journal
    given_up: dict[tuple[int, int], str] = field(default_factory=dict)
    spare: Spare = field(default_factory=Spare)

    @property
    def members(self) -> str:
        """What the participants are called: clients or peers."""
        return members_of(self.federation.experiment.federation.mode)

    @property
    def suspects(self) -> str:
        """End of an error message of a round: names the user's own parts; empty if there are none."""
        model, training = self.federation.experiment.model, self.federation.experiment.training
        named = (
            ("model.name", model.name),
            ("model.loss", model.loss),
            *(("model.metrics", name) for name in model.metrics),
            ("training.method", training.method.name),
            *(("training.wrappers", wrapper.name) for wrapper in training.wrappers),
            ("training.optimizer", training.optimizer.name),
            ("byzantine.attack", self.federation.experiment.byzantine.attack.name),
        )
        own = [f"{key} {name!r}" for key, name in named if ":" in name]
        return f"; look at {' and '.join(own)}" if own else ""

    def evaluate(self, state: Tensors) -> dict[str, float | None]:
        """Mean metrics of a state over the test and validation samples, summed in order."""
        parts = [
            Part(number, samples)
            for number, evaluation in enumerate(self.federation.evaluations)
            for samples in columns_of(len(evaluation.y), EVALUATION_SAMPLES)
        ]
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for result in self.evaluated(evaluate_state, parts, state):
            for name, (mean, count) in result.items():
                sums[name] = sums.get(name, 0.0) + mean * count
                counts[name] = counts.get(name, 0) + count
        return {**with_domain_means(self.federation.evaluations, {name: sums[name] / counts[name] for name in sums})}

    def evaluated(
        self, task: Callable[[Federation, Tensors, Item], Result], parts: Sequence[Item], state: Tensors
    ) -> list[Result]:
        """The pool's results of an evaluation; an exception names the user's own parts that may have raised it."""
        try:
            results = list(self.pool.map(task, parts, state))
        except FedgenError:
            raise
        except Exception as error:
            if not self.suspects:
                raise
            why = f"{explained(error)}{self.suspects}"
            raise FedgenError(f"{round_name(self.standing.round)}: evaluation failed: {why}") from error
        whole = []
        for result in results:
            if isinstance(result, BlockFailure):
                raise FedgenError(f"{round_name(self.standing.round)}: evaluation failed: {result.reason}")
            whole.append(result)
        return whole


class Stopwatch:
    """Wall-clock seconds of the phases of a round."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, phase: str) -> None:
        now = perf_counter()
        self.laps[phase] = round(now - self._last, 6)
        self._last = now
