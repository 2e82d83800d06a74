"""Items of a call of `Pool.map` that are built one at a time, when a worker is ready for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar, overload

from torch import Tensor

Item = TypeVar("Item")


class OnDemand(Sequence[Item], Generic[Item]):
    """The item of each block of clients or peers: make(block), anew at every access."""

    def __init__(self, blocks: list[Tensor], make: Callable[[Tensor], Item]) -> None:
        self.blocks = blocks
        self.make = make

    def __len__(self) -> int:
        return len(self.blocks)

    @overload
    def __getitem__(self, number: int) -> Item: ...
    @overload
    def __getitem__(self, number: slice) -> OnDemand[Item]: ...
    def __getitem__(self, number: int | slice) -> Item | OnDemand[Item]:
        if isinstance(number, slice):
            return OnDemand(self.blocks[number], self.make)
        return self.make(self.blocks[number])
