"""Fang's directed deviations: against the model's step, as strong as Krum or a trimmed mean lets pass."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedgen.aggregation.base import squared_distances
from fedgen.aggregation.krum import by_score
from fedgen.aggregation.statistics import decisive
from fedgen.attacks.base import BaseAttack, Draws, Replace
from fedgen.attacks.gram import Along, Geometry, Sign, honest_mean
from fedgen.contracts import Columns, Rows, View
from fedgen.parameters import Tensors
from fedgen.registry import register


@register("attack", "fang_krum")
@dataclass(frozen=True, kw_only=True)
class FangKrum(BaseAttack):
    """Sends the opposite sign of the honest mean, in the largest size that Krum still chooses.

    g_i <- -lambda * sign(mean) for all c Byzantine i;  lambda is halved from the paper's bound until Krum takes it, or
    until it is below `least`:

    lambda <= sqrt(min_j sum of the n - c - 2 least |g_j - g_k|^2 over honest k / ((n - 2 c - 1) d))
              + max_j |g_j| / sqrt(d)

    All distances come from one extended Gram matrix.  Without honest rows nothing is changed.

    >>> FangKrum()([[-1.0], [1.0], [9.0], [11.0], [13.0], [0.0], [0.0]], byzantine=[5, 6])[5]
    tensor([-0.6088])

    Source: M. Fang et al., arXiv 1911.11815 (2020), "attacking Krum", full knowledge.  Rows are differences from the
    received model here, so w_Re is 0; all Byzantine clients send the same row; in the paper the others differ slightly.
    """

    least: Annotated[float, Field(gt=0, description="smallest lambda that is tried")] = 1e-5
    omniscient: ClassVar[bool] = True

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        honest = ~view.byzantine
        if not honest.any():
            return rows, view.weights, view.memory
        sign = Sign(honest)
        size = self._size(Geometry.of(decisive(rows, view.context.layout), honest, sign), rows.size)
        return rows.map(Replace.of(view, Along(honest, 0.0, -size, sign))), view.weights, view.memory

    def _size(self, geometry: Geometry, d: int) -> float:
        """lambda."""
        honest = geometry.honest
        byzantine = int((~honest).sum())
        size = _bound(geometry, d, byzantine)
        while size >= self.least:
            gram = geometry.sent(-size * geometry.statistic)
            if byzantine and not honest[by_score(squared_distances(gram.numpy()), byzantine)[0]]:
                return size
            size /= 2
        return size


def _bound(geometry: Geometry, d: int, byzantine: int) -> float:
    honest = geometry.honest
    n = len(geometry.honest)
    nearest = geometry.distances().sort(1).values[:, 1 : 1 + max(n - byzantine - 2, 1)].sum(1)
    spread = float(nearest.min()) if len(nearest) else 0.0
    longest = float(geometry.gram.diagonal()[:n][honest].max())
    return sqrt(spread / (max(n - 2 * byzantine - 1, 1) * d)) + sqrt(max(longest, 0.0) / d)


@register("attack", "fang_trimmed_mean")
@dataclass(frozen=True, kw_only=True)
class FangTrimmedMean(BaseAttack):
    """Sends, in every coordinate, a little more than the honest extreme on the side away from the honest mean's sign.

    where the honest mean rises (sign 1): g_ij drawn from [min / b, min] if min > 0, else [b * min, min];
    where it falls (sign -1): from [max, b * max] if max > 0, else [max, max / b];
    min and max over the honest rows of column j, drawn by client i, round and column j;  sign 0: 0

    Without honest rows nothing is changed.

    >>> sent = FangTrimmedMean()([[1.0, -4.0], [2.0, -2.0], [0.0, 0.0]], byzantine=[2])[2]
    >>> bool(0.5 <= sent[0] <= 1), bool(-2 <= sent[1] <= -1)
    (True, True)

    Source: M. Fang et al., arXiv 1911.11815 (2020), "attacking trimmed mean", full knowledge; it serves against the
    median too.  The paper's attack acts on models, ours on differences from the received model, as in later work.
    """

    b: Annotated[float, Field(gt=1, description="how far beyond the extreme, as a factor")] = 2.0
    omniscient: ClassVar[bool] = True

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        honest = ~view.byzantine
        if not honest.any():
            return rows, view.weights, view.memory
        lie = Beyond(view.byzantine, self.b, Draws.of(view, "fang_trimmed_mean"))
        return rows.map(Replace.of(view, lie)), view.weights, view.memory


@dataclass(frozen=True)
class Beyond:
    """slab[n, c] -> [n, c]: the Byzantine rows beyond the honest extremes."""

    byzantine: Tensor
    b: float
    draws: Draws

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        byzantine = self.byzantine.to(slab.device)
        honest = slab[~byzantine]
        sign = honest_mean(slab, ~self.byzantine)[0].sign()
        extreme = torch.where(sign > 0, honest.amin(0), honest.amax(0))
        stretch = torch.where(extreme * sign > 0, 1 / self.b, self.b)
        reach = (stretch - 1) * extreme * self.draws.uniform(columns).to(slab)
        sent = torch.zeros_like(slab)
        sent[byzantine] = torch.where(sign == 0, 0.0, extreme + reach)
        return sent
