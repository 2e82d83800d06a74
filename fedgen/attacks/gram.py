"""What omniscient attacks compute from inner products of the rows and a statistic of the honest ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.aggregation.base import squared_distances
from fedgen.attacks.base import wide
from fedgen.contracts import Columns, Rows, SlabFunction


def honest_mean(slab: Tensor, honest: Tensor) -> Tensor:
    """slab[n, c] -> [1, c]: the plain mean of the honest rows, added one by one: no column's bits depend on others."""
    total = torch.zeros_like(slab[0])
    for row in _chosen(slab, honest):
        total += row
    return (total / honest.sum())[None]


def honest_std(slab: Tensor, honest: Tensor) -> Tensor:
    """slab[n, c] -> [1, c]: their standard deviation with 1 / h, which is 0 and not NaN for a single row.

    Row by row, as torch's own std over few long rows takes ten times as long.
    """
    mean = honest_mean(slab, honest)[0]
    total = torch.zeros_like(slab[0])
    for row in _chosen(slab, honest):
        apart = row - mean
        total.addcmul_(apart, apart)
    return (total / honest.sum()).sqrt()[None]


def _chosen(slab: Tensor, honest: Tensor) -> list[Tensor]:
    return [slab[place] for place in honest.nonzero().flatten().tolist()]


@dataclass(frozen=True)
class Deviation:
    """slab[n, c] -> [1, c]: the standard deviation of the honest rows."""

    honest: Tensor

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return honest_std(slab, self.honest)


@dataclass(frozen=True)
class Sign:
    """slab[n, c] -> [1, c]: the sign of their mean."""

    honest: Tensor

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return honest_mean(slab, self.honest).sign()


@dataclass(frozen=True)
class Append:
    """slab[n, c] -> [n + 1, c]: with one more row, statistic(slab)."""

    statistic: SlabFunction

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        rows = wide(slab)
        return torch.cat([rows, self.statistic(rows, columns)])


@dataclass(frozen=True)
class Along:
    """slab[n, c] -> [1, c]: along * mean + across * statistic of the honest rows."""

    honest: Tensor
    along: float
    across: float
    statistic: SlabFunction | None = None

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        lie = self.along * honest_mean(slab, self.honest)
        return lie if self.statistic is None else lie + self.across * self.statistic(slab, columns)


@dataclass(frozen=True)
class Geometry:
    """Inner products of the n rows and, where there is one, a statistic row after them.

    gram float64[n or n + 1, n or n + 1], honest bool[n].  A vector is its coefficients on these rows.
    """

    gram: Tensor
    honest: Tensor

    @classmethod
    def of(cls, rows: Rows, honest: Tensor, statistic: SlabFunction | None = None) -> Geometry:
        """One pass over the rows."""
        return cls((rows if statistic is None else rows.map(Append(statistic))).gram(), honest)

    @property
    def mean(self) -> Tensor:
        """float64[.]: the honest mean."""
        mean = torch.zeros(len(self.gram), dtype=torch.float64)
        mean[: len(self.honest)] = self.honest.double() / self.honest.sum()
        return mean

    @property
    def statistic(self) -> Tensor:
        """float64[.]: the statistic row."""
        unit = torch.zeros(len(self.gram), dtype=torch.float64)
        unit[-1] = 1
        return unit

    def inner(self, first: Tensor, second: Tensor) -> float:
        return float(first @ self.gram @ second)

    def squares(self, vector: Tensor) -> Tensor:
        """float64[h]: squared distances of a vector from the honest rows."""
        rows = torch.eye(len(self.gram), dtype=torch.float64)[: len(self.honest)][self.honest]
        apart = vector - rows
        return torch.einsum("ij,jk,ik->i", apart, self.gram, apart).clamp_min(0)

    def distances(self) -> Tensor:
        """float64[h, h]: squared distances between the honest rows."""
        n = len(self.honest)
        gram = self.gram[:n, :n][self.honest][:, self.honest]
        return torch.from_numpy(squared_distances(gram.numpy()))

    def sent(self, lie: Tensor) -> Tensor:
        """float64[n, n]: the Gram matrix of the rows where every Byzantine one is replaced by a lie."""
        basis = torch.eye(len(self.gram), dtype=torch.float64)[: len(self.honest)]
        basis[~self.honest] = lie
        gram = basis @ self.gram @ basis.T
        return (gram + gram.T) / 2

    def aggregate(self, coefficients: Tensor, lie: Tensor) -> Tensor:
        """float64[.]: sum_i coefficients_i * (row i as it is sent)."""
        honest = torch.zeros(len(self.gram), dtype=torch.float64)
        honest[: len(self.honest)] = torch.where(self.honest, coefficients, 0.0)
        return honest + coefficients[~self.honest].sum() * lie
