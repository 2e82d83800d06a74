"""Updates as state dicts, lists of arrays or arrays, converted to rows and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgen.parameters import Layout, Tensors


@dataclass(frozen=True)
class Updates:
    """rows[n, d] of floating-point numbers, and how a row becomes an update again."""

    rows: Any
    restored: Callable[[Tensor], Any]
    layout: Layout | None = None

    def row(self, update: object) -> Any:
        """One more update of this form as a row, such as that of the root."""
        return update if self.layout is None or update is None else _flat(self.layout, _named(update), "root")


def updates_of(given: object) -> Updates:
    """A matrix [n, d], or one update a participant: a state dict, a list of arrays, or an array of any shape.

    Raises ValueError that names the participant whose update differs from the first one's.
    """
    first = given[0] if isinstance(given, Sequence) and len(given) else None
    if not _is_structured(first) or not isinstance(given, Sequence):
        return Updates(given, lambda row: row)
    updates = [_named(update) for update in given]
    layout = _layout(updates[0])
    rows = torch.stack([_flat(layout, update, f"update {place}") for place, update in enumerate(updates)])
    whole = {
        name: torch.stack([update[name] for update in updates]).median(0).values
        for name in updates[0]
        if name not in layout.shapes
    }

    def restored(row: Tensor) -> Any:
        tensors = {**layout.view(row), **whole}
        in_order = {name: tensors[name] for name in updates[0]}
        if isinstance(first, Mapping):
            return in_order
        return list(in_order.values()) if isinstance(first, Sequence) else in_order["0"]

    return Updates(rows, restored, layout)


def _is_structured(update: object) -> bool:
    if isinstance(update, Mapping):
        return True
    if isinstance(update, np.ndarray | Tensor):
        return update.ndim != 1
    return isinstance(update, Sequence) and any(isinstance(each, np.ndarray | Tensor) and each.ndim for each in update)


def _named(update: object) -> Tensors:
    if not isinstance(update, Mapping):
        parts = update if isinstance(update, Sequence) else [update]
        update = {str(place): part for place, part in enumerate(parts)}
    return {name: _tensor(value) for name, value in update.items()}


def _tensor(value: object) -> Tensor:
    return value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


def _layout(tensors: Tensors) -> Layout:
    """Of the floating-point tensors."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    if not floating:
        raise ValueError(f"updates hold no floating-point numbers: {', '.join(tensors) or 'they are empty'}")
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in floating.values()) else torch.float32
    return Layout.of_state({name: tuple(tensor.shape) for name, tensor in floating.items()}, dtype)


def _flat(layout: Layout, tensors: Tensors, what: str) -> Tensor:
    for name, shape in layout.shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            got = list(tensors[name].shape) if name in tensors else f"only {', '.join(tensors)}"
            raise ValueError(f"{what}: {name!r} must be {list(shape)}, as in the first update; got {got}")
    return torch.cat([tensors[name].to(layout.dtype).flatten() for name in layout.shapes])
