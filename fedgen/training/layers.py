"""Layers of the stacked engine: forward and hand-written backward for a whole block of clients.

n clients, b samples of each; parameters are [k, *shape] with k = n, or k = 1 where all clients still hold the same.
Adding a layer is one class here: the test suite checks every registered one against autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from fedgen.parameters import Array

Arrays = dict[str, Array]
T = TypeVar("T", bound=type)
Saved = Any
"""What a layer keeps for its own backward pass; opaque elsewhere."""

LAYERS: dict[type[nn.Module], Callable[[nn.Module, str], Layer]] = {}
"""torch module class -> stacked layer."""


@dataclass(frozen=True)
class Draws:
    """Random numbers of one step, each client's from its own generator.

    sizes[n]: the samples that each client takes.
    """

    generators: Sequence[torch.Generator]
    sizes: Array

    def bernoulli(self, probability: float, shape: tuple[int, ...]) -> Array:
        """float32[n, b, ...]: 1 with this probability, else 0; drawn over a client's own samples, as torch would."""
        drawn = torch.zeros(shape)
        for own, generator, size in zip(drawn, self.generators, self.sizes.tolist(), strict=True):
            own[:size].bernoulli_(probability, generator=generator)
        return drawn.numpy()


class Layer(Protocol):
    """One layer; `prefix` begins the names of its parameters in the model's layout."""

    def forward(self, parameters: Arrays, x: Array, draws: Draws) -> tuple[Array, Saved]:
        """x[n, b, ...] -> (y[n, b, ...], what backward needs)."""
        ...

    def backward(self, parameters: Arrays, saved: Saved, dy: Array, gradients: Arrays, inner: bool) -> Array | None:
        """dy[n, b, ...], which may be overwritten, -> dx[n, b, ...]; writes gradients[n, *shape].

        Where no layer before has parameters, `inner` is false and dx may be None.
        """
        ...


def _named(module: nn.Module, name: str) -> str | None:
    """The parameter's name, None where the module was made without it."""
    return name if getattr(module, name.rpartition(".")[2]) is not None else None


def layer_of(module: type[nn.Module]) -> Callable[[T], T]:
    """Register a class, built from (module, prefix), as the stacked form of a torch module."""

    def add(cls: T) -> T:
        LAYERS[module] = cls
        return cls

    return add


@layer_of(nn.Linear)
class Linear:
    """y = x W^T + b, with W[k, o, i], b[k, o]."""

    def __init__(self, module: nn.Linear, prefix: str) -> None:
        self.weight = f"{prefix}weight"
        self.bias = _named(module, f"{prefix}bias")

    def forward(self, parameters: Arrays, x: Array, draws: Draws) -> tuple[Array, Saved]:
        y = _times(x, parameters[self.weight].swapaxes(1, 2))
        if self.bias is not None:
            y += parameters[self.bias][:, None]
        return y, x

    def backward(self, parameters: Arrays, saved: Saved, dy: Array, gradients: Arrays, inner: bool) -> Array | None:
        np.matmul(dy.swapaxes(1, 2), saved, out=gradients[self.weight])
        if self.bias is not None:
            np.matmul(np.ones((1, dy.shape[1]), dy.dtype), dy, out=gradients[self.bias][:, None])
        return _times(dy, parameters[self.weight]) if inner else None


def _times(x: Array, matrix: Array) -> Array:
    """x[n, b, i] @ matrix[k, i, o]: one product where k = 1, n of them otherwise."""
    if len(matrix) > 1 or len(x) == 1:
        product: Array = np.matmul(x, matrix)
        return product
    flat: Array = np.dot(x.reshape(-1, x.shape[2]), matrix[0])
    return flat.reshape(*x.shape[:2], -1)


@layer_of(nn.ReLU)
class Relu:
    """y = max(x, 0)."""

    def __init__(self, module: nn.ReLU, prefix: str) -> None:
        pass

    def forward(self, parameters: Arrays, x: Array, draws: Draws) -> tuple[Array, Saved]:
        y = np.maximum(x, 0)
        return y, y

    def backward(self, parameters: Arrays, saved: Saved, dy: Array, gradients: Arrays, inner: bool) -> Array | None:
        dx: Array = np.multiply(dy, saved > 0, out=dy)
        return dx


@layer_of(nn.Tanh)
class Tanh:
    """y = tanh(x)."""

    def __init__(self, module: nn.Tanh, prefix: str) -> None:
        pass

    def forward(self, parameters: Arrays, x: Array, draws: Draws) -> tuple[Array, Saved]:
        y = np.tanh(x)
        return y, y

    def backward(self, parameters: Arrays, saved: Saved, dy: Array, gradients: Arrays, inner: bool) -> Array | None:
        dx: Array = dy * (1 - saved * saved)
        return dx


