"""FLTrust: updates are weighted by their agreement with an update of the server."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedgen.aggregation.base import GramRule, Weighing
from fedgen.aggregation.normalised_mean import inverse
from fedgen.contracts import Aggregation, Context, GramWeights, Rows
from fedgen.parameters import Array
from fedgen.registry import register
from fedgen.rows import Append


@register("rule", "fltrust")
@dataclass(frozen=True, kw_only=True)
class FLTrust(GramRule):
    """Mean of the rows' directions, by their cosine with the server's own update, as long as that. Weights are ignored.

    With g_0 = context.root, which the server trained on `root_samples` samples of its own, t_i = max(0, cos(g_i, g_0))
    is the value of row i;  aggregate = |g_0| sum_i t_i g_i / |g_i| / sum_i t_i, zeros where no row agrees with g_0 or
    g_0 is not finite.  Any f < n: what it stands on is the root data.

    >>> FLTrust()([[2.0, 0.0], [0.0, 5.0], [-1e9, 0.0]], f=1, root=torch.tensor([1.0, 0.0])).aggregate.tolist()
    [1.0, 0.0]

    Source: X. Cao et al., FLTrust, arXiv 2012.13995 (2021), algorithm 2.  The root samples are drawn from those that
    data.validation holds back at the server.
    """

    root_samples: Annotated[int, Field(ge=1, description="held-back samples that the server trains on")] = 100

    def gram_weights(self) -> GramWeights | None:
        """The root's inner products are not among the rows'."""
        return None

    def minimum(self, f: int) -> int:
        return f + 1

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        lengths = np.sqrt(np.diagonal(gram))
        scale = inverse(lengths)
        trust = np.maximum(gram[-1, :-1] * scale[:-1] * scale[-1], 0)
        shares = trust / trust.sum() if trust.any() else trust
        return Weighing(np.append(lengths[-1] * shares * scale[:-1], 0.0), {"value": trust})

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        if context.root is None:
            raise ValueError(f"{type(self).__name__}: root must be the server's own update, [d] numbers; got none")
        root = context.root if context.root.isfinite().all() else torch.zeros_like(context.root)
        among = super().aggregate(rows.map(Append(root)), weights, context)
        assert among.coefficients is not None
        return replace(among, coefficients=among.coefficients[:-1])
