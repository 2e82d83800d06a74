"""Centred clipping: from a centre, no row may pull farther than a radius."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedgen.aggregation.base import GramRule, Weighing, squared_distances
from fedgen.aggregation.geometric_median import weiszfeld
from fedgen.contracts import Aggregation, Context, GramWeights, Rows
from fedgen.parameters import Array
from fedgen.registry import register
from fedgen.rows import Append

Centre = Annotated[
    Literal["geometric_median", "last"], Field(description="where it starts: of these rows, or the last aggregate")
]


@register("rule", "centred_clipping")
@dataclass(frozen=True, kw_only=True)
class CentredClipping(GramRule):
    """Moves a centre by the rows' mean pull, each no longer than a radius. Weights are ignored.

    v <- v + 1/n sum_i (g_i - v) min(1, r / |g_i - v|), `iterations` times, r = `radius`, or the median |g_i - v| where
    not given;  aggregate = v;  n >= 2 f + 1

    >>> rule = CentredClipping()
    >>> rule([[0.0], [1.0], [2.0], [3.0], [1e9]], f=1).aggregate.round(decimals=2).tolist()
    [2.0]

    Source: S. P. Karimireddy, L. He, M. Jaggi, arXiv 2012.10333 (2021), algorithm 2, whose centre is the last
    aggregate, 0 in the first round, and whose radius is a number.  By default the centre is the geometric median and
    the radius follows the rows, so that there is nothing to tune.
    """

    centre: Centre = "geometric_median"
    radius: Annotated[float | None, Field(gt=0, description="longest pull; the median one where not given")] = None
    iterations: Annotated[int, Field(ge=1, description="steps of the centre")] = 1

    def gram_weights(self) -> GramWeights | None:
        """The last centre's inner products are not among the rows'."""
        return None if self.centre == "last" else super().gram_weights()

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        distances = squared_distances(gram)
        n = len(gram)
        if self.centre == "last":  # the row behind the clients'
            return Weighing(self._moved(distances, np.eye(n)[-1], n - 1))
        return Weighing(self._moved(distances, weiszfeld(distances), n))

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        if self.centre != "last":
            return super().aggregate(rows, weights, context)
        last = context.memory.get("last", torch.zeros(rows.size))
        among = super().aggregate(rows.map(Append(last)), weights, context)
        return replace(among, coefficients=None, memory={"last": among.aggregate})

    def _moved(self, distances: Array, centre: Array, pulling: int) -> Array:
        """Coefficients of the centre after its steps; the first `pulling` rows pull."""
        for _ in range(self.iterations):
            mixed = distances @ centre
            lengths = np.sqrt(np.maximum(mixed - 0.5 * (centre @ mixed), 0))[:pulling]
            radius = np.median(lengths) if self.radius is None else self.radius
            shares = np.minimum(1, np.divide(radius, lengths, out=np.ones(pulling), where=lengths > 0)) / pulling
            centre = centre * (1 - shares.sum())
            centre[:pulling] += shares
        return centre
