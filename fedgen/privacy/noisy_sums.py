"""Gaussian noise on sums of counts, embeddings and second moments."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from fedgen.geometry.uploads import Sums
from fedgen.lazy import lazy_property
from fedgen.privacy.accountant import multiplier_for

SHARES = {"count": 0.2, "sum": 0.7, "second": 0.7}
"""Parts of the privacy budget, squares adding up to about one: counts need little."""


@dataclass(frozen=True)
class NoisySums:
    """One release of `Sums` with (epsilon, delta)-differential privacy for every sample.

    A sample x of length at most `clip` adds 1 to a count, x to a sum, and the triangle of x x^T, of length at most
    clip^2, to a second moment.  Block b of these, of sensitivity s_b, gets noise of the standard deviation
    multiplier * s_b / share_b, so that all of them together are one Gaussian mechanism of that multiplier.

    Every one of `participants` adds an equal part of the variance: the sum has all of it, so epsilon holds towards
    whoever sees the sum alone, as under secure aggregation.  A single row has less noise, and a participant that fails
    takes its part of the noise along.
    """

    sums: Sums
    epsilon: float
    delta: float
    clip: float
    participants: int

    @lazy_property
    def multiplier(self) -> float:
        return multiplier_for(self.epsilon, self.delta)

    @lazy_property
    def deviations(self) -> Tensor:
        """float64[size]: of the noise in every column of the sum."""
        total = sqrt(sum(share**2 for share in SHARES.values()))
        sensitivity = {"count": 1.0, "sum": self.clip, "second": self.clip**2}
        layout = self.sums.layout
        parts = {
            name: torch.full(shape, self.multiplier * sensitivity[name] * total / SHARES[name], dtype=torch.float64)
            for name, shape in layout.shapes.items()
        }
        return layout.flatten(parts)

    @property
    def spectral_norm(self) -> float:
        """About the largest eigenvalue, in absolute terms, of the noise in a second moment: 2 deviation sqrt(d)."""
        return 2 * float(self.deviations[-1]) * sqrt(self.sums.features)

    def clipped(self, x: Tensor) -> Tensor:
        """x[s, d], samples longer than `clip` shortened to it."""
        factors: Tensor = (self.clip / x.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1)
        return x * factors

    def with_noise(self, rows: Tensor, normal: Tensor) -> Tensor:
        """rows[n, size] of n participants with their parts of the noise; normal[n, size] of the standard normal law."""
        return rows + normal * (self.deviations / sqrt(self.participants))
