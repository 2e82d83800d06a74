"""FoolsGold: clients with similar updates weigh less."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedgen.aggregation.base import GramRule, Weighing
from fedgen.aggregation.normalised_mean import inverse
from fedgen.contracts import Context
from fedgen.parameters import Array
from fedgen.registry import register


@register("rule", "foolsgold")
@dataclass(frozen=True, kw_only=True)
class FoolsGold(GramRule):
    """Mean in which rows weigh less, the more they resemble another; tolerates many sybils but no single attacker.

    s_ij = cosine of g_i and g_j, times m_i / m_j where m_j > m_i, m_i = max_{j != i} s_ij;  a_i = 1 - max_j s_ij,
    scaled to a largest of 1, then logit(a_i) + 0.5, all clipped to 0 .. 1;  aggregate = sum_i a_i g_i / sum_i a_i, the
    mean where every a_i is 0.  Weights are ignored.

    >>> FoolsGold()([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0], [5.0, 5.0]]).coefficients.tolist()
    [0.5, 0.5, 0.0, 0.0]

    Source: C. Fung, C. Yoon, I. Beschastnikh, arXiv 1808.04866 (2020), algorithm 1.  Similar are this round's updates;
    theirs are sums over all rounds of each client.
    """

    def minimum(self, f: int) -> int:
        return 1

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        n = len(gram)
        scale = inverse(np.sqrt(np.diagonal(gram)))
        similar = gram * scale[:, None] * scale[None, :]
        np.fill_diagonal(similar, -np.inf)
        most = similar.max(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            pardoned = similar * np.where(most[None, :] > most[:, None], most[:, None] / most[None, :], 1)
            trust = np.clip(1 - pardoned.max(1), 0, 1) if n > 1 else np.ones(1)
            trust = trust / trust.max() if trust.max() > 0 else np.ones(n)
            trust = np.clip(np.log(trust / (1 - trust)) + 0.5, 0, 1)
        return Weighing(trust / trust.sum() if trust.sum() > 0 else np.full(n, 1 / n))
