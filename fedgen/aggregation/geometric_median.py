"""The geometric median: the point nearest to all rows together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from fedgen.aggregation.base import GramRule, Weighing, squared_distances
from fedgen.contracts import Context
from fedgen.parameters import Array
from fedgen.registry import register

LONGEST_LEAP = 1e6
"""Steps that extrapolation goes ahead at most."""


@register("rule", "geometric_median")
@dataclass(frozen=True, kw_only=True)
class GeometricMedian(GramRule):
    """The point with the least sum of distances to the rows. Weights are ignored.

    aggregate = argmin_z sum_i sqrt(|g_i - z|^2 + s^2), s = `smoothing` * a low decile of |g_i - g_j|, by Weiszfeld's
    iteration on coefficients: z = sum_i c_i g_i, c_i <- 1 / sqrt(|g_i - z|^2 + s^2), scaled to sum 1;  n >= 2 f + 1

    >>> GeometricMedian()([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]]).aggregate.tolist()
    [1.0, 1.0]

    Source: K. Pillutla et al., RFA, arXiv 1912.13445 (2022), algorithm 2.  Smoothing follows the rows' own scale, where
    theirs is an absolute number, under which small updates have their mean instead; iterated until nothing changes,
    with the extrapolation of R. Varadhan, C. Roland, Scand. J. Statist. 35 (2008), scheme S3.
    """

    smoothing: Annotated[float, Field(gt=0, le=1, description="smoothing, in distances between near rows")] = 1e-6
    iterations: Annotated[int, Field(ge=1, description="most iterations")] = 1_000

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        return Weighing(weiszfeld(squared_distances(gram), self.smoothing, self.iterations))


def weiszfeld(distances: Array, smoothing: float = 1e-6, iterations: int = 1_000) -> Array:
    """float64[n]: coefficients of the geometric median, from squared distances float64[n, n]."""
    n = len(distances)
    coefficients = np.full(n, 1 / n)
    largest = distances.max()
    if largest == 0:
        return coefficients
    # A tenth: with almost half of the rows Byzantine, more than a quarter of the pairs are still honest.
    typical = np.quantile(distances[np.triu_indices(n, 1)], 0.1, method="lower")
    floor = max(smoothing**2 * typical, 1e-32 * largest)
    spread = np.inf
    for _ in range(iterations):
        once, here = _step(distances, coefficients, floor)
        twice, _ = _step(distances, once, floor)
        first, second = once - coefficients, twice - once
        if np.abs(first).max() < 1e-14:
            break
        # Near a row the steps shrink slowly and in one direction: follow it (SQUAREM), unless the sum then rises.
        bend = second - first
        leap = min(float(np.linalg.norm(first)) / max(float(np.linalg.norm(bend)), 1e-300), LONGEST_LEAP)
        ahead = coefficients + 2 * leap * first + leap**2 * bend
        spread = min(spread, here)
        good = np.isfinite(ahead).all() and _step(distances, ahead, floor)[1] <= spread
        coefficients = ahead if good else twice
    return coefficients


def _step(distances: Array, coefficients: Array, floor: float) -> tuple[Array, float]:
    """(Weiszfeld's next coefficients, the sum of smoothed distances at these)."""
    mixed = distances @ coefficients
    lengths = np.sqrt(np.maximum(mixed - 0.5 * (coefficients @ mixed), 0) + floor)
    closeness = 1 / lengths
    return closeness / closeness.sum(), float(lengths.sum())
