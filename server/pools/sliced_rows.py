"""Rows whose column slices stay with the workers; the driver receives only n x n and d numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgen.contracts import Columns, SlabFunction
from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.leaves import Held
from fedgen.rows import apply, columns_of, slab_gram, slab_squares
from fedgen.server.pools.pool import BlockFailure, Pool

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gram": slab_gram,
    "squares": slab_squares,
    "slab": lambda slab: slab.contiguous(),
}


@dataclass(frozen=True)
class SlicedRows:
    """parts[slice][block]: handles of slabs[rows of the block, columns of the slice]; blocks in cohort order."""

    pool: Pool
    parts: tuple[tuple[Held[Tensor], ...], ...]
    size: int
    slice: int
    functions: tuple[SlabFunction, ...] = ()

    def map(self, function: SlabFunction) -> SlicedRows:
        return replace(self, functions=(*self.functions, function))

    def gram(self) -> Tensor:
        return torch.stack(self._each("gram")).sum(0)

    def norms(self) -> Tensor:
        return torch.stack(self._each("squares")).sum(0).sqrt()

    def collect(self) -> Tensor:
        return torch.cat(self._each("slab"), dim=1)

    def _each(self, reduction: str) -> list[Tensor]:
        columns = columns_of(self.size, self.slice)
        items = [Slice(part, slabs) for part, slabs in zip(columns, self.parts, strict=True)]
        slabs = []
        for result in list(self.pool.map(reduce_slice, items, Reduction(reduction, self.functions))):
            if isinstance(result, BlockFailure):
                raise FedgenError(f"a slice of the round's updates could not be aggregated: {result.reason}")
            slabs.append(result)
        return slabs


@dataclass(frozen=True)
class Reduction:
    """Computed on every slice: `functions` in order, then one of REDUCTIONS."""

    name: str
    functions: tuple[SlabFunction, ...]


@dataclass(frozen=True)
class Slice:
    """Some columns of all rows, as slabs of the blocks in cohort order."""

    columns: Columns
    slabs: tuple[Held[Tensor], ...]


def reduce_slice(federation: Federation, reduction: Reduction, part: Slice) -> Tensor:
    """Map and reduce one slice of all rows: to a Gram matrix, squared norms or the slab itself."""
    slab = apply(reduction.functions, torch.cat([slab.value for slab in part.slabs]), part.columns)
    return REDUCTIONS[reduction.name](slab)
