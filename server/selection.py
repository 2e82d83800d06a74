"""What is chosen, and by what: never by test samples, and only by a metric that says which way is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedgen.server.words import human_metric, in_round, split_metric

Directions = Mapping[str, bool]
"""{metric as it is reported: whether a lower value is better}, of those that declare it."""

Points = list[tuple[int, float]]
"""(round, value) of the rounds where a metric is a finite number."""


@dataclass(frozen=True)
class Chosen:
    """The round that a validation metric chose, and the value of the test metric there."""

    by: str
    round: int
    value: float

    def words(self, metric: str) -> str:
        return f"{human_metric(metric, self.value)} {in_round(self.round)}, chosen by {self.by.replace('_', ' ')}"


def best(points: Iterable[tuple[int, float]], lower: bool) -> tuple[int, float]:
    """Round and value of the first best one."""
    sign = 1 if lower else -1
    return min(points, key=lambda point: sign * point[1])


def chosen(metric: str, histories: Mapping[str, Points], directions: Directions) -> Chosen | None:
    """The value of a test metric where its validation counterpart, or else the validation loss, is best; None where
    there is no validation set, or neither says which way is better, or the metric has no value there."""
    if split_metric(metric)[0] != "test":
        return None
    for by in (f"validation_{metric}", "validation_loss"):
        if by in directions and histories.get(by):
            at, _ = best(histories[by], directions[by])
            values = dict(histories.get(metric, []))
            return Chosen(by, at, values[at]) if at in values else None
    return None
