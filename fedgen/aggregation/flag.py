"""The Flag Aggregator: the rows' projection onto the subspace that explains them best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedgen.aggregation.base import GramRule, Weighing
from fedgen.aggregation.normalised_mean import inverse
from fedgen.contracts import Context
from fedgen.parameters import Array
from fedgen.registry import register

EPSILON = 1e-7
"""Added to what an explained row still lacks; as in the paper's code."""

Form = Annotated[Literal["unit", "paper"], Field(description="what is projected: directions, or the rows themselves")]
Length = Annotated[
    Literal["median", "unit"],
    Field(description="of form 'unit': rescaled to the median row, or as the paper's code has it, whatever the rows'"),
]
Pairs = Annotated[
    Literal["paper", "code"], Field(description="weighting of the pair term, as in the paper or in its code")
]


@register("rule", "flag")
@dataclass(frozen=True, kw_only=True)
class Flag(GramRule):
    """Projects the rows onto an m-dimensional subspace that explains them, by iteratively reweighted least squares.

    n rows g_i, m = `rank`, x_i = g_i / |g_i|, X = [x_1 .. x_n], K = X^T X.  Y[d, m] with Y^T Y = I minimises

        sum_i sqrt(1 - v_i) + regularisation / (n - 1) * sum_{i != j} sqrt(1 - |Y^T (x_i - x_j)|^2 / |x_i - x_j|^2)

    where v_i = |Y^T x_i|^2 is the value of row i, in 0 .. 1.  aggregate = Y Y^T sum_i x_i / m (form "unit") or
    Y Y^T sum_i g_i / n (form "paper").  No [d, m] matrix is made: with M = diag(w) + the Laplacian of the pair weights
    = R R^T and eig(R^T K R) = V L V^T, Y^T X = L_m^(-1/2) V_m^T R^T K, and Y Y^T X s = X c with
    c = R V_m L_m^(-1) V_m^T R^T K s.  Starts from v = 0, which knows no order of the rows.  Weights are ignored;
    n >= 2 f + 1; f itself changes nothing.

    Diagnostics: value[n] = v_i of the last iteration.

    >>> Flag()([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]).aggregate.round(decimals=9).tolist()
    [2.0, 0.0]

    Source: H. Almasi et al., arXiv 2302.05865 (ICLR 2024), equation 5 and algorithm 1.  Form "paper" is the paper's
    update and follows a long Byzantine row as the mean does; form "unit" is its code's, made robust by its
    normalisation; we rescale it to the median row's length unless length = "unit".  The paper's advice
    regularisation = n removes the rows' common direction: 0 by default.
    """

    form: Form = "unit"
    length: Length = "median"
    rank: Annotated[int | None, Field(ge=1, description="m; ceil((n + 1) / 2) where not given")] = None
    iterations: Annotated[int, Field(ge=1, description="most reweighted least-squares steps")] = 5
    regularisation: Annotated[float, Field(ge=0, description="lambda, weight of the pair term")] = 0.0
    pairs: Pairs = "paper"

    def weigh(self, gram: Array, weights: Array, context: Context) -> Weighing:
        n = len(gram)
        lengths = np.sqrt(np.diagonal(gram))
        scale = inverse(lengths)
        unit = gram * scale[:, None] * scale[None, :]
        rank = min(self.rank or (n + 2) // 2, n)
        basis, values = self._subspace(unit, rank)
        if self.form == "paper":
            return Weighing(scale * (basis @ (basis.T @ (unit @ lengths))) / n, {"value": values})
        total = basis @ (basis.T @ unit.sum(1))
        size = np.median(lengths) / n if self.length == "median" else 1 / rank
        return Weighing(scale * total * size, {"value": values})

    def _subspace(self, unit: Array, rank: int) -> tuple[Array, Array]:
        """(B[n, m], v[n]): Y = X B, and the rows' values."""
        values = np.zeros(len(unit))
        pair_values = np.zeros_like(unit)
        distances = np.maximum(2 - 2 * unit, 0)
        found = None
        least = np.inf
        for _ in range(self.iterations):
            basis = _largest(unit, self._quadratic(values, pair_values, distances), rank)
            projected = basis.T @ unit
            values = np.square(projected).sum(0)
            missing = np.sqrt(np.clip(1 - values, 0, None)).sum()
            if found is not None and least - missing < 1e-10:
                return found if missing > least else (basis, values)
            found = (basis, values)
            least = missing
            if self.regularisation:
                inner = projected.T @ projected
                pair_values = np.maximum(values[:, None] + values[None, :] - 2 * inner, 0)
        assert found is not None
        return found

    def _quadratic(self, values: Array, pair_values: Array, distances: Array) -> Array:
        """M[n, n]: the weights of the single terms and the Laplacian of the pair terms'."""
        single = np.diag((np.abs(1 - values) + EPSILON) ** -0.5)
        if not self.regularisation or len(values) == 1:
            return single
        apart = distances > 1e-14
        n = len(values)
        if self.pairs == "paper":
            squares = np.where(apart, distances, 1)
            weight = self.regularisation / (n - 1) / squares * (np.abs(1 - pair_values / squares) + EPSILON) ** -0.5
        else:
            weight = (self.regularisation / (n * (n - 1))) ** 2 * (np.abs(1 - pair_values) + EPSILON) ** -0.5
        weight = np.where(apart, weight, 0)
        laplacian: Array = single + 2 * (np.diag(weight.sum(1)) - weight)
        return laplacian


def _largest(unit: Array, quadratic: Array, rank: int) -> Array:
    """B[n, m] with X B orthonormal: the m leading left singular directions of X R, R R^T = quadratic."""
    root = np.linalg.cholesky(quadratic)
    sizes, vectors = np.linalg.eigh(root.T @ unit @ root)
    kept = [place for place in range(len(sizes) - 1, -1, -1)[:rank] if sizes[place] > 1e-12 * sizes[-1]]
    basis: Array = root @ vectors[:, kept] / np.sqrt(sizes[kept])
    return basis
