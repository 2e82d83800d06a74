"""What rules have in common: a bound, a call on plain arrays, and the way from a Gram matrix to an aggregate."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fedgen.aggregation.statistics import apply_rule
from fedgen.contracts import Aggregation, Context, Diagnostics, GramWeights, Occasion, Rows, Rule
from fedgen.exhibits import Exhibit
from fedgen.mistakes import validated
from fedgen.parameters import Array, Layout, Tensors
from fedgen.registry import parameters
from fedgen.rows import Combine, LocalRows


class BaseRule(Rule):
    """A rule that tolerates fewer Byzantine rows than honest ones, unless a subclass says otherwise.

    Raises SettingError for parameters of a wrong type or out of range.
    """

    def __post_init__(self) -> None:
        model = parameters(type(self))
        given = vars(self)
        validated(model, {name: given[name] for name in model.model_fields}, of=type(self).__name__)

    def minimum(self, f: int) -> int:
        return 2 * f + 1

    def __call__(
        self,
        rows: ArrayLike | Tensor,
        *,
        f: int = 0,
        weights: ArrayLike | Tensor | None = None,
        memory: Tensors | None = None,
        root: ArrayLike | Tensor | None = None,
        layout: Layout | None = None,
    ) -> Aggregation:
        """The aggregate of rows[n, d], a torch tensor or what numpy makes an array of, of which f may be Byzantine.

        weights[n]: 1 each unless given.  memory: what an earlier call returned.  root[d]: a trusted update, for rules
        that use one.  layout: of the rows, where some of their columns are statistics.

        Raises ValueError for rows that are no matrix of finite floating-point numbers, or fewer than `minimum(f)`.
        """
        data = rows.detach() if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))
        _check(type(self).__name__, data, f, self.minimum(f))
        n, d = data.shape
        shares = _shares(weights, n)
        own = None if root is None else torch.as_tensor(root).to(data)
        if own is not None and own.shape != (d,):
            raise ValueError(f"{type(self).__name__}: root must be [{d}] numbers, as a row; got {tuple(own.shape)}")
        layout = layout or Layout({"row": (d,)}, data.dtype)
        context = Context(torch.zeros(d, device=data.device), layout, torch.arange(n), f, memory or {}, root=own)
        result = apply_rule(self, LocalRows(data), shares, context)
        if not result.aggregate.isfinite().all():
            refuse_broken(data.isfinite().all(1).numpy(force=True))
        return result


class RuleWrapper(BaseRule):
    """A rule around a rule: breakdown point, root samples and messages are those of the inner rule by default."""

    inner: Rule

    @property
    def root_samples(self) -> int:
        return self.inner.root_samples

    @property
    def host(self) -> bool:
        return self.inner.host

    @property
    def sends_change(self) -> bool:
        return self.inner.sends_change

    def minimum(self, f: int) -> int:
        return self.inner.minimum(f)

    def exhibits(self, memory: Tensors, occasion: Occasion) -> Sequence[Exhibit]:
        return self.inner.exhibits(memory, occasion)


def _shares(weights: ArrayLike | Tensor | None, n: int) -> Tensor:
    if weights is None:
        return torch.ones(n, dtype=torch.float64)
    shares = torch.as_tensor(weights).double().cpu()
    if shares.shape != (n,) or not (shares >= 0).all() or not 0 < float(shares.sum()) < float("inf"):
        raise ValueError(f"weights must be {n} numbers from 0 on, one a row and not all 0; got {weights}")
    return shares


def _check(name: str, rows: Tensor, f: int, needed: int) -> None:
    if rows.dim() != 2 or not rows.dtype.is_floating_point or 0 in rows.shape:
        raise ValueError(f"{name}: rows must be [n, d] floating-point numbers, got {tuple(rows.shape)} of {rows.dtype}")
    if f % 1 or f < 0:
        raise ValueError(f"{name}: f = {f} is not a number of Byzantine rows; expected a whole number from 0 on")
    if len(rows) < needed:
        raise ValueError(f"{name}: {len(rows)} rows cannot withstand f = {f}; it takes at least {needed}")


def refuse_broken(finite: Array) -> None:
    """Raises ValueError where finite bool[n] is not all true; in a federation, admission has rejected such rows."""
    broken = np.flatnonzero(~finite).tolist()
    if broken:
        raise ValueError(f"rows {broken} are not finite; leave them out and lower f by {len(broken)}")


@dataclass(frozen=True)
class Weighing:
    """What a Gram rule makes of a Gram matrix: aggregate = coefficients[n] @ rows; by_row {name: [n]} for the log."""

    coefficients: Array
    by_row: Mapping[str, Array] = field(default_factory=dict)


class GramRule(BaseRule):
    """A rule for which the inner products of the rows decide: one pass over the rows for them, one to combine."""

    def gram_weights(self) -> GramWeights | None:
        return self.coefficients

    @abstractmethod
    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        """From gram float64[n, n], symmetric; weights float64[n]."""

    def coefficients(self, gram: Tensor, weights: Tensor, context: Context) -> Tensor:
        """float64[n] of the rows with this Gram matrix."""
        return torch.from_numpy(self.weigh(gram.numpy(), weights.numpy(), context).coefficients)

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        gram = finite_gram(rows)
        weighing = self.weigh(gram, weights.numpy(), context)
        coefficients = torch.from_numpy(weighing.coefficients)
        diagnostics = Diagnostics(
            scalars={"residual": torch.tensor(residual(gram, weighing.coefficients))},
            by_row={name: torch.from_numpy(values) for name, values in weighing.by_row.items()},
        )
        return Aggregation(rows.map(Combine(coefficients[None])).collect()[0], coefficients, diagnostics=diagnostics)


def finite_gram(rows: Rows) -> Array:
    """float64[n, n].

    Raises ValueError for rows that are not finite.
    """
    gram: Array = rows.gram().numpy()
    refuse_broken(np.isfinite(np.diagonal(gram)))
    return gram


def squared_distances(gram: Array) -> Array:
    """gram[n, n] -> float64[n, n]: |g_i - g_j|^2, exactly symmetric, 0 on the diagonal."""
    squares = np.diagonal(gram)
    distances: Array = np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0)
    np.fill_diagonal(distances, 0)
    return distances


def centred(gram: Array, coefficients: Array) -> Array:
    """The Gram matrix of g_i - sum_j c_j g_j, from distances, so that a common offset of the rows costs no digits."""
    distances = squared_distances(gram)
    shift = np.eye(len(gram)) - coefficients[None, :]
    if abs(coefficients.sum() - 1) > 1e-9:
        return _symmetric(shift @ gram @ shift.T)
    return _symmetric(-0.5 * shift @ distances @ shift.T)


def _symmetric(matrix: Array) -> Array:
    half: Array = (matrix + matrix.T) / 2
    return half


def residual(gram: Array, coefficients: Array) -> float:
    """Largest eigenvalue of the residuals' Gram matrix over n: the most that the rows vary along one direction."""
    return max(0.0, float(np.linalg.eigvalsh(centred(gram, coefficients))[-1])) / len(gram)


def equal_shares(chosen: Array, n: int) -> Array:
    """float64[n]: 1 / k on the k chosen rows."""
    shares = np.zeros(n)
    shares[chosen] = 1 / len(chosen)
    return shares
