"""Shapes of classes: what new samples are drawn with, and how alike two shapes are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedgen.geometry.statistics import Scatter, Statistics

Scale = Literal["standard_deviation", "eigenvalue"]

NEGLIGIBLE = 1e-10
"""Share of the largest eigenvalue, or of the trace, below which there is nothing but rounding."""


@dataclass(frozen=True)
class Shape:
    """Principal axes of a covariance: sum_m values_m axes_m axes_m^T + remainder I.

    values float64[r] descending and positive, axes float64[r, d] orthonormal.
    """

    values: Tensor
    axes: Tensor
    remainder: float = 0.0


def shape_of(scatter: Scatter, count: float) -> Shape:
    """The axes of scatter / count, by one decomposition of its smaller side.

    count: of samples; a matrix of fewer than two is rounding.
    """
    covariance = scatter.scaled(1 / max(count, 1.0))
    nothing = scatter.rows[:0]
    known = len(covariance.rows) if covariance.matrix is None else count >= 2
    if not known:
        return Shape(nothing.new_zeros(0), nothing, covariance.isotropic)
    if covariance.matrix is None:
        values, vectors = torch.linalg.eigh(covariance.rows @ covariance.rows.mT)
        axes = vectors.mT @ covariance.rows / values.clamp_min(1e-300).sqrt()[:, None]
    else:
        values, vectors = torch.linalg.eigh(covariance.matrix)
        axes = vectors.mT
    values = values.flip(0)
    axes = axes.flip(0)
    kept = values > NEGLIGIBLE * values[:1].clamp_min(0)
    return Shape(values[kept], axes[kept].contiguous(), covariance.isotropic)


def similarity(one: Shape, other: Shape, axes: int | None = None) -> float:
    """How alike two shapes are: sum_m |<axes_m, axes'_m>| over the first `axes` of both (default: all they share).

    0 .. axes, where equal shapes reach the number of axes.

    Source: Y. Ma et al., arXiv 2503.06457 (2025), equation 3.
    """
    shared = min(len(one.values), len(other.values), axes or len(one.values))
    return float((one.axes[:shared] * other.axes[:shared]).sum(1).abs().sum())


@dataclass(frozen=True)
class Geometry:
    """What participants need to make new samples, in float32.

    counts[C], means[C, d]; roots[S, R, d], S = C or one for all classes: root^T root is the covariance of the noise,
    but for remainders[S], the standard deviation of what is added in every direction.
    """

    counts: Tensor
    means: Tensor
    roots: Tensor
    remainders: Tensor

    def root(self, label: int) -> tuple[Tensor, float]:
        place = label if len(self.roots) > 1 else 0
        return self.roots[place], float(self.remainders[place])


def geometry_of(
    statistics: Statistics,
    scale: Scale = "standard_deviation",
    rank: int | None = None,
    size: int | None = None,
    definite: bool = True,
) -> Geometry:
    """The geometry of pooled statistics, by one factorisation a class, or none where its factor is known.

    scale: new samples vary along axis m by the root of eigenvalue m, or by the eigenvalue itself (as equation 5 of the
    paper is written).  rank: keep that many axes; the rest of the variance is spread evenly over all directions.
    size: R, if larger than the most axes of a class.  definite: no covariance has negative eigenvalues, as noise or
    numbers of lower precision leave; else they are looked for at once, and left out.

    >>> from fedgen.geometry.statistics import statistics_of
    >>> geometry = geometry_of(statistics_of([[-3.0, 0.0], [3.0, 0.0], [0.0, 0.0]], [0, 0, 0], classes=1))
    >>> (geometry.roots[0].mT @ geometry.roots[0]).round().abs()
    tensor([[6., 0.],
            [0., 0.]])
    """
    whole = float(statistics.counts.sum())
    counts = [whole] if statistics.shared else statistics.counts.tolist()
    pairs = zip(statistics.scatters, counts, strict=True)
    roots = [_root(scatter, count, scale, rank, definite) for scatter, count in pairs]
    most = size or max(1, *(len(rows) for rows, _ in roots), 1)
    stacked = torch.zeros(len(roots), most, statistics.features)
    for row, (rows, _) in enumerate(roots):
        stacked[row, : len(rows)] = rows.float()
    remainders = torch.tensor([remainder for _, remainder in roots])
    return Geometry(statistics.counts.float(), statistics.means.float(), stacked, remainders)


def _root(scatter: Scatter, count: float, scale: Scale, rank: int | None, definite: bool) -> tuple[Tensor, float]:
    """(rows[r, d], remainder) of the noise; any root of the covariance will do for standard deviations."""
    if scale == "standard_deviation" and rank is None and not scatter.isotropic:
        rows = _any_root(scatter.scaled(1 / max(count, 1.0)), count, definite)
        if rows is not None:
            return rows, 0.0
    shape = truncated(shape_of(scatter, count), scatter.size, rank)
    if scale == "standard_deviation":
        return shape.values.sqrt()[:, None] * shape.axes, shape.remainder**0.5
    # Along an axis both add up to the eigenvalue: its square is the variance there.
    wanted = (shape.values + shape.remainder).square() - shape.remainder**2
    return wanted.sqrt()[:, None] * shape.axes, shape.remainder


def truncated(shape: Shape, features: int, rank: int | None) -> Shape:
    """The first `rank` axes; the variance of the others is spread evenly over the directions that are left."""
    if rank is None or rank >= len(shape.values):
        return shape
    spread = float(shape.values[rank:].sum()) / max(features - rank, 1)
    values = (shape.values[:rank] - spread).clamp_min(0)
    return Shape(values, shape.axes[:rank], shape.remainder + spread)


def _any_root(covariance: Scatter, count: float, definite: bool) -> Tensor | None:
    """rows[r, d] with rows^T rows = covariance; None where it needs eigenvalues, as a Byzantine covariance may."""
    if covariance.matrix is None or count < 2:
        return covariance.rows
    if not definite:
        return None
    # Covariances of few samples, or with constant features, are singular: this much in every direction is less than
    # float32 can tell, and more than rounding.
    lifted = covariance.matrix.clone()
    lifted.diagonal().add_(NEGLIGIBLE * covariance.trace)
    lower, failed = torch.linalg.cholesky_ex(lifted)
    return None if bool(failed) else lower.mT
