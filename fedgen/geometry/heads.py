"""Linear heads in closed form, from pooled statistics alone: the same for every partition, with no rounds at all."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fedgen.geometry.statistics import Scatter, Statistics
from fedgen.parameters import Layout

UNKNOWN = 10.0
"""A class without samples gets the least bias minus this, where a model starts from a head."""


@dataclass(frozen=True)
class Head:
    """Scores x @ weight^T + bias; weight float64[C, d], bias float64[C], minus infinity for classes without samples."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: ArrayLike | Tensor) -> Tensor:
        """float64[s, C] of x[s, d]."""
        return torch.as_tensor(x).double() @ self.weight.mT + self.bias

    def scaled(self, factor: float) -> Head:
        return Head(factor * self.weight, factor * self.bias)


def linear_names(layout: Layout, classes: int, features: int) -> tuple[str, str] | None:
    """Names of weight[C, d] and bias[C] of a model that is one linear layer; None for any other.

    >>> linear_names(Layout({"1.weight": (10, 64), "1.bias": (10,)}), 10, 64)
    ('1.weight', '1.bias')
    """
    places = {shape: name for name, shape in layout.shapes.items()}
    if set(places) != {(classes, features), (classes,)} or len(layout.shapes) != 2:
        return None
    return places[classes, features], places[classes,]


def row_of(head: Head, layout: Layout) -> Tensor:
    """The head as the row of a model that is one linear layer; classes without samples score less than any other."""
    names = linear_names(layout, *head.weight.shape)
    assert names is not None
    held = head.bias.isfinite()
    floor = head.bias[held].min() - UNKNOWN if bool(held.any()) else head.bias.new_zeros(())
    row = layout.flatten(dict(zip(names, (head.weight, torch.where(held, head.bias, floor)), strict=True)))
    return row.to(layout.dtype)


def _known(head: Head, statistics: Statistics) -> Head:
    empty = statistics.counts <= 0
    return Head(head.weight * ~empty[:, None], head.bias.masked_fill(empty, -torch.inf))


def nearest_mean(statistics: Statistics) -> Head:
    """The class whose mean is nearest: weight_c = mean_c, bias_c = -|mean_c|^2 / 2."""
    return _known(Head(statistics.means, -statistics.means.square().sum(1) / 2), statistics)


def lda(statistics: Statistics, shrinkage: float = 0.3) -> Head:
    """Linear discriminant analysis: the posterior of Gaussian classes with one covariance.

    S = within-class scatter / n + shrinkage tr(.) / d I;  weight_c = S^-1 mean_c;  bias_c = -mean_c^T S^-1 mean_c / 2 +
    log p_c, with p_c the share of class c.

    >>> from fedgen.geometry.statistics import statistics_of
    >>> x, y = [[0.0, 0.0], [1.0, 1.0], [4.0, 0.0], [5.0, 1.0]], [0, 0, 1, 1]
    >>> lda(statistics_of(x, y, classes=2))([[1.5, 0.5], [3.5, 0.5]]).argmax(1)
    tensor([0, 1])

    Source: R. A. Fisher 1936; from pooled statistics as in Z. Guan et al., FedCGS, arXiv 2503.06962 (2025).
    """
    total = float(statistics.counts.sum())
    within = statistics.within().scaled(1 / max(total, 1.0))
    variance = within.trace / within.size or 1.0  # samples that lie on their means: then the nearest mean decides
    directions = within.solve(shrinkage * variance, statistics.means.mT)
    priors = (statistics.counts / max(total, 1.0)).clamp_min(1e-300)
    bias = priors.log() - (statistics.means * directions.mT).sum(1) / 2
    return _known(Head(directions.mT.contiguous(), bias), statistics)


def ridge(statistics: Statistics, penalty: float = 3e-2, balanced: bool = True) -> Head:
    """Least squares on one-hot targets, with a column of ones for the bias.

    S = sum z z^T over all samples, z = [x, 1];  B = sum z onehot(y)^T;  [weight | bias]^T = (S + l I)^-1 B,
    l = penalty tr(S) / (d + 1).  With `balanced` every class has the same weight, n / (C n_c) a sample;
    without, every sample has.

    >>> from fedgen.geometry.statistics import statistics_of
    >>> x, y = [[0.0, 0.0], [1.0, 1.0], [4.0, 0.0], [5.0, 1.0]], [0, 0, 1, 1]
    >>> ridge(statistics_of(x, y, classes=2))([[1.5, 0.5], [3.5, 0.5]]).argmax(1)
    tensor([0, 1])

    Source: E. Fani et al., Fed3R, arXiv 2402.01345 (2024), equations 3 and 4; there not balanced.
    """
    counts = statistics.counts
    held = statistics.counts > 0
    weights = counts.sum() / (held.sum().clamp_min(1) * counts.clamp_min(1)) if balanced else torch.ones_like(counts)
    weights = weights * held
    if balanced:
        pairs = zip(range(statistics.classes), weights.tolist(), strict=True)
        within = reduce(Scatter.__add__, (statistics.scatter(label).scaled(weight) for label, weight in pairs))
    else:
        within = statistics.within()
    means = torch.nn.functional.pad(statistics.means, (0, 1), value=1.0)
    between = (weights * counts).sqrt()[:, None] * means
    second = _with_ones(within) + Scatter(between)
    targets = ((weights * counts)[:, None] * means).mT
    scale = second.trace / second.size or 1.0  # of nothing at all, the head is zero
    solved = second.solve(penalty * scale, targets).mT
    return _known(Head(solved[:, :-1].contiguous(), solved[:, -1].contiguous()), statistics)


def _with_ones(within: Scatter) -> Scatter:
    """The scatter with one more feature, which is constant."""
    matrix = None if within.matrix is None else torch.nn.functional.pad(within.matrix, (0, 1, 0, 1))
    return Scatter(torch.nn.functional.pad(within.rows, (0, 1)), matrix, within.isotropic)
