"""An accountant of Renyi differential privacy for one release with Gaussian noise."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log, log1p

ORDERS: tuple[float, ...] = (
    *(1 + x / 10 for x in range(1, 100)),
    *map(float, range(11, 65)),
    *(128.0, 256.0, 512.0, 1024.0),
)
"""Orders at which a mechanism is accounted for; the best of them gives epsilon."""


def rdp(multiplier: float, order: float) -> float:
    """Renyi divergence of order alpha between releases with and without one sample: alpha / (2 multiplier^2).

    multiplier: standard deviation of the noise over the largest change that one sample makes (Euclidean length).

    Source: I. Mironov, Renyi differential privacy, arXiv 1702.07476 (2017), corollary 3.
    """
    return order / (2 * multiplier**2) if multiplier else inf


def epsilon(multiplier: float, delta: float, orders: Sequence[float] = ORDERS) -> float:
    """The epsilon of (epsilon, delta)-differential privacy.

    min over alpha of rdp(alpha) + log(1 - 1 / alpha) - log(delta alpha) / (alpha - 1)

    >>> round(epsilon(1.0, delta=1e-5), 2)
    4.73

    Source: C. Canonne, G. Kamath, T. Steinke, arXiv 2004.00010 (2020), proposition 12.
    """
    costs = (rdp(multiplier, order) + log1p(-1 / order) - log(delta * order) / (order - 1) for order in orders)
    return max(min(costs), 0.0)


def multiplier_for(wanted: float, delta: float) -> float:
    """The least noise multiplier with an epsilon of at most `wanted`, by bisection to six digits.

    >>> round(multiplier_for(8.0, delta=1e-5), 3)
    0.638
    """
    low, high = 0.0, 1.0
    while epsilon(high, delta) > wanted:
        low = high
        high = 2 * high
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        if epsilon(middle, delta) > wanted:
            low = middle
        else:
            high = middle
    return high
