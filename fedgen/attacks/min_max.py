"""Min-max and min-sum: as far from the honest mean as honest updates are from one another."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from math import sqrt
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedgen.aggregation.statistics import decisive
from fedgen.attacks.base import BaseAttack, Replace
from fedgen.attacks.gram import Along, Deviation, Geometry, Sign
from fedgen.contracts import Rows, SlabFunction, View
from fedgen.parameters import Tensors
from fedgen.registry import register

Direction = Annotated[
    Literal["unit", "std", "sign"], Field(description="where to: against the mean, along the spread, against the sign")
]


@dataclass(frozen=True, kw_only=True)
class Bounded(BaseAttack):
    """g_i <- mean + gamma * p, with the largest gamma >= 0 that a bound on distances from honest rows allows."""

    perturbation: Direction = "std"
    omniscient: ClassVar[bool] = True

    @abstractmethod
    def gamma(self, excess: Tensor, slopes: Tensor, square: float, distances: Tensor) -> float:
        """The largest gamma within the bound.

        |mean + gamma p - g_i|^2 = excess[h] + 2 gamma slopes[h] + gamma^2 square, square > 0; distances[h, h] squared.
        """

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        honest = ~view.byzantine
        if not honest.any():
            return rows, view.weights, view.memory
        statistics: dict[str, SlabFunction | None] = {"unit": None, "std": Deviation(honest), "sign": Sign(honest)}
        statistic = statistics[self.perturbation]
        along, across = self._lie(
            Geometry.of(decisive(rows, view.context.layout), honest, statistic), statistic is None
        )
        lie = Along(honest, along, across, statistic)
        return rows.map(Replace.of(view, lie)), view.weights, view.memory

    def _lie(self, geometry: Geometry, unit: bool) -> tuple[float, float]:
        """(along, across): what of the mean and of the statistic row is sent."""
        mean = geometry.mean
        length = sqrt(max(geometry.inner(mean, mean), 0.0))
        if unit and not length:
            return 1.0, 0.0
        side = 1.0 if self.perturbation == "std" else -1.0
        direction = -mean / length if unit else side * geometry.statistic
        square = geometry.inner(direction, direction)
        if not square > 0:
            return 1.0, 0.0
        rows = torch.eye(len(geometry.gram), dtype=torch.float64)[: len(geometry.honest)][geometry.honest]
        slopes = (mean - rows) @ geometry.gram @ direction
        gamma = self.gamma(geometry.squares(mean), slopes, square, geometry.distances())
        return (1 - gamma / length, 0.0) if unit else (1.0, side * gamma)


@register("attack", "min_max")
@dataclass(frozen=True, kw_only=True)
class MinMax(Bounded):
    """Sends the mean, moved until its farthest honest row is as far as the farthest two honest rows are apart.

    g_i <- mean + gamma * p;  gamma largest with max_j |g_i - g_j| <= max_jk |g_j - g_k| over honest j, k

    p ("perturbation"): -mean / |mean| ("unit"), std ("std") or -sign(mean) ("sign") of the honest rows, std with 1 / h;
    the papers' -std is of gradients, whose negatives updates are.  Without honest rows nothing is changed.

    >>> MinMax(perturbation="sign")([[1.0], [3.0], [9.0]], byzantine=[2])
    tensor([[1.],
            [3.],
            [1.]])

    Source: V. Shejwalkar, A. Houmansadr, Manipulating the Byzantine, NDSS 2021, AGR-agnostic min-max.  The bound is a
    quadratic in gamma for every honest row: its least root is what their halving search (algorithm 1) approaches.
    """

    def gamma(self, excess: Tensor, slopes: Tensor, square: float, distances: Tensor) -> float:
        room = (distances.max() - excess).clamp_min(0)
        roots = (-slopes + (slopes.square() + square * room).sqrt()) / square
        return float(roots.min().clamp_min(0))


@register("attack", "min_sum")
@dataclass(frozen=True, kw_only=True)
class MinSum(Bounded):
    """Sends the mean, moved until its squared distances sum to as much as those of the outermost honest row.

    g_i <- mean + gamma * p;  gamma largest with sum_j |g_i - g_j|^2 <= max_j sum_k |g_j - g_k|^2 over honest j, k

    p ("perturbation"): -mean / |mean| ("unit"), std ("std") or -sign(mean) ("sign") of the honest rows, std with 1 / h;
    the papers' -std is of gradients, whose negatives updates are.  Without honest rows nothing is changed.

    >>> MinSum(perturbation="sign")([[1.0], [3.0], [9.0]], byzantine=[2])
    tensor([[1.],
            [3.],
            [1.]])

    Source: V. Shejwalkar, A. Houmansadr, Manipulating the Byzantine, NDSS 2021, AGR-agnostic min-sum; gamma in closed
    form, as for min_max.
    """

    def gamma(self, excess: Tensor, slopes: Tensor, square: float, distances: Tensor) -> float:
        room = float(distances.sum(1).max() - excess.sum())
        return sqrt(max(room, 0.0) / (len(excess) * square))  # the slopes sum to 0