@layer_of(nn.Dropout)
class Dropout:
    """y = x * keep / (1 - p), keep ~ Bernoulli(1 - p), with the numbers that torch's generator gives the client."""

    def __init__(self, module: nn.Dropout, prefix: str) -> None:
        self.keep = 1 - module.p

    def forward(self, parameters: Arrays, x: Array, draws: Draws) -> tuple[Array, Saved]:
        if self.keep == 1:
            return x, np.float32(1)
        scale = draws.bernoulli(self.keep, x.shape) / np.float32(self.keep) if self.keep else np.float32(0)
        return x * scale, scale

    def backward(self, parameters: Arrays, saved: Saved, dy: Array, gradients: Arrays, inner: bool) -> Array | None:
        dx: Array = dy * saved
        return dx


@layer_of(nn.Flatten)
class Flatten:
    """All dimensions of a sample become one."""

    def __init__(self, module: nn.Flatten, prefix: str) -> None:
        pass

    def forward(self, parameters: Arrays, x: Array, draws: Draws) -> tuple[Array, Saved]:
        return x.reshape(*x.shape[:2], -1), x.shape

    def backward(self, parameters: Arrays, saved: Saved, dy: Array, gradients: Arrays, inner: bool) -> Array | None:
        return dy.reshape(saved)


@layer_of(nn.LayerNorm)
class LayerNorm:
    """y = w (x - mean) / sqrt(variance + eps) + b over the last dimensions, with w[k, *shape], b[k, *shape]."""

    def __init__(self, module: nn.LayerNorm, prefix: str) -> None:
        self.size = prod(module.normalized_shape)
        self.eps = module.eps
        self.weight, self.bias = _named(module, f"{prefix}weight"), _named(module, f"{prefix}bias")

    def forward(self, parameters: Arrays, x: Array, draws: Draws) -> tuple[Array, Saved]:
        flat = x.reshape(len(x), -1, self.size)
        centred = flat - flat.mean(-1, keepdims=True)
        scale = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + np.float32(self.eps))
        unit = centred * scale
        y = unit
        if self.weight is not None:
            y = unit * parameters[self.weight].reshape(-1, 1, self.size)
        if self.bias is not None:
            y = y + parameters[self.bias].reshape(-1, 1, self.size)
        return y.reshape(x.shape), (unit, scale)

    def backward(self, parameters: Arrays, saved: Saved, dy: Array, gradients: Arrays, inner: bool) -> Array | None:
        unit, scale = saved
        flat = dy.reshape(unit.shape)
        if self.bias is not None:
            gradients[self.bias][:] = flat.sum(1).reshape(gradients[self.bias].shape)
        if self.weight is not None:
            gradients[self.weight][:] = (flat * unit).sum(1).reshape(gradients[self.weight].shape)
            flat = flat * parameters[self.weight].reshape(-1, 1, self.size)
        if not inner:
            return None
        dx: Array = flat - flat.mean(-1, keepdims=True) - unit * (flat * unit).mean(-1, keepdims=True)
        dx = (dx * scale).reshape(dy.shape)
        return dx


