"""An accountant of Renyi differential privacy for the Gaussian mechanism, with and without Poisson sampling."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, lgamma, log, log1p

ORDERS: tuple[float, ...] = (
    *(1 + x / 10 for x in range(1, 100)),
    *map(float, range(11, 65)),
    *(128.0, 256.0, 512.0, 1024.0),
)
"""Orders at which a mechanism is accounted for; the best of them gives epsilon."""


def rdp(multiplier: float, order: float, sampling: float = 1.0) -> float:
    """Renyi divergence of order alpha between releases with and without one sample: noise multiplier * sensitivity.

    sampling = 1: alpha / (2 multiplier^2)
    sampling = q: log(sum_k binom(alpha, k) (1 - q)^(alpha - k) q^k exp((k^2 - k) / (2 multiplier^2))) / (alpha - 1),
    for whole alpha; infinity for others, which only leaves them out of the choice.

    Source: I. Mironov, Renyi differential privacy, arXiv 1702.07476 (2017), corollary 3; I. Mironov, K. Talwar, L.
    Zhang, arXiv 1908.10530 (2019), section 3.3.
    """
    if multiplier == 0:
        return inf
    if sampling == 1:
        return order / (2 * multiplier**2)
    if sampling == 0:
        return 0.0
    if order != int(order) or order < 2:
        return inf
    alpha = int(order)
    terms = [
        _log_binomial(alpha, k) + (alpha - k) * log1p(-sampling) + k * log(sampling) + (k * k - k) / (2 * multiplier**2)
        for k in range(alpha + 1)
    ]
    largest = max(terms)
    return (largest + log(sum(exp(term - largest) for term in terms))) / (alpha - 1)


def epsilon(
    multiplier: float, delta: float, sampling: float = 1.0, releases: int = 1, orders: Sequence[float] = ORDERS
) -> float:
    """The epsilon of (epsilon, delta)-differential privacy after `releases` with Gaussian noise.

    multiplier: standard deviation of the noise over the largest change that one sample makes (Euclidean length).
    sampling: chance of each sample to be in a release.

    >>> round(epsilon(1.0, delta=1e-5), 2), round(epsilon(1.0, delta=1e-5, sampling=0.01, releases=1000), 2)
    (4.73, 2.11)

    Source of the conversion: C. Canonne, G. Kamath, T. Steinke, arXiv 2004.00010 (2020), proposition 12.
    """
    best = inf
    for order in orders:
        cost = releases * rdp(multiplier, order, sampling)
        if cost < inf:
            best = min(best, cost + log1p(-1 / order) - log(delta * order) / (order - 1))
    return max(best, 0.0)


def multiplier_for(wanted: float, delta: float, sampling: float = 1.0, releases: int = 1) -> float:
    """The least noise multiplier with an epsilon of at most `wanted`, by bisection to six digits.

    >>> round(multiplier_for(8.0, delta=1e-5), 3)
    0.638
    """
    low, high = 0.0, 1.0
    while epsilon(high, delta, sampling, releases) > wanted:
        low, high = high, 2 * high
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        if epsilon(middle, delta, sampling, releases) > wanted:
            low = middle
        else:
            high = middle
    return high


def _log_binomial(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
