"""Statistics of classes that merge exactly: counts, means and scatters, in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import torch
from numpy.typing import ArrayLike
from torch import Tensor


@dataclass(frozen=True)
class Scatter:
    """A sum of outer products, S = rows^T rows + matrix + isotropic I, in whichever form is smaller.

    rows float64[r, d] with r < d (the factor form: S is never formed), matrix float64[d, d] or None, isotropic >= 0.
    """

    rows: Tensor
    matrix: Tensor | None = None
    isotropic: float = 0.0

    @property
    def size(self) -> int:
        """d, the number of features."""
        return self.rows.shape[1]

    @property
    def factored(self) -> bool:
        return self.matrix is None

    def __add__(self, other: Scatter) -> Scatter:
        rows = torch.cat([self.rows, other.rows])
        held = [each for each in (self.matrix, other.matrix) if each is not None]
        matrix = reduce(torch.add, held) if held else None
        return Scatter(rows, matrix, self.isotropic + other.isotropic).folded()

    def folded(self) -> Scatter:
        """The same sum, as a matrix where that is no larger than the rows."""
        if self.matrix is None and len(self.rows) < self.size:
            return self
        return Scatter(self.rows[:0], self._whole(), self.isotropic)

    def _whole(self) -> Tensor:
        """Rows and matrix as one matrix, in memory of its own."""
        if self.matrix is None:
            outer: Tensor = self.rows.mT @ self.rows
            return outer
        return self.matrix.addmm(self.rows.mT, self.rows)

    def scaled(self, factor: float) -> Scatter:
        """factor * S, for factor >= 0."""
        matrix = None if self.matrix is None else factor * self.matrix
        return Scatter(factor**0.5 * self.rows, matrix, factor * self.isotropic)

    def dense(self) -> Tensor:
        """float64[d, d]."""
        whole = self._whole()
        whole.diagonal().add_(self.isotropic)
        return whole

    @property
    def trace(self) -> float:
        matrix = 0.0 if self.matrix is None else float(self.matrix.trace())
        return float(self.rows.square().sum()) + matrix + self.isotropic * self.size

    def solve(self, penalty: float, targets: Tensor) -> Tensor:
        """(S + penalty I)^-1 targets[d, k], for penalty > 0 where S is singular.

        In the factor form by the identity of Woodbury, through an r x r matrix.
        """
        shrunk = Scatter(self.rows, self.matrix, self.isotropic + penalty)
        if self.matrix is None and len(self.rows) < self.size:
            inner = self.rows @ self.rows.mT
            inner.diagonal().add_(shrunk.isotropic)
            explained: Tensor = self.rows.mT @ torch.linalg.solve(inner, self.rows @ targets)
            return (targets - explained) / shrunk.isotropic
        solved: Tensor = torch.linalg.solve(shrunk.dense(), targets)
        return solved


@dataclass(frozen=True)
class Statistics:
    """What is known of C classes of embeddings.

    counts float64[C], means float64[C, d] (zeros for empty classes), scatters: of each class around its mean, divisor
    1; or a single one, the sum over all classes (`shared`).

    >>> one = statistics_of([[0.0, 0.0], [2.0, 0.0]], [0, 0], classes=2)
    >>> other = statistics_of([[4.0, 3.0], [1.0, 1.0]], [0, 1], classes=2)
    >>> both = merge(one, other)
    >>> both.counts.tolist(), both.means.tolist()
    ([3.0, 1.0], [[2.0, 1.0], [1.0, 1.0]])
    >>> both.covariance(0)
    tensor([[2.6667, 2.0000],
            [2.0000, 2.0000]], dtype=torch.float64)
    """

    counts: Tensor
    means: Tensor
    scatters: tuple[Scatter, ...]

    @property
    def classes(self) -> int:
        return len(self.counts)

    @property
    def features(self) -> int:
        return self.means.shape[1]

    @property
    def shared(self) -> bool:
        """One scatter for all classes together."""
        return len(self.scatters) < self.classes

    def scatter(self, label: int) -> Scatter:
        """Of one class; its share of the common one where only that is known."""
        if not self.shared:
            return self.scatters[label]
        return self.scatters[0].scaled(float(self.counts[label] / self.counts.sum().clamp_min(1)))

    def covariance(self, label: int) -> Tensor:
        """float64[d, d] with divisor n, zeros for an empty class."""
        return self.scatter(label).scaled(1 / max(float(self.counts[label]), 1.0)).dense()

    def within(self) -> Scatter:
        """The scatter around the classes' own means, summed over the classes."""
        return reduce(Scatter.__add__, self.scatters)

    def with_shared(self) -> Statistics:
        """The same with one scatter for all classes."""
        return Statistics(self.counts, self.means, (self.within(),))

    def with_ridge(self, variance: float) -> Statistics:
        """With so much more scatter in every direction."""
        empty = torch.zeros(0, self.features, dtype=torch.float64)
        scatters = tuple(each + Scatter(empty, None, variance) for each in self.scatters)
        return Statistics(self.counts, self.means, scatters)

    def only(self, kept: Tensor) -> Statistics:
        """Without the classes that are not in kept bool[C]; a scatter that all share stays as it is."""
        empty = Scatter(torch.zeros(0, self.features, dtype=torch.float64))
        scatters = self.scatters
        if not self.shared:
            scatters = tuple(each if bool(keep) else empty for each, keep in zip(scatters, kept, strict=True))
        return Statistics(self.counts * kept, self.means * kept[:, None], scatters)


