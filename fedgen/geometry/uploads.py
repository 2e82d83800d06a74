"""How a participant's statistics become one row of numbers, and statistics again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fedgen.geometry.shapes import shape_of, truncated
from fedgen.geometry.statistics import Scatter, Statistics
from fedgen.parameters import Layout

DIGIT = 1_024.0
"""Counts travel as two digits of this base, so that half precision holds them exactly, up to two million."""

MOST_EXPONENT = 500.0


class Upload(Protocol):
    """One way to send the statistics of C classes of d features."""

    @property
    def layout(self) -> Layout:
        """Names, shapes and dtype of the row."""
        ...

    @property
    def additive(self) -> bool:
        """Rows of different participants may be added up; else each is decoded by itself."""
        ...

    def encode(self, statistics: Statistics) -> Tensor:
        """row[layout.size]."""
        ...

    def decode(self, row: Tensor) -> Statistics:
        """The statistics in the row, Byzantine or not."""
        ...


def size_bytes(upload: Upload) -> int:
    """Of one participant's row on the wire.

    >>> size_bytes(LowRank(classes=10, features=512, rank=32))
    338020
    >>> size_bytes(Packed(classes=200, features=512, shared=True))
    468658
    """
    return upload.layout.size * upload.layout.dtype.itemsize


def dense_bytes(classes: int, features: int) -> int:
    """Counts, means and whole covariances in float64: what the uploads are compared with."""
    return 8 * classes * (1 + features + features**2)


@dataclass(frozen=True)
class Sums:
    """Counts, sums and second moments in float64, which add up exactly.

    [n_c | sum x | upper triangle of sum x x^T] of every class; with `shared` one second moment for all classes.
    """

    additive: ClassVar[bool] = True
    classes: int
    features: int
    shared: bool = False

    @property
    def layout(self) -> Layout:
        blocks = 1 if self.shared else self.classes
        packed = self.features * (self.features + 1) // 2
        shapes = {"count": (self.classes,), "sum": (self.classes, self.features), "second": (blocks, packed)}
        return Layout(shapes, torch.float64)

    def encode(self, statistics: Statistics) -> Tensor:
        statistics = statistics.with_shared() if self.shared else statistics
        between = statistics.counts.sqrt()[:, None] * statistics.means
        rows = [between] if self.shared else [row[None] for row in between]
        seconds = [
            packed((each + Scatter(own[own.any(1)])).dense())
            for each, own in zip(statistics.scatters, rows, strict=True)
        ]
        sums = statistics.counts[:, None] * statistics.means
        return self.layout.flatten({"count": statistics.counts, "sum": sums, "second": torch.stack(seconds)})

    def decode(self, row: Tensor) -> Statistics:
        parts = self.layout.view(row.double())
        counts = parts["count"].clone()
        means = parts["sum"] / torch.where(counts == 0, 1.0, counts)[:, None]
        outer = [(counts, means)] if self.shared else [(counts[c, None], means[c, None]) for c in range(self.classes)]
        matrices = [
            unpacked(second, self.features).addmm((n[:, None] * mean).mT, mean, alpha=-1)
            for second, (n, mean) in zip(parts["second"], outer, strict=True)
        ]
        return _of_matrices(counts, means, matrices)


@dataclass(frozen=True)
class Packed:
    """Counts, means and the upper triangles of the covariances, in half precision with an exponent for every block.

    [two digits of n_c | exponents | mean_c 2^-e | triangle of covariance_c 2^-e]; with `shared` one covariance, that of
    the samples around the means of their classes.
    """

    additive: ClassVar[bool] = False
    classes: int
    features: int
    shared: bool = False
    dtype: torch.dtype = torch.float16

    @property
    def layout(self) -> Layout:
        blocks = 1 if self.shared else self.classes
        triangle = self.features * (self.features + 1) // 2
        shapes = {**_heads(self.classes, self.features), "scale": (blocks,), "covariance": (blocks, triangle)}
        return Layout(shapes, self.dtype)

    def encode(self, statistics: Statistics) -> Tensor:
        statistics = statistics.with_shared() if self.shared else statistics
        counts = statistics.counts.sum()[None] if self.shared else statistics.counts
        pairs = zip(statistics.scatters, counts.clamp_min(1).tolist(), strict=True)
        mantissas, scale = split(torch.stack([packed(each.scaled(1 / count).dense()) for each, count in pairs]))
        parts = {**_encoded_heads(statistics), "scale": scale, "covariance": mantissas}
        return self.layout.flatten(parts).to(self.dtype)

    def decode(self, row: Tensor) -> Statistics:
        parts = self.layout.view(row.double())
        counts, means = _decoded_heads(parts)
        triangles = joined(parts["covariance"], parts["scale"])
        weights = counts.sum()[None] if self.shared else counts
        matrices = [unpacked(each, self.features) * weight for each, weight in zip(triangles, weights, strict=True)]
        return _of_matrices(counts, means, matrices)


@dataclass(frozen=True)
class LowRank:
    """Counts, means and the first axes of the covariances, the rest of their variance spread over all directions.

    [two digits of n_c | exponents | mean_c 2^-e | sqrt(values_m) axes_m 2^-e, m = 1 .. rank | sqrt(remainder) 2^-e]

    A class of at most rank + 1 samples is sent whole: with float64 this is the exact form for n < d.
    """

    additive: ClassVar[bool] = False
    classes: int
    features: int
    rank: int = 32
    dtype: torch.dtype = torch.float16

    @property
    def layout(self) -> Layout:
        shapes = {
            **_heads(self.classes, self.features),
            "scale": (self.classes,),
            "axes": (self.classes, self.rank, self.features),
            "remainder": (self.classes,),
        }
        return Layout(shapes, self.dtype)

    def encode(self, statistics: Statistics) -> Tensor:
        axes = torch.zeros(self.classes, self.rank, self.features, dtype=torch.float64)
        remainders = torch.zeros(self.classes, dtype=torch.float64)
        for label, count in enumerate(statistics.counts.tolist()):
            shape = truncated(shape_of(statistics.scatter(label), count), self.features, self.rank)
            axes[label, : len(shape.values)] = shape.values.sqrt()[:, None] * shape.axes
            remainders[label] = max(shape.remainder, 0.0) ** 0.5
        mantissas, scale = split(axes.flatten(1))
        parts = {
            **_encoded_heads(statistics),
            "scale": scale,
            "axes": mantissas.view_as(axes),
            "remainder": remainders * torch.exp2(-scale),
        }
        return self.layout.flatten(parts).to(self.dtype)

    def decode(self, row: Tensor) -> Statistics:
        parts = self.layout.view(row.double())
        counts, means = _decoded_heads(parts)
        axes = joined(parts["axes"].flatten(1), parts["scale"]).view_as(parts["axes"])
        spread = joined(parts["remainder"][:, None], parts["scale"])[:, 0].square()
        scatters = tuple(
            Scatter(rows[rows.any(1)], None, isotropic).scaled(max(count, 0.0))
            for rows, isotropic, count in zip(axes, spread.tolist(), counts.tolist(), strict=True)
        )
        return Statistics(counts, means, scatters)


def upload_of(name: str, classes: int, features: int, dtype: torch.dtype, rank: int = 32) -> Upload:
    """The upload "packed", "low_rank" or "second_moment" in that precision; sums where float64 lets rows add up.

    >>> upload_of("second_moment", 10, 512, torch.float64)
    Sums(classes=10, features=512, shared=True)
    """
    if name == "low_rank":
        return LowRank(classes, features, rank, dtype)
    shared = name == "second_moment"
    return Sums(classes, features, shared) if dtype == torch.float64 else Packed(classes, features, shared, dtype)


def packed(matrix: Tensor) -> Tensor:
    """Symmetric [d, d] -> its upper triangle [d (d + 1) / 2]."""
    row, column = torch.triu_indices(*matrix.shape)
    return matrix[row, column]


def unpacked(triangle: Tensor, features: int) -> Tensor:
    """The symmetric matrix [d, d] of an upper triangle."""
    matrix = triangle.new_empty(features, features)
    row, column = torch.triu_indices(features, features)
    matrix[row, column] = triangle
    matrix[column, row] = triangle
    return matrix


def split(values: Tensor) -> tuple[Tensor, Tensor]:
    """values[k, w] -> (mantissas in -1 .. 1, exponents[k]), values = mantissas 2^exponents."""
    largest = values.abs().amax(1)
    exponents = torch.where(largest > 0, torch.frexp(largest).exponent.double(), 0.0)
    return values * torch.exp2(-exponents)[:, None], exponents


def joined(mantissas: Tensor, exponents: Tensor) -> Tensor:
    """The values[k, w] again, finite whatever a Byzantine client sends."""
    return mantissas * torch.exp2(exponents.clamp(-MOST_EXPONENT, MOST_EXPONENT))[:, None]


def _of_matrices(counts: Tensor, means: Tensor, matrices: Iterable[Tensor]) -> Statistics:
    nothing = means[:0]
    return Statistics(counts, means, tuple(Scatter(nothing, matrix) for matrix in matrices))


def _heads(classes: int, features: int) -> dict[str, tuple[int, ...]]:
    return {"count": (2, classes), "mean_scale": (classes,), "mean": (classes, features)}


def _encoded_heads(statistics: Statistics) -> dict[str, Tensor]:
    high = (statistics.counts / DIGIT).floor()
    mantissas, scale = split(statistics.means)
    return {"count": torch.stack([high, statistics.counts - high * DIGIT]), "mean_scale": scale, "mean": mantissas}


def _decoded_heads(parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    high, low = parts["count"]
    return high * DIGIT + low, joined(parts["mean"], parts["mean_scale"])
