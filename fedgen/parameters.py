"""Named tensors <-> one flat row, and the memory form that makes arithmetic repeatable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Array = np.ndarray[Any, Any]

ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class Layout:
    """Where each named tensor lies in a flat row of one dtype.

    shapes: name -> shape, in row order.  dtype: of the row.  scale_free: names of tensors that a normalisation follows,
    so that their scale changes nothing.  running: name of a running variance -> name of the running mean it belongs to.

    >>> layout = Layout({"weight": (2, 3), "bias": (2,)})
    >>> layout.size
    8
    >>> {name: tuple(t.shape) for name, t in layout.view(torch.zeros(5, 8)).items()}
    {'weight': (5, 2, 3), 'bias': (5, 2)}
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype = torch.float32
    scale_free: frozenset[str] = frozenset()
    running: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def sizes(self) -> list[int]:
        return [prod(shape) for shape in self.shapes.values()]

    @cached_property
    def size(self) -> int:
        """d, the number of columns."""
        return sum(self.sizes)

    @cached_property
    def columns(self) -> dict[str, tuple[slice, tuple[int, ...]]]:
        """{name: (columns of a row, shape)}."""
        last = list(accumulate(self.sizes))
        parts = [slice(end - size, end) for end, size in zip(last, self.sizes, strict=True)]
        return dict(zip(self.shapes, zip(parts, self.shapes.values(), strict=True), strict=True))

    @cached_property
    def weights(self) -> list[str]:
        """Names of the weights: tensors of two dimensions and more, no biases, no norms' own."""
        return [name for name, shape in self.shapes.items() if len(shape) > 1]

    def view(self, rows: Tensor) -> Tensors:
        """rows[..., d] -> {name: [..., *shape]}, views of the same memory."""
        lead, parts = rows.shape[:-1], torch.split(rows, self.sizes, dim=-1)
        return {
            name: part.view((*lead, *shape)) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def flatten(self, tensors: Tensors) -> Tensor:
        """{name: [..., *shape]} -> rows[..., d], a copy."""
        parts = []
        for name, shape in self.shapes.items():
            tensor = tensors[name]
            parts.append(tensor.reshape(*tensor.shape[: tensor.dim() - len(shape)], prod(shape)))
        return torch.cat(parts, dim=-1)


def place_rows(target: Tensor, places: Tensor, rows: Tensor) -> None:
    """target[places[k]] = rows[k, ...], in place: three times as fast as torch has it."""
    target.numpy()[places.numpy()] = rows.numpy()


def canonical(tensor: Tensor) -> Tensor:
    """The same numbers, contiguous and 64-byte aligned.

    BLAS chooses kernels, and so bits, by stride and alignment: every tensor that enters training passes through here
    when it is loaded, received or made by ``server_update``.
    """
    if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT_BYTES == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
