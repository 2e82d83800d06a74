"""The strongest strength: a line search against the rule that is running."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, sqrt

import numpy as np
import torch

from fedgen.aggregation.statistics import aggregated, decisive
from fedgen.attacks.base import Replace
from fedgen.attacks.gram import Along, Geometry
from fedgen.contracts import Rows, SlabFunction, View

LEAST, MOST, POINTS, CUTS = 0.1, 100.0, 16, 8
"""The grid is POINTS strengths from LEAST to MOST, evenly spaced by ratio; CUTS golden sections refine its best."""

Lie = Callable[[float], tuple[float, float]]
"""strength -> (along, across): the Byzantine row is along * mean + across * statistic."""


def strongest(rows: Rows, view: View, lie: Lie, statistic: SlabFunction | None = None) -> float:
    """The strength for which the rule's aggregate is farthest from the honest mean.

    maximise |A(strength) - mean_H|^2 over LEAST .. MOST, A by view.rule with the memory and the f that it will have

    A rule that decides from inner products is asked on n x n numbers, after one pass over the rows; any other
    aggregates the mapped rows for every candidate.
    """
    honest = ~view.byzantine
    rows = decisive(rows, view.context.layout)
    rule, context = view.rule, view.context
    if len(honest) < rule.minimum(view.context.f):
        return 1.0  # the round will be skipped
    gram_weights = rule.gram_weights()
    if gram_weights is not None:
        geometry = Geometry.of(rows, honest, statistic)
        mean = geometry.mean
        other = torch.zeros_like(mean) if statistic is None else geometry.statistic

        def moved(strength: float) -> float:
            along, across = lie(strength)
            told = along * mean + across * other
            coefficients = gram_weights(geometry.sent(told), view.weights, context)
            away = geometry.aggregate(coefficients, told) - mean
            return geometry.inner(away, away)
    else:
        centre = rows.map(Along(honest, 1.0, 0.0)).collect()[0].double()

        def moved(strength: float) -> float:
            sent = rows.map(Replace.of(view, Along(honest, *lie(strength), statistic)))
            aggregate = aggregated(rule, sent, view.weights, context).aggregate
            return float((aggregate.double() - centre).square().sum())

    return maximum(moved)


def maximum(function: Callable[[float], float]) -> float:
    """Where `function` is largest: the best of the grid, refined between its neighbours by golden sections.

    >>> round(maximum(lambda strength: -abs(strength - 3)), 1)
    3.0
    """
    logs = np.linspace(log(LEAST), log(MOST), POINTS).tolist()
    heights = [function(exp(place)) for place in logs]
    best = int(np.argmax(heights))
    low, high = logs[max(best - 1, 0)], logs[min(best + 1, POINTS - 1)]
    tried = dict(zip(logs, heights, strict=True))
    golden = (sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    tried |= {left: function(exp(left)), right: function(exp(right))}
    for _ in range(CUTS - 2):
        if tried[left] >= tried[right]:
            high, right = right, left
            left = high - golden * (high - low)
            tried[left] = function(exp(left))
        else:
            low, left = left, right
            right = low + golden * (high - low)
            tried[right] = function(exp(right))
    return exp(max(tried, key=lambda place: tried[place]))
