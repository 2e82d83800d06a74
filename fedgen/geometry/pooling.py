"""Pooling the statistics of participants, some of whom may lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.geometry.statistics import Statistics, pooled


@dataclass(frozen=True)
class Pooled:
    """The statistics of those who are believed; refused: place -> why not."""

    statistics: Statistics
    refused: dict[int, str]


def robust_pooled(parts: Sequence[Statistics], bound: float = 3.0, most: float = 10.0) -> Pooled:
    """All participants whose statistics can be those of embeddings like the others', none with too many samples.

    Refused is who sends numbers that no samples have (counts below 0, negative variances, infinities), and whose
    embeddings, or those of a class, are more than `bound` times as long in the root mean square as in the median of the
    participants.  A participant of more than `most` times the median number of samples counts as one of that many.

    Two means of one class may differ, as domains do, but not in length by orders of magnitude: what passes can shift
    the pool by its own share times `bound` only.  A median of the means themselves would throw away the classes that
    few participants hold, which are the reason for pooling.

    Raises ValueError where nobody is left.
    """
    refused = {place: why for place, each in enumerate(parts) if (why := impossible(each))}
    left = [place for place in range(len(parts)) if place not in refused]
    lengths = {place: _length(parts[place]) for place in left}
    held = torch.tensor([length for length in lengths.values() if length > 0], dtype=torch.float64)
    typical = float(held.median()) if len(held) else 0.0
    for place in left:
        longest = max(lengths[place], float(class_lengths(parts[place]).max()))
        if longest > bound * typical:
            refused[place] = f"embeddings of length {longest:.3g}, more than {bound:g} times the median {typical:.3g}"
    left = [place for place in left if place not in refused]
    if not left:
        raise ValueError(
            f"no participant's statistics can be those of embeddings: {next(iter(refused.values()), 'none')}"
        )
    totals = torch.stack([parts[place].counts.sum() for place in left])
    limit = most * float(totals.median())
    shares = (limit / totals.clamp_min(1)).clamp_max(1).tolist()
    kept = [_thinned(parts[place], share) for place, share in zip(left, shares, strict=True)]
    return Pooled(pooled(kept), dict(sorted(refused.items())))


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


def class_lengths(statistics: Statistics) -> Tensor:
    """float64[C]: the root mean square length of the embeddings of each class, 0 where there are none."""
    squares = statistics.means.square().sum(1)
    if not statistics.shared:
        traces = torch.tensor([scatter.trace for scatter in statistics.scatters], dtype=torch.float64)
        squares = squares + traces.clamp_min(0) / statistics.counts.clamp_min(1)
    return (squares * (statistics.counts > 0)).sqrt()


def _length(statistics: Statistics) -> float:
    squares = float((statistics.counts * statistics.means.square().sum(1)).sum())
    variances = sum(max(scatter.trace, 0.0) for scatter in statistics.scatters)
    return float(((squares + variances) / max(float(statistics.counts.sum()), 1.0)) ** 0.5)


def _thinned(statistics: Statistics, share: float) -> Statistics:
    """As if a share of the samples had been there."""
    if share >= 1:
        return statistics
    scatters = tuple(scatter.scaled(share) for scatter in statistics.scatters)
    return Statistics(share * statistics.counts, statistics.means, scatters)