@dataclass(frozen=True)
class _Window:
    """Sizes of a sliding window over images."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def outputs(self, height: int, width: int) -> tuple[int, int]:
        rows, columns = (
            (side + 2 * pad - kernel) // stride + 1
            for side, pad, kernel, stride in zip((height, width), self.padding, self.kernel, self.stride, strict=True)
        )
        return rows, columns

    def part(self, image: Array, row: int, column: int, outputs: tuple[int, int]) -> Array:
        """What position (row, column) of the window sees: a view [..., *outputs] of image[..., h, w]."""
        bottom, right = row + self.stride[0] * outputs[0], column + self.stride[1] * outputs[1]
        return image[..., row : bottom : self.stride[0], column : right : self.stride[1]]

    def positions(self) -> list[tuple[int, int]]:
        return [(row, column) for row in range(self.kernel[0]) for column in range(self.kernel[1])]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


@layer_of(nn.Conv2d)
class Conv2d:
    """y = W * x + b as one product of unfolded windows, with W[k, o, c, kh, kw], b[k, o]; x[n, b, c, h, w]."""

    def __init__(self, module: nn.Conv2d, prefix: str) -> None:
        self.window = _Window(_pair(module.kernel_size), _pair(module.stride), _pair(module.padding))
        self.weight = f"{prefix}weight"
        self.bias = _named(module, f"{prefix}bias")

    def forward(self, parameters: Arrays, x: Array, draws: Draws) -> tuple[Array, Saved]:
        n, b, c, height, width = x.shape
        vertical, horizontal = self.window.padding
        if vertical or horizontal:
            x = np.pad(x, ((0, 0),) * 3 + ((vertical, vertical), (horizontal, horizontal)))
        outputs = self.window.outputs(height, width)
        unfolded: Array = np.empty((n, c, len(self.window.positions()), b, *outputs), np.float32)
        for number, position in enumerate(self.window.positions()):
            unfolded[:, :, number] = self.window.part(x, *position, outputs).swapaxes(1, 2)
        unfolded = unfolded.reshape(n, -1, b * outputs[0] * outputs[1])
        weight = parameters[self.weight]
        y = np.matmul(weight.reshape(len(weight), weight.shape[1], -1), unfolded)
        if self.bias is not None:
            y += parameters[self.bias][:, :, None]
        return _images_first(y, b, outputs), (unfolded, x.shape, outputs)

    def backward(self, parameters: Arrays, saved: Saved, dy: Array, gradients: Arrays, inner: bool) -> Array | None:
        unfolded, shape, outputs = saved
        n, b, o = dy.shape[:3]
        flat = np.ascontiguousarray(dy.swapaxes(1, 2)).reshape(n, o, -1)
        target = gradients[self.weight]
        np.matmul(flat, unfolded.swapaxes(1, 2), out=_joined(target, n, o))
        if self.bias is not None:
            np.sum(flat, axis=2, out=gradients[self.bias])
        if not inner:
            return None
        weight = parameters[self.weight]
        folded = np.matmul(weight.reshape(len(weight), o, -1).swapaxes(1, 2), flat)
        folded = folded.reshape(n, shape[2], -1, b, *outputs)
        dx = np.zeros(shape, np.float32)
        for number, position in enumerate(self.window.positions()):
            part = self.window.part(dx, *position, outputs)
            part += folded[:, :, number].swapaxes(1, 2)
        vertical, horizontal = self.window.padding
        return dx[..., vertical : shape[3] - vertical, horizontal : shape[4] - horizontal]


def _joined(gradient: Array, n: int, o: int) -> Array:
    """gradient[n, o, c, kh, kw] of a flat row as [n, o, c * kh * kw], the same memory."""
    size = prod(gradient.shape[2:])
    strides = (gradient.strides[0], size * gradient.itemsize, gradient.itemsize)
    return np.lib.stride_tricks.as_strided(gradient, (n, o, size), strides)


def _images_first(y: Array, b: int, outputs: tuple[int, int]) -> Array:
    """y[n, o, b * h * w] -> [n, b, o, h, w]."""
    return np.ascontiguousarray(y.reshape(len(y), -1, b, *outputs).swapaxes(1, 2))


@layer_of(nn.MaxPool2d)
class MaxPool2d:
    """Largest value of every window; of equal ones the first gets the gradient, as in torch."""

    def __init__(self, module: nn.MaxPool2d, prefix: str) -> None:
        self.window = _Window(_pair(module.kernel_size), _pair(module.stride), _pair(module.padding))

    def forward(self, parameters: Arrays, x: Array, draws: Draws) -> tuple[Array, Saved]:
        outputs = self.window.outputs(*x.shape[-2:])
        first, *rest = self.window.positions()
        y = self.window.part(x, *first, outputs).copy()
        for position in rest:
            np.maximum(y, self.window.part(x, *position, outputs), out=y)
        return y, (x, y)

    def backward(self, parameters: Arrays, saved: Saved, dy: Array, gradients: Arrays, inner: bool) -> Array | None:
        x, y = saved
        dx: Array = np.zeros_like(x)
        left = dy.copy()
        for position in self.window.positions():
            taken = np.where(self.window.part(x, *position, y.shape[-2:]) == y, left, np.float32(0))
            part = self.window.part(dx, *position, y.shape[-2:])
            part += taken
            left -= taken
        return dx


@layer_of(nn.AvgPool2d)
class AvgPool2d:
    """Mean of every window."""

    def __init__(self, module: nn.AvgPool2d, prefix: str) -> None:
        self.window = _Window(_pair(module.kernel_size), _pair(module.stride), _pair(module.padding))
        self.size = np.float32(prod(self.window.kernel))

    def forward(self, parameters: Arrays, x: Array, draws: Draws) -> tuple[Array, Saved]:
        outputs = self.window.outputs(*x.shape[-2:])
        parts = [self.window.part(x, *position, outputs) for position in self.window.positions()]
        return np.add.reduce(parts) / self.size, x.shape

    def backward(self, parameters: Arrays, saved: Saved, dy: Array, gradients: Arrays, inner: bool) -> Array | None:
        dx = np.zeros(saved, np.float32)
        share = dy / self.size
        for position in self.window.positions():
            part = self.window.part(dx, *position, dy.shape[-2:])
            part += share
        return dx
