"""Variances of the weights in rows of models, and rows rescaled to have others."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from fedgen.contracts import Columns, Rows
from fedgen.parameters import Array, Layout
from fedgen.rows import inside
from fedgen.topology.graph import Matrix


def variances(models: Tensor, layout: Layout) -> Array:
    """float64[k, t]: the population variance of each of the t weights in models[k, d]; infinite where float32 is."""
    rows = models.numpy()
    measured = np.empty((len(models), len(layout.weights)))
    with np.errstate(all="ignore"):
        for place, name in enumerate(layout.weights):
            part = rows[:, layout.columns[name][0]]
            mean = (part @ np.ones(part.shape[1], part.dtype)).astype(np.float64) / part.shape[1]
            measured[:, place] = np.vecdot(part, part).astype(np.float64) / part.shape[1] - mean**2
    return np.maximum(measured, 0)


def rescale(models: Tensor, factors: Array, layout: Layout) -> None:
    """v <- (v - mean(v)) * factor + mean(v) for every weight of models[k, d], in place; factors[k, t]."""
    for place, name in enumerate(layout.weights):
        factor = factors[:, place]
        if (factor == 1).all():
            continue
        part = models[:, layout.columns[name][0]]
        scale = torch.from_numpy(factor).to(part.dtype)[:, None]
        part.mul_(scale).add_(part.mean(1, keepdim=True).div(scale).mul_(1 - scale))


@dataclass(frozen=True)
class RowMoments:
    """Sums and squares of the weights of reference[d] + rows, slice by slice, so that rows may stay where they are."""

    reference: Tensor
    layout: Layout

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        """slab[n, c] -> float64[n, 2 t]."""
        values = slab.double() + self.reference[columns].double()
        parts = [inside(self.layout.columns[name][0], columns) for name in self.layout.weights]
        sums = [values[:, part].sum(1) for part in parts]
        squares = [values[:, part].square().sum(1) for part in parts]
        return torch.stack([*sums, *squares], dim=1) if parts else values[:, :0]

    def variances(self, rows: Rows) -> Array:
        """float64[n, t] of reference + rows."""
        sizes = np.array([prod(self.layout.shapes[name]) for name in self.layout.weights])
        parts = rows.map(self).collect().numpy()
        moments = parts.reshape(len(parts), parts.shape[1] // max(1, 2 * len(sizes)), 2, len(sizes)).sum(1) / sizes
        measured: Array = np.maximum(moments[:, 1] - moments[:, 0] ** 2, 0)
        return measured


def mix_running_variances(
    mixed: Tensor, own: Tensor, sent: Tensor, weights: Matrix, share: Array, layout: Layout
) -> None:
    """Running variances of mixed[k, d], in place, as those of the mixture of what each model has seen.

    var = E[var_j] + E[mean_j^2] - E[mean_j]^2, E over own[k, d] with 1 - share[k] and sent[N, d] with share * weights
    """
    kept, others = (1 - share)[:, None], share[:, None]
    for variance, mean in layout.running.items():
        place, about = layout.columns[variance][0], layout.columns[mean][0]
        squares = [rows[:, about].double().numpy() ** 2 for rows in (own, sent)]
        seconds = kept * squares[0] + others * (weights @ squares[1])
        between = torch.from_numpy(seconds) - mixed[:, about].double().square()
        mixed[:, place].add_(between.clamp_min(0).to(mixed.dtype))
