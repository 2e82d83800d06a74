"""Samples of several clients, as places in arrays that many share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.lazy import lazy_property


@dataclass(frozen=True)
class Samples:
    """Samples of n clients, as places in shared arrays; gathered on demand.

    pool_x[t, ...], pool_y[t, ...]; index int64[n, m]: place of sample j of client i. Padding points at a sample of
    zeros.
    """

    pool_x: Tensor
    pool_y: Tensor
    index: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Samples:
        """x[n, m, ...] and y[n, m, ...] themselves."""
        n, m = y.shape[:2]
        return cls(x.flatten(0, 1), y.flatten(0, 1), torch.arange(n * m, device=x.device).view(n, m))

    @lazy_property
    def x(self) -> Tensor:
        """[n, m, ...], zero padded."""
        return _gathered(self.pool_x, self.index)

    @lazy_property
    def y(self) -> Tensor:
        """[n, m, ...], zero padded."""
        return _gathered(self.pool_y, self.index)

    def take(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """(x[*places, ...], y[*places, ...]) at int64 places of the pool."""
        return _gathered(self.pool_x, places), _gathered(self.pool_y, places)


def _gathered(pool: Tensor, places: Tensor) -> Tensor:
    gathered: Tensor = pool.index_select(0, places.flatten()).view(*places.shape, *pool.shape[1:])
    return gathered
