"""Admission: the checks that every row passes before a rule, the plain mean included, sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgen.aggregation.statistics import decisive, statistics_of
from fedgen.contracts import Columns, Rows, Update
from fedgen.device import on_host
from fedgen.errors import FedgenError
from fedgen.parameters import Layout

WEIGHT_LIMIT = 1e9
"""Largest admitted weight: no client holds more samples."""


VARIANCE_SLACK = 1e-6
"""Tolerance below 0 for a variance, as rounding makes honest ones slightly negative."""


@dataclass(frozen=True)
class Limits:
    """norm: longest admitted row, without its statistics.  statistic: largest admitted statistic; of a variance, its
    square root."""

    norm: float
    statistic: float


@dataclass(frozen=True)
class Admission:
    """mask bool[n] of the admitted rows, and the reason of each row that is not, by position."""

    mask: Tensor
    reasons: dict[int, str]

    def without(self, reasons: dict[int, str]) -> Admission:
        """The admission of the rows whose message could be read; reasons: of those that could not, by position."""
        if not reasons:
            return self
        mask = self.mask.clone()
        mask[list(reasons)] = False
        return Admission(mask, self.reasons | reasons)


def admit(norms: Tensor, weights: Tensor, norm_limit: float) -> Admission:
    """Rows of finite length up to norm_limit (inf for none) and of weight in 0 .. 1e9, 0 excluded.

    norms, weights: float64[n].

    >>> admit(torch.tensor([1.0, float("nan")]), torch.ones(2), 10.0).reasons
    {1: 'update is not finite'}
    """
    finite = np.isfinite(norms.numpy())
    short = norms.numpy() <= norm_limit
    weighty = (weights.numpy() > 0) & (weights.numpy() <= WEIGHT_LIMIT)
    mask = finite & short & weighty
    reasons = {}
    for row in np.flatnonzero(~mask).tolist():
        if not finite[row]:
            reasons[row] = "update is not finite"
        elif not short[row]:
            norm, limit = _apart(float(norms[row]), norm_limit)
            reasons[row] = f"norm {norm} is above aggregation.norm_limit {limit}"
        else:
            reasons[row] = f"weight {weights[row]:.3g} is not in 0 .. {WEIGHT_LIMIT:.0e}"
    return Admission(torch.from_numpy(mask), reasons)


def judge(rows: Rows, weights: Tensor, reference: Tensor, layout: Layout, limits: Limits) -> Admission:
    """The admission of rows[n, d], differences from reference[d] or [n, d]: lengths and weights by `admit`, statistics
    by themselves, as the module would hold them."""
    admission = admit(decisive(rows, layout).norms(), weights, limits.norm)
    if not layout.statistics:
        return admission
    changes = statistics_of(rows, layout).double()
    held = reference[..., layout.measured].double()
    refused = refused_statistics(held + changes, layout.of_statistics, limits.statistic)
    return admission.without({row: reason for row, reason in refused.items() if row not in admission.reasons})


def refused_statistics(values: Tensor, layout: Layout, limit: float) -> dict[int, str]:
    """Row -> why its values[n, s] are not valid statistics: not finite, a variance below 0, or above the limit.

    >>> layout = Layout({"running_var": (2,)}, statistics=frozenset({"running_var"}))
    >>> refused_statistics(torch.tensor([[0.0, -1.0], [0.0, 1.0]]), layout, 1e6)
    {0: 'statistic running_var is -1, below 0'}
    """
    reasons: dict[int, str] = {}
    values = on_host(values)
    for name, (columns, _) in layout.columns.items():
        part = values[:, columns]
        variance = name in layout.variances
        if part.shape[1] == 0:
            continue
        low = part.amin(1)
        high = part.amax(1)
        least_of_all, bound = (-VARIANCE_SLACK, limit**2) if variance else (-limit, limit)
        sound = (low >= least_of_all) & (high <= bound) & low.isfinite() & high.isfinite()
        for row in (~sound).nonzero().flatten().tolist():
            least, most = float(low[row]), float(high[row])
            if not np.isfinite([least, most]).all():
                reason = "is not finite"
            elif variance and least < -VARIANCE_SLACK:
                reason = f"is {least:.3g}, below 0"
            else:
                worst = most if most > bound else least
                reason = f"is {worst:.3g}, beyond {bound:.3g} (aggregation.statistics_limit)"
            reasons.setdefault(row, f"statistic {name} {reason}")
    return reasons


def _apart(large: float, small: float) -> tuple[str, str]:
    """Two numbers with enough digits to differ in print, at least 3.

    >>> _apart(0.3501, 0.35), _apart(1e9, 1e6)
    (('0.3501', '0.35'), ('1e+09', '1e+06'))
    """
    pairs = ((f"{large:.{digits}g}", f"{small:.{digits}g}") for digits in range(3, 18))
    return next(pair for pair in pairs if pair[0] != pair[1])


def check_update(update: Update, expects: Layout, clients: int) -> None:
    """Whether a block's update has the form the broadcast asked for: a mistake in a method, not an attack.

    Raises FedgenError that names both sides.
    """
    want = (clients, expects.size)
    got = tuple(update.rows.shape)
    if got != want or update.rows.dtype != expects.dtype:
        raise FedgenError(
            f"training.method: client_update returned rows {got} of {update.rows.dtype}, the broadcast expects "
            f"{want} of {expects.dtype}"
        )
    weights = update.weights
    if tuple(weights.shape) != (clients,) or weights.dtype != torch.float64:
        raise FedgenError(
            f"training.method: client_update returned weights {tuple(weights.shape)} of {weights.dtype}, expected "
            f"{(clients,)} of torch.float64"
        )


def as_sent(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Byzantine values cast to the dtype of the wire: integers are rounded and clamped, NaN becomes 0."""
    if dtype.is_floating_point:
        return rows.to(dtype)
    limits = torch.iinfo(dtype)
    return rows.double().nan_to_num(0).round().clamp(limits.min, limits.max).to(dtype)


@dataclass(frozen=True)
class AsSent:
    """slab -> the slab cast to the dtype of the wire."""

    dtype: torch.dtype

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return as_sent(slab, self.dtype)
