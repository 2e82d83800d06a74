"""Rows cut into column slices: the two reductions and the one map that rules and attacks are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgen.contracts import Columns, SlabFunction
from fedgen.device import HOST, on_host
from fedgen.parameters import canonical

SLICE = 65_536
"""Columns of a slice unless the experiment says otherwise: 10 rows of it are 2.6 MB, enough for Ray to share."""


GRAM_COLUMNS = 8_192
"""Columns that are widened to float64 together, in a buffer that is used again: 20 rows of them stay in the cache."""

HALF = (torch.float16, torch.bfloat16)
"""What is computed in float32."""


def columns_of(size: int, width: int) -> list[Columns]:
    """Slices of `width` columns that cover 0 .. size, at least one.

    >>> columns_of(100, 64)
    [slice(0, 64, None), slice(64, 100, None)]
    """
    return [slice(first, min(first + width, size)) for first in range(0, max(size, 1), width)]


def inside(part: Columns, columns: Columns) -> Columns:
    """The part of `columns` that holds `part`, counted from the slab's first column; empty where none.

    >>> inside(slice(60, 70), slice(64, 128)), inside(slice(0, 10), slice(64, 128))
    (slice(0, 6, None), slice(0, 0, None))
    """
    first = max(part.start, columns.start) - columns.start
    return slice(first, max(first, min(part.stop, columns.stop) - columns.start))


def apply(functions: Sequence[SlabFunction], slab: Tensor, columns: Columns) -> Tensor:
    """slab[n, c] through every function in turn."""
    for function in functions:
        slab = function(slab, columns)
    return slab


def slab_gram(slab: Tensor) -> Tensor:
    """slab[n, c] -> float64[n, n] on the host, exactly symmetric."""
    if slab.device != HOST:
        wide = slab.double()
        return on_host(wide @ wide.T)
    n, d = slab.shape
    gram = np.zeros((n, n))
    wide = canonical(torch.empty(n, min(d, GRAM_COLUMNS), dtype=torch.float64))
    for columns in columns_of(d, GRAM_COLUMNS):
        part = wide[:, : columns.stop - columns.start].copy_(slab[:, columns]).numpy()
        gram += part @ part.T  # numpy makes half of it, with syrk
    return torch.from_numpy(gram)


def slab_squares(slab: Tensor) -> Tensor:
    """slab[n, c] -> float64[n] on the host: squared Euclidean lengths."""
    if slab.device != HOST:
        return on_host(slab.double().square().sum(1))
    wide = slab.double().numpy(force=True)
    return torch.from_numpy(np.vecdot(wide, wide))


@dataclass(frozen=True)
class LocalRows:
    """Rows in the memory of this process.

    data[n, d]; slice: columns of a slab, as in the experiment, so that sums have the experiment's order.
    """

    data: Tensor
    slice: int = SLICE
    functions: tuple[SlabFunction, ...] = ()

    @property
    def size(self) -> int:
        return self.data.shape[1]

    def map(self, function: SlabFunction) -> LocalRows:
        return LocalRows(self.data, self.slice, (*self.functions, function))

    def slabs(self) -> Iterator[Tensor]:
        """The mapped slices, in order."""
        for each in columns_of(self.size, self.slice):
            yield apply(self.functions, canonical(self.data[:, each]), each)

    def gram(self) -> Tensor:
        # Where no function reads the slices first, widening them is the copy that makes their memory canonical.
        plain = (self.data[:, each] for each in columns_of(self.size, self.slice))
        slabs = self.slabs() if self.functions else plain
        return torch.stack([slab_gram(slab) for slab in slabs]).sum(0)

    def norms(self) -> Tensor:
        return torch.stack([slab_squares(slab) for slab in self.slabs()]).sum(0).sqrt()

    def collect(self) -> Tensor:
        return torch.cat(list(self.slabs()), dim=1) if self.functions else self.data


@dataclass(frozen=True)
class Combine:
    """slab -> coefficients[k, n] @ slab[n, c]."""

    coefficients: Tensor

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        wide = slab.float() if slab.dtype in HALF else slab
        return (self.coefficients.to(wide) @ wide).to(slab.dtype)


@dataclass(frozen=True)
class Append:
    """slab[n, c] -> [n + 1, c]: one more row, row[d]."""

    row: Tensor

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return torch.cat([slab, self.row[None, columns].to(slab)])


@dataclass(frozen=True)
class Select:
    """slab -> its rows where mask[n]."""

    mask: Tensor

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return slab[self.mask.to(slab.device)]


def total(slab: Tensor, columns: Columns) -> Tensor:
    """slab[n, c] -> float64[1, c]: the plain sum."""
    return slab.sum(0, keepdim=True, dtype=torch.float64)
