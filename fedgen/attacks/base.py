"""What most attacks have in common: honest data, honest weights, no memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedgen.contracts import Block, Columns, Rows, SlabFunction, View
from fedgen.parameters import Tensors


class BaseAttack:
    """Neither poisons data nor lies; an attack overrides what it changes."""

    omniscient: ClassVar[bool] = False

    def poison(self, block: Block, byzantine: Tensor) -> Block:
        return block

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        return rows, view.weights, view.memory


@dataclass(frozen=True)
class Replace:
    """slab -> the slab with the Byzantine rows replaced by those of lie(slab), which may be [n, c] or [1, c]."""

    byzantine: Tensor
    lie: SlabFunction

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return torch.where(self.byzantine[:, None], self.lie(slab, columns), slab)