def statistics_of(x: ArrayLike | Tensor, y: ArrayLike | Tensor, classes: int) -> Statistics:
    """The statistics of embeddings x[s, d] with class numbers y[s]; arrays of numpy or torch.

    n = |{s: y_s = c}|, mean = sum x / n, scatter = sum (x - mean)(x - mean)^T

    Raises ValueError where x and y do not fit together, or a label is no class.
    """
    x, y = checked_samples(x, y, classes)
    features = x.shape[1]
    counts, means, scatters = [], [], []
    for label in range(classes):
        own = x[y == label].double()
        mean = own.mean(0) if len(own) else torch.zeros(features, dtype=torch.float64)
        counts.append(float(len(own)))
        means.append(mean)
        # One sample lies on its mean: there is no row to keep.
        scatters.append(Scatter((own - mean)[: len(own) if len(own) > 1 else 0]).folded())
    return Statistics(torch.tensor(counts, dtype=torch.float64), torch.stack(means), tuple(scatters))


def checked_samples(x: ArrayLike | Tensor, y: ArrayLike | Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """(x[s, d], y[s]) as tensors. Raises ValueError where they do not fit together, or a label is no class."""
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    if x.dim() != 2 or tuple(y.shape) != (len(x),):
        raise ValueError(
            f"x {tuple(x.shape)} and y {tuple(y.shape)}: expected embeddings [samples, features] and a label each"
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(f"labels run from {int(y.min())} to {int(y.max())}; expected 0 to {classes - 1}")
    return x, y


def merge(one: Statistics, other: Statistics) -> Statistics:
    """The statistics of both sets of samples together: associative and commutative up to rounding.

    n = n_a + n_b;  mean = (n_a mean_a + n_b mean_b) / n;  S = S_a + S_b + (n_a n_b / n) (mean_a - mean_b)(.)^T

    Source: T. F. Chan, G. H. Golub, R. J. LeVeque, Updating formulae and a pairwise algorithm for computing sample
    variances, 1979; the same pooled covariance as equation 4 of Y. Ma et al., arXiv 2503.06457 (2025).
    """
    counts = one.counts + other.counts
    share = other.counts / counts.clamp_min(1)
    apart = other.means - one.means
    means = torch.where((one.counts > 0)[:, None], one.means + share[:, None] * apart, other.means)
    between = (one.counts * share).sqrt()[:, None] * apart
    rows = [between[between.any(1)]] if one.shared else [row[None][: int(row.any())] for row in between]
    triples = zip(one.scatters, other.scatters, rows, strict=True)
    scatters = tuple(a + Scatter(torch.cat([b.rows, own]), b.matrix, b.isotropic) for a, b, own in triples)
    return Statistics(counts, means, scatters)


def pooled(parts: Iterable[Statistics]) -> Statistics:
    """All of them merged, one after another. Raises ValueError where there are none."""
    left = iter(parts)
    first = next(left, None)
    if first is None:
        raise ValueError(
            "no statistics were given; expected those of at least one participant, who may hold no samples"
        )
    return reduce(merge, left, first)
