"""Pooling the statistics of participants, some of whom may be Byzantine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.geometry.statistics import Statistics, pooled


@dataclass(frozen=True)
class Pooled:
    """The pooled statistics of the accepted participants, and the single ones: place -> statistics as pooled.

    refused: place -> why not.
    """

    statistics: Statistics
    parts: dict[int, Statistics]
    refused: dict[int, str]


def robust_pooled(parts: Sequence[Statistics], bound: float = 3.0, most: float = 3.0) -> Pooled:
    """The pool of all participants, each with no more weight and no longer embeddings than is common.

    Statistics that no samples can have are rejected: counts below 0, negative variances, infinities.  A class mean
    more than `bound` times as long as the median of all participants' class means is shortened to that median, a
    variance more than bound^2 times the median variance likewise.  A count above `most` times the median count is
    lowered to that.

    A Byzantine participant within these bounds is indistinguishable from an honest one: it shifts the pool by
    its own bounded share.  A median of the means would throw away the classes that few participants hold, which are
    the reason for pooling.

    Raises ValueError where no participant is left.

    >>> from fedgen.geometry.statistics import statistics_of
    >>> honest = [statistics_of([[1.0, shift], [1.0, -shift]], [0, 0], classes=1) for shift in (0.1, 0.2, 0.3)]
    >>> liar = statistics_of([[100.0, 100.0]], [0], classes=1)
    >>> robust_pooled([liar, *honest]).statistics.means.norm() < 1.1
    tensor(True)
    """
    refused = {place: why for place, each in enumerate(parts) if (why := impossible(each))}
    places = [place for place in range(len(parts)) if place not in refused]
    left = [parts[place] for place in places]
    if not left:
        raise ValueError(f"no participant's statistics can be those of samples: {next(iter(refused.values()), 'none')}")
    length = _median(torch.cat([each.means.norm(dim=1) for each in left]))
    variance = _median(torch.cat([_variances(each) for each in left]))
    limit = most * _median(torch.stack([each.counts.sum() for each in left]))
    kept = [_bounded(each, bound, length, variance, limit) for each in left]
    return Pooled(pooled(kept), dict(zip(places, kept, strict=True)), refused)


def _bounded(statistics: Statistics, bound: float, length: float, variance: float, limit: float) -> Statistics:
    lengths = statistics.means.norm(dim=1)
    variances = _variances(statistics)
    shorter = torch.where(lengths > bound * length, length / lengths, 1.0)
    smaller = torch.where(variances > bound**2 * variance, variance / variances, 1.0)
    share = min(1.0, limit / max(float(statistics.counts.sum()), 1.0))
    pairs = zip(statistics.scatters, smaller.tolist(), strict=True)
    scatters = tuple(each.scaled(share * factor) for each, factor in pairs)
    return Statistics(share * statistics.counts, shorter[:, None] * statistics.means, scatters)


def _variances(statistics: Statistics) -> Tensor:
    """float64[C], or [1] where classes share one: the mean squared distance from the mean."""
    traces = torch.tensor([scatter.trace for scatter in statistics.scatters], dtype=torch.float64)
    counts = statistics.counts.sum()[None] if statistics.shared else statistics.counts
    return traces / counts.clamp_min(1)


def _median(values: Tensor) -> float:
    """Of those that are not 0: classes without samples, and those of a single one, say nothing of the others."""
    held = values[values > 0]
    return float(held.median()) if len(held) else 0.0


def impossible(statistics: Statistics) -> str:
    """Why no samples have these statistics; "" where some may."""
    traces = torch.tensor([scatter.trace for scatter in statistics.scatters], dtype=torch.float64)
    if not bool(torch.isfinite(statistics.means).all() and torch.isfinite(traces).all()):
        return "statistics are not finite"
    if bool((statistics.counts < 0).any()):
        return "a class has fewer than 0 samples"
    scale = (statistics.counts * statistics.means.square().sum(1)).sum() + traces.abs().sum()
    if bool((traces < -1e-6 * scale).any()):
        return "a class has a negative variance"
    return ""
