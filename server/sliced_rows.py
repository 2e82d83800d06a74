"""Rows whose column slices stay with the workers: the driver sees n x n and d numbers only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedgen.contracts import BlockFailure, Columns, Pool, SlabFunction
from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.rows import apply, columns_of, slab_gram, slab_squares

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gram": slab_gram,
    "squares": slab_squares,
    "slab": lambda slab: slab.contiguous(),
}


@dataclass(frozen=True)
class SlicedRows:
    """parts[slice][block]: handles of slabs[rows of the block, columns of the slice], blocks in cohort order."""

    pool: Pool
    parts: tuple[tuple[Any, ...], ...]
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
        items = [(each, *handles) for each, handles in zip(columns, self.parts, strict=True)]
        results = list(self.pool.map(reduce_slice, items, (reduction, self.functions)))
        for result in results:
            if isinstance(result, BlockFailure):
                raise FedgenError(f"a slice of the round's updates could not be aggregated: {result.reason}")
        return results


def reduce_slice(
    federation: Federation, reduction: str, functions: tuple[SlabFunction, ...], columns: Columns, *parts: Tensor
) -> Tensor:
    """One slice of all blocks, mapped and reduced: a Gram matrix, squared lengths or the slab itself."""
    slab = apply(functions, torch.cat(parts), columns)
    return REDUCTIONS[reduction](slab)
