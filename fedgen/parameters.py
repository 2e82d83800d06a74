"""Named tensors <-> one flat row, and the memory form that makes arithmetic repeatable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import prod
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgen.lazy import lazy_property

Tensors = dict[str, Tensor]
Array = NDArray[Any]

ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class Layout:
    """Places of named tensors in a flat row of one dtype, and the kind of each.

    A tensor of a row is a statistic where `statistics` names it: what a module measures of its inputs, such as a
    running mean.  Any other is a parameter, or something else that is added up like one.  Statistics lie side by side.
    A tensor of the module that is not in the row is a constant: it is not trained, and not sent.

    shapes: name -> shape, in row order.  dtype: of the row.  scale_free: names of tensors that a normalisation follows,
    so that their scale changes nothing.  running: name of a running variance -> name of the running mean it belongs to.

    >>> layout = Layout({"weight": (2, 3), "bias": (2,), "mean": (2,)}, statistics=frozenset({"mean"}))
    >>> layout.size, layout.measured
    (10, slice(8, 10, None))
    >>> {name: tuple(t.shape) for name, t in layout.view(torch.zeros(5, 10)).items()}
    {'weight': (5, 2, 3), 'bias': (5, 2), 'mean': (5, 2)}
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype = torch.float32
    scale_free: frozenset[str] = frozenset()
    running: Mapping[str, str] = field(default_factory=dict)
    statistics: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        paired = {*self.running, *self.running.values()}
        object.__setattr__(self, "statistics", frozenset({*self.statistics, *paired} & self.shapes.keys()))

    @classmethod
    def of_state(cls, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> Layout:
        """Of a state dict's floating-point tensors, where no module says what they are: those named running_... are
        statistics, and follow the others.

        >>> list(Layout.of_state({"norm.running_mean": (2,), "weight": (3,)}, torch.float32).shapes)
        ['weight', 'norm.running_mean']
        """
        statistics = [name for name in shapes if name.rpartition(".")[2].startswith("running_")]
        ordered = [*(name for name in shapes if name not in statistics), *statistics]
        return cls({name: shapes[name] for name in ordered}, dtype, statistics=frozenset(statistics))

    @lazy_property
    def sizes(self) -> list[int]:
        return [prod(shape) for shape in self.shapes.values()]

    @lazy_property
    def size(self) -> int:
        """d, the number of columns."""
        return sum(self.sizes)

    @lazy_property
    def columns(self) -> dict[str, tuple[slice, tuple[int, ...]]]:
        """{name: (columns of a row, shape)}."""
        last = list(accumulate(self.sizes))
        parts = [slice(end - size, end) for end, size in zip(last, self.sizes, strict=True)]
        return dict(zip(self.shapes, zip(parts, self.shapes.values(), strict=True), strict=True))

    @lazy_property
    def weights(self) -> list[str]:
        """Names of the weights: parameters of two dimensions and more, no biases, no norms' own."""
        return [name for name, shape in self.shapes.items() if len(shape) > 1 and name not in self.statistics]

    @lazy_property
    def measured(self) -> slice:
        """The columns of the statistics; empty, at the end, where there are none."""
        parts = [part for name, (part, _) in self.columns.items() if name in self.statistics]
        return slice(parts[0].start, parts[-1].stop) if parts else slice(self.size, self.size)

    @lazy_property
    def parameters(self) -> slice:
        """The columns before the statistics: those of the parameters, in a row that is a model."""
        return slice(0, self.measured.start)

    @lazy_property
    def of_statistics(self) -> Layout:
        """Of the columns of the statistics alone."""
        return replace(self, shapes={name: shape for name, shape in self.shapes.items() if name in self.statistics})

    @lazy_property
    def variances(self) -> list[str]:
        """Names of the statistics that no negative number can be."""
        return [name for name in self.shapes if name in self.statistics and "var" in name.rpartition(".")[2]]

    def extended(self, **shapes: tuple[int, ...]) -> Layout:
        """Of rows that carry more tensors behind these.

        >>> Layout({"weight": (2, 3)}).extended(control=(6,)).shapes
        {'weight': (2, 3), 'control': (6,)}
        """
        return replace(self, shapes={**self.shapes, **shapes})

    def view(self, rows: Tensor) -> Tensors:
        """rows[..., d] -> {name: [..., *shape]}, views of the same memory."""
        lead = rows.shape[:-1]
        parts = torch.split(rows, self.sizes, dim=-1)
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
