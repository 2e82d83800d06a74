"""Rules around a rule that first mix the rows: nearest-neighbour mixing, bucketing, norm clipping."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedgen.aggregation.base import GramRule, RuleWrapper, Weighing, finite_gram, squared_distances
from fedgen.contracts import Aggregation, Context, GramWeights, Rows, Rule
from fedgen.parameters import Array
from fedgen.registry import register
from fedgen.rows import Combine


class Mixing(RuleWrapper, GramRule):
    """k mixed rows A g instead of the n rows g, then the inner rule: around a Gram rule, on A K A^T alone."""

    inner: Rule

    def gram_weights(self) -> GramWeights | None:
        return self.coefficients if self.inner.gram_weights() else None

    @abstractmethod
    def mixing(self, gram: Array, context: Context) -> Array:
        """A float64[k, n]."""

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        assert isinstance(self.inner, GramRule)
        mixing = self.mixing(gram, context)
        inner = self.inner.weigh(mixing @ gram @ mixing.T, np.ones(len(mixing)), self.inside(mixing, context))
        by_row = inner.by_row if _alone(mixing) else {}
        return Weighing(mixing.T @ inner.coefficients, by_row)

    def inside(self, mixing: Array, context: Context) -> Context:
        """The context of the mixed rows."""
        return context

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        if self.gram_weights():
            return super().aggregate(rows, weights, context)
        mixing = self.mixing(finite_gram(rows), context)
        mixed = rows.map(Combine(torch.from_numpy(mixing)))
        shares = torch.ones(len(mixing), dtype=torch.float64)
        inner = self.inner.aggregate(mixed, shares, self.inside(mixing, context))
        told = inner.diagnostics if _alone(mixing) else replace(inner.diagnostics, by_row={})
        if inner.coefficients is None:
            return replace(inner, diagnostics=told)
        return replace(inner, coefficients=torch.from_numpy(mixing.T) @ inner.coefficients, diagnostics=told)


@register("rule_wrapper", "nnm")
@dataclass(frozen=True, kw_only=True)
class NearestNeighbourMixing(Mixing):
    """Replaces every row by the mean of its n - f nearest, itself among them.

    g_i <- mean of the n - f rows g_j with the least |g_i - g_j|^2;  n >= 2 f + 1

    Source: Y. Allouah et al., Fixing by Mixing, arXiv 2302.01772 (2023), algorithm 2.
    """

    inner: Rule

    def minimum(self, f: int) -> int:
        return max(2 * f + 1, self.inner.minimum(f))

    def mixing(self, gram: Array, context: Context) -> Array:
        n = len(gram)
        nearest = np.argsort(squared_distances(gram), axis=1, kind="stable")[:, : n - context.f]
        mixing = np.zeros((n, n))
        np.put_along_axis(mixing, nearest, 1 / nearest.shape[1], axis=1)
        return mixing


@register("rule_wrapper", "bucketing")
@dataclass(frozen=True, kw_only=True)
class Bucketing(Mixing):
    """Shuffles the rows and passes the means of buckets of `size` rows to the inner rule.

    g_k <- mean of the rows of bucket k, of ceil(n / size) buckets, up to f of which contain a Byzantine row;
    f * size < n / 2

    Source: S. P. Karimireddy et al., arXiv 2006.09365 (2022), algorithm 1.  The shuffle is drawn from the experiment's
    streams, by the clients' numbers and the round.
    """

    inner: Rule
    size: Annotated[int, Field(ge=1, description="rows in a bucket")] = 2

    def minimum(self, f: int) -> int:
        return max(2 * f * self.size + 1, self.size * (self.inner.minimum(f) - 1) + 1)

    def mixing(self, gram: Array, context: Context) -> Array:
        keys = context.streams.words("bucketing", context.round, context.clients, 1)[:, 0]
        order = keys.argsort(kind="stable")
        buckets = np.split(order, range(self.size, len(order), self.size))
        mixing = np.zeros((len(buckets), len(order)))
        for place, bucket in enumerate(buckets):
            mixing[place, bucket] = 1 / len(bucket)
        return mixing

    def inside(self, mixing: Array, context: Context) -> Context:
        return replace(context, clients=torch.arange(len(mixing)))


@register("rule_wrapper", "clip")
@dataclass(frozen=True, kw_only=True)
class StaticClipping(Mixing):
    """Shortens every row to a radius.

    g_i <- g_i min(1, radius / |g_i|)
    """

    inner: Rule
    radius: Annotated[float, Field(gt=0, description="longest row that stays as it is")] = 1.0

    def mixing(self, gram: Array, context: Context) -> Array:
        return _shortened(np.sqrt(np.diagonal(gram)), self.radius)


@register("rule_wrapper", "arc")
@dataclass(frozen=True, kw_only=True)
class AdaptiveClipping(Mixing):
    """Shortens the k longest rows to the next longest: adaptive robust clipping.

    k = floor(2 f (n - f) / n);  g_i <- g_i min(1, r / |g_i|), r = the (k + 1)-th largest |g_j|;  n >= 2 f + 1

    Source: Y. Allouah et al., Adaptive Gradient Clipping for Robust Federated Learning, arXiv 2405.14432 (2024),
    algorithm 2.
    """

    inner: Rule

    def mixing(self, gram: Array, context: Context) -> Array:
        lengths = np.sqrt(np.diagonal(gram))
        n = len(gram)
        clipped = 2 * context.f * (n - context.f) // n
        return _shortened(lengths, float(np.sort(lengths)[n - 1 - clipped]))


def _alone(mixing: Array) -> bool:
    """Whether every mixed row is a multiple of one row, so that diagnostics by row remain valid."""
    return bool(np.count_nonzero(mixing) <= len(mixing))


def _shortened(lengths: Array, radius: float) -> Array:
    """diag(min(1, radius / lengths))."""
    return np.diag(np.minimum(1, np.divide(radius, lengths, out=np.ones_like(lengths), where=lengths > 0)))
