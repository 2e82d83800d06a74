"""Variance correction: averaging must not shrink the weights that it averages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from math import log1p
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedgen.aggregation.base import RuleWrapper
from fedgen.aggregation.statistics import apply_rule, statistics_of, total_variances
from fedgen.aggregation.variances import RowMoments, mix_running_variances, rescale, variances
from fedgen.contracts import Aggregation, BatchedMerge, Context, Diagnostics, Inboxes, Mixed, Rows, Rule
from fedgen.parameters import Array, Layout, Tensors
from fedgen.registry import register
from fedgen.topology.graph import Matrix

DRIFT, VARIANCE, FACTOR = "drift", "variance", "factor"
LEAST = 1e-12
"""A variance below this part of its target is that of a constant tensor, which is left alone."""


@register("rule_wrapper", "variance_correction")
@dataclass(frozen=True, kw_only=True)
class VarianceCorrection(RuleWrapper):
    """Gives every weight of a merged model back the variance that averaging took from it.

    M = own + share * aggregate of the inner rule;  per tensor: v <- (v - mean(v)) * factor + mean(v),
    factor = sqrt(target / Var(M)), variances over the whole tensor;  biases stay as they are

    policy "paper": target = mean of the received models' variances, at every merge.

    policy "auto": target = median of the variances of received and own models, at most `limit` times away from the own
    one, so that no minority of Byzantine peers sets it.  Tensors that a normalisation follows are left alone.  A factor
    is skipped while the product of those skipped stays within 1 +- `tolerance`; then all of them are made good at once.
    Running variances follow the law of total variance.

    Source: Y. Tian et al., Vanishing variance problem in fully decentralized neural-network systems, arXiv 2404.04616
    (2024), algorithm 3.  "auto" is our own.
    """

    inner: Rule
    policy: Annotated[Literal["auto", "paper"], Field(description="where it helps, or as the paper has it")] = "auto"
    tolerance: Annotated[float, Field(ge=0, lt=1, description="auto: change of scale that may stay uncorrected")] = 0.02
    limit: Annotated[float, Field(gt=1, description="auto: largest ratio of target and own variance")] = 4.0
    merges_statistics: ClassVar[bool] = True
    host: ClassVar[bool] = True

    def batched(self) -> BatchedMerge | None:
        inner = self.inner.batched()
        return None if inner is None else BatchedMerge(partial(_observe, inner), partial(self._merge, inner))

    def _merge(self, inner: BatchedMerge, inboxes: Inboxes) -> Mixed:
        mixed = inner.merge(inboxes)
        layout, weights = inboxes.layout, inboxes.weights
        own = inboxes.own_seen[VARIANCE].numpy()
        sent = inboxes.seen[VARIANCE].numpy()
        drift = _drift(inboxes.memory, own)
        targets = np.empty_like(own)
        for places, senders in _inboxes_by_size(weights):
            targets[places] = self._target(sent[senders], own[places])
        told = self._correct(mixed.models, own, targets, drift, layout)
        if self.policy == "auto" and layout.running:
            mix_running_variances(mixed.models, inboxes.own, inboxes.sent, weights, inboxes.share, layout)
        memory = {**mixed.memory, DRIFT: torch.from_numpy(told.pop(DRIFT))}
        return Mixed(mixed.models, memory, mixed.diagnostics | Diagnostics(by_weight=_tensors(told)))

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        inner = apply_rule(self.inner, rows, weights, context)
        if context.share == 0:
            return inner
        reference = context.reference[None]
        layout = context.layout
        model = reference.add(inner.aggregate, alpha=context.share)
        received = RowMoments(context.reference, layout).variances(rows)
        own = variances(reference, layout)
        memory = {name: value[None] for name, value in context.memory.items() if name == DRIFT}
        told = self._correct(model, own, self._target(received[None], own), _drift(memory, own), layout)
        if self.policy == "auto" and layout.running:
            own_statistics = context.reference[layout.measured]
            sent = statistics_of(rows, layout) + own_statistics
            total_variances(
                model[0, layout.measured], own_statistics, sent, inner.coefficients, context.share, layout.of_statistics
            )
        first = {name: torch.from_numpy(value[0]) for name, value in told.items()}
        return replace(
            inner,
            aggregate=(model - reference)[0] / context.share,
            coefficients=None,
            memory={**inner.memory, DRIFT: first.pop(DRIFT)},
            diagnostics=inner.diagnostics | Diagnostics(by_weight=first),
        )

    def _target(self, received: Array, own: Array) -> Array:
        """[k, t] from the variances received[k, n, t] and own[k, t]."""
        if received.shape[1] == 0:
            return own
        if self.policy == "paper":
            mean: Array = received.mean(1)
            return mean
        middle: Array = np.median(np.concatenate([received, own[:, None]], axis=1), axis=1)
        return middle.clip(own / self.limit, own * self.limit)

    def _correct(self, models: Tensor, own: Array, target: Array, drift: Array, layout: Layout) -> dict[str, Array]:
        """Rescale models[k, d] in place; returns the factors and the drift that is left, both [k, t]."""
        before = variances(models, layout)
        alive = np.isfinite(before) & np.isfinite(target) & (before > LEAST * target) & (target > 0)
        ratio = np.divide(target, before, out=np.ones_like(before), where=alive)
        pending = 0.5 * np.log(ratio)
        if self.policy == "auto":
            pending += drift
            pending[:, [name in layout.scale_free for name in layout.weights]] = 0
        skipped = np.abs(pending) <= (log1p(self.tolerance) if self.policy == "auto" else 0)
        factor = np.where(skipped, 1.0, np.exp(pending))
        rescale(models, factor, layout)
        return {FACTOR: factor, DRIFT: np.where(skipped, pending, 0.0)}


def _observe(inner: BatchedMerge, models: Tensor, layout: Layout) -> Tensors:
    return {**inner.observe(models, layout), VARIANCE: torch.from_numpy(variances(models, layout))}


def _drift(memory: Tensors, like: Array) -> Array:
    return memory[DRIFT].numpy() if DRIFT in memory else np.zeros_like(like)


def _tensors(arrays: dict[str, Array]) -> Tensors:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _inboxes_by_size(weights: Matrix) -> list[tuple[Array, Array]]:
    """(places int64[j] of inboxes of one size n, their senders int64[j, n]) of csr weights[k, N], size by size."""
    sizes = np.diff(weights.indptr)
    groups = []
    for size in np.unique(sizes):
        places = np.flatnonzero(sizes == size)
        groups.append((places, weights.indices[weights.indptr[places][:, None] + np.arange(size)]))
    return groups
