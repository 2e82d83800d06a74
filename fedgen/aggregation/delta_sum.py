"""Delta-Sum: models before training are averaged, changes by training are summed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedgen.aggregation.base import RuleWrapper
from fedgen.aggregation.statistics import apply_rule
from fedgen.contracts import Aggregation, BatchedMerge, Context, Inboxes, Mixed, Rows, Rule
from fedgen.parameters import Array, Layout
from fedgen.registry import register

DELTA = "delta"
"""Name of the columns behind a model's that say what its last training changed."""


def with_delta(layout: Layout) -> Layout:
    """The layout of rows that carry, behind the model, what the last training changed of its parameters.

    >>> with_delta(Layout({"weight": (2, 3)})).shapes
    {'weight': (2, 3), 'delta': (6,)}
    """
    return layout.extended(**{DELTA: (layout.parameters.stop,)})


@register("rule_wrapper", "delta_sum")
@dataclass(frozen=True, kw_only=True)
class DeltaSum(RuleWrapper):
    """Averages the peers' models before training and sums the changes that training made.

    B = M - D;  merged = (1 - share) B_own + share * A(B) + scale * (D_own + k A(D)),  A the inner rule over the k
    messages [M, D] of an inbox, so that k A(D) is their sum, or a robust one

    Averaging makes every step shorter by the number of neighbours; adding up does not.  The sum moves a model by
    scale * (k + 1) times what averaging would: many neighbours, many local steps or a high learning rate want a smaller
    scale.  Statistics are merged, not summed.  A message is twice as long.  Rows without
    deltas are left to the inner rule.

    Source: T. Goethals et al., Delta Sum Learning, arXiv 2512.01549 (2025), who raise the scale over time; here it is
    constant.
    """

    inner: Rule
    scale: Annotated[float, Field(gt=0, description="part of the sum of all changes that is applied")] = 0.25
    merges_statistics: ClassVar[bool] = True
    host: ClassVar[bool] = True

    @property
    def sends_change(self) -> bool:
        return True

    def batched(self) -> BatchedMerge | None:
        inner = self.inner.batched()
        return None if inner is None else BatchedMerge(inner.observe, partial(self._merge, inner))

    def _merge(self, inner: BatchedMerge, inboxes: Inboxes) -> Mixed:
        mixed = inner.merge(inboxes)
        received = np.diff(inboxes.weights.indptr).astype(np.float64)
        self._sum(mixed.models, inboxes.own, received, inboxes.share, inboxes.layout)
        return mixed

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        inner = apply_rule(self.inner, rows, weights, context)
        if DELTA not in context.layout.shapes or context.share == 0:
            return inner
        own = context.reference[None]
        share = np.array([context.share])
        merged = own.add(inner.aggregate, alpha=context.share)
        self._sum(merged, own, np.array([float(len(weights))]), share, context.layout)
        return replace(inner, aggregate=(merged - own)[0] / context.share, coefficients=None)

    def _sum(self, merged: Tensor, own: Tensor, received: Array, share: Array, layout: Layout) -> None:
        """The models in merged[k, d] = own + share * (A - own), in place; received[k]: the messages of each inbox."""
        if DELTA not in layout.shapes:
            return
        behind = layout.columns[DELTA][0]
        mixed, delta = merged[:, behind], own[:, behind]
        times = np.divide(received, share, out=np.zeros_like(share), where=share > 0)
        # A(D) = D + (mixed - D) / share, and what is wanted is D + received * A(D).
        of_own, of_mixed = (torch.from_numpy(each[:, None]).to(own.dtype) for each in (1 + received - times, times))
        step = (self.scale * (of_own * delta + of_mixed * mixed)).sub_(mixed)
        step[torch.from_numpy(received == 0)] = 0
        merged[:, : step.shape[1]].add_(step)
