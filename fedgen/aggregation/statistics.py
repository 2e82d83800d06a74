"""A rule decides by parameters alone; statistics that modules measure follow what it decides."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedgen.contracts import Aggregation, Columns, Context, Rows, Rule
from fedgen.device import HOST, on_host
from fedgen.parameters import Layout
from fedgen.rows import inside


def apply_rule(rule: Rule, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
    """What the rule makes of rows[n, d], the statistics among their columns included.

    The rule sees zeros in their place, so that they decide nothing.  They become the rows' mean with the rule's
    coefficients, negative ones as 0 and divided by their sum; under a rule without coefficients, or where none is above
    0, see `merged`.
    """
    layout = context.layout
    if not layout.statistics or rule.merges_statistics:
        return aggregated(rule, rows, weights, context)
    decided = aggregated(rule, decisive(rows, layout), weights, _without_statistics(context))
    aggregate = decided.aggregate.clone()
    aggregate[layout.measured] = merged(statistics_of(rows, layout), decided.coefficients).to(aggregate)
    return replace(decided, aggregate=aggregate)


def aggregated(rule: Rule, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
    """What the rule itself makes of the rows; one of the host gets them there, and its aggregate goes back."""
    device = context.reference.device
    if not rule.host or device == HOST:
        return rule.aggregate(rows, weights, context)
    known = replace(
        context,
        reference=on_host(context.reference),
        memory={name: on_host(value) for name, value in context.memory.items()},
        root=None if context.root is None else on_host(context.root),
    )
    made = rule.aggregate(rows.map(to_host), weights, known)
    return replace(made, aggregate=made.aggregate.to(device))


def to_host(slab: Tensor, columns: Columns) -> Tensor:
    """The slab on the host."""
    return on_host(slab)


def decisive(rows: Rows, layout: Layout) -> Rows:
    """The rows with zeros for statistics: what rules decide by, and what lengths and distances are of."""
    return rows.map(Blank(layout.measured)) if layout.statistics else rows


def statistics_of(rows: Rows, layout: Layout) -> Tensor:
    """[n, s]: the columns of the statistics."""
    return rows.map(Only(layout.measured)).collect()


def merged(values: Tensor, coefficients: Tensor | None) -> Tensor:
    """float64[s] on the host, of values[n, s]: their mean with coefficients[n], the coordinate-wise median without any.

    Negative coefficients count as 0, the others are divided by their sum; where that is 0, nothing is trusted: zeros.

    >>> merged(torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([0.5, 1.5, -1.0])).tolist()
    [2.5]
    >>> merged(torch.tensor([[1.0], [3.0], [9.0]]), None).tolist()
    [3.0]
    """
    wide = on_host(values).double()
    if coefficients is None:
        return torch.from_numpy(np.median(wide.numpy(), axis=0))
    shares = coefficients.double().clamp_min(0)
    return shares @ wide / shares.sum() if bool(shares.any()) else torch.zeros_like(wide[0])


def total_variances(
    mixed: Tensor, own: Tensor, sent: Tensor, coefficients: Tensor | None, share: float, layout: Layout
) -> None:
    """Running variances in the statistics mixed[s], in place, as those of the mixture of what every model has seen.

    var <- (1 - share) (var_own + (mean_own - mean)^2) + share * A(var_j + (mean_j - mean)^2), mean that of mixed[s], A
    as in `merged` of the coefficients; own[s], sent[n, s]; layout of statistics alone
    """
    for variance, mean in layout.running.items():
        place, about = layout.columns[variance][0], layout.columns[mean][0]
        seen = [each[..., place].double() + (each[..., about] - mixed[about]).double() ** 2 for each in (own, sent)]
        mixed[place] = ((1 - share) * seen[0] + share * merged(seen[1], coefficients)).to(mixed.dtype)


def _without_statistics(context: Context) -> Context:
    """For a rule that trusts an update of the holder's own: that one's statistics decide nothing either."""
    if context.root is None:
        return context
    root = context.root.clone()
    root[context.layout.measured] = 0
    return replace(context, root=root)


@dataclass(frozen=True)
class Blank:
    """slab[n, c] -> the slab with zeros in some columns of the row."""

    part: Columns

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        here = inside(self.part, columns)
        if here.start == here.stop:
            return slab
        blank = slab.clone()
        blank[:, here] = 0
        return blank


@dataclass(frozen=True)
class Only:
    """slab[n, c] -> [n, k]: some columns of the row, where the slab has them."""

    part: Columns

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return slab[:, inside(self.part, columns)]
