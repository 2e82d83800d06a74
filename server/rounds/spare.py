"""Memory of models that nobody needs any more, for the next ones."""

from __future__ import annotations

import torch
from torch import Tensor


class Spare:
    """Tensors of the size of all peers' models: new memory of that size is zeroed first, which costs a fifth of a round
    where peers are many."""

    def __init__(self) -> None:
        self._held: list[Tensor] = []

    def empty_like(self, tensor: Tensor, columns: int | None = None) -> Tensor:
        """Uninitialised, of that dtype and of [N, columns], the tensor's own shape unless given."""
        shape = tensor.shape if columns is None else torch.Size((len(tensor), columns))
        for place, each in enumerate(self._held):
            if each.shape == shape and each.dtype == tensor.dtype:
                return self._held.pop(place).detach()  # another object: pools know tensors by identity
        return torch.empty(shape, dtype=tensor.dtype)

    def clear(self) -> None:
        """Give it back to the system."""
        self._held = []

    def give(self, tensor: Tensor) -> None:
        """From now on this memory may be anything."""
        if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
            self._held = [*self._held[-1:], tensor]
