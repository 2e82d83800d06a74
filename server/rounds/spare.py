"""Reuses the memory of models that are no longer needed."""

from __future__ import annotations

import torch
from torch import Tensor


class Spare:
    """Reuses [N, d] buffers: fresh pages are zeroed by the kernel, a fifth of a round with many peers."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []

    def empty_like(self, tensor: Tensor, columns: int | None = None) -> Tensor:
        """An uninitialised tensor of that dtype with shape [N, columns], or with the same shape."""
        shape = tensor.shape if columns is None else torch.Size((len(tensor), columns))
        for place, free in enumerate(self._free):
            if free.shape == shape and free.dtype == tensor.dtype:
                return self._free.pop(place).detach()  # a new object, as pools compare tensors by identity
        return torch.empty(shape, dtype=tensor.dtype)

    def clear(self) -> None:
        """Return the memory to the system."""
        self._free = []

    def give(self, tensor: Tensor) -> None:
        """Take a tensor whose contents are no longer needed."""
        if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes:
            self._free = [*self._free[-1:], tensor]
