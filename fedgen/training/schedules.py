"""Learning-rate schedules: the factor of the optimiser's lr in a round."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Annotated, Protocol

from pydantic import Field

from fedgen.registry import register

Rounds = Annotated[int, Field(ge=1, description="rounds that the schedule spans; later ones keep its last factor")]


class Schedule(Protocol):
    """What is registered as a "schedule"."""

    def factor(self, round: int) -> float:
        """Of the learning rate in round 0, 1, ..."""
        ...


@register("schedule", "constant")
@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same learning rate in every round."""

    def factor(self, round: int) -> float:
        return 1.0


@register("schedule", "exponential")
@dataclass(frozen=True, kw_only=True)
class Exponential:
    """decay ** round."""

    decay: Annotated[float, Field(gt=0, le=1, description="factor from one round to the next")] = 0.99

    def factor(self, round: int) -> float:
        return float(self.decay**round)


@register("schedule", "step")
@dataclass(frozen=True, kw_only=True)
class Step:
    """decay ** (round // every).

    >>> [Step(every=2, decay=0.5).factor(round) for round in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    every: Annotated[int, Field(ge=1, description="rounds between two steps")] = 30
    decay: Annotated[float, Field(gt=0, le=1, description="factor of a step")] = 0.1

    def factor(self, round: int) -> float:
        return float(self.decay ** (round // self.every))


@register("schedule", "cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine:
    """(1 + cos(pi * round / rounds)) / 2, after `warmup` rounds of linear growth.

    >>> [round(Cosine(rounds=4).factor(r), 3) for r in range(6)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]

    Source: I. Loshchilov, F. Hutter, SGDR, arXiv 1608.03983 (2017), equation 5, without restarts.
    """

    rounds: Rounds = 100
    warmup: Annotated[int, Field(ge=0, description="rounds of linear growth before")] = 0

    def factor(self, round: int) -> float:
        if round < self.warmup:
            return (round + 1) / (self.warmup + 1)
        return (1 + cos(pi * min(1.0, (round - self.warmup) / self.rounds))) / 2
