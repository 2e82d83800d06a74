"""Chooses the best round by validation metrics with a declared direction, never by test samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedgen.server.words import human_metric, in_round, split_metric

Directions = Mapping[str, bool]
"""{reported metric: whether a lower value is better}, of metrics that declare it."""

Points = list[tuple[int, float]]
"""(round, value) of the rounds in which a metric is finite."""


@dataclass(frozen=True)
class Chosen:
    """The round that a validation metric has chosen, and the value of the test metric in it."""

    by: str
    round: int
    value: float

    def words(self, metric: str) -> str:
        return f"{human_metric(metric, self.value)} {in_round(self.round)}, chosen by {self.by.replace('_', ' ')}"


def best(points: Iterable[tuple[int, float]], lower: bool) -> tuple[int, float]:
    """Round and value of the best point, the first of equals."""
    sign = 1 if lower else -1
    return min(points, key=lambda point: sign * point[1])


def chosen(metric: str, histories: Mapping[str, Points], directions: Directions) -> Chosen | None:
    """The value of a test metric in the round with the best validation counterpart, or else validation loss.

    None without a validation set, a declared direction or a value in that round.
    """
    if split_metric(metric)[0] != "test":
        return None
    for by in (f"validation_{metric}", "validation_loss"):
        if by in directions and histories.get(by):
            at, _ = best(histories[by], directions[by])
            values = dict(histories.get(metric, []))
            return Chosen(by, at, values[at]) if at in values else None
    return None
