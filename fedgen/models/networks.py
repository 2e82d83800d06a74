"""The built-in models, for inputs of any shape."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field
from torch import nn

from fedgen.errors import SettingError
from fedgen.registry import register

Width = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1, description="share of hidden units that dropout sets to 0 in training")]


@runtime_checkable
class Network(Protocol):
    """What is registered as a "model": parameters that make a torch module for given inputs and outputs."""

    def module(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module: ...


@register("model", "logistic")
@dataclass(frozen=True, kw_only=True)
class Logistic:
    """Logistic regression: one linear layer over the flattened input."""

    def module(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(prod(input_shape), outputs))


Norm = Annotated[Literal["none", "layer", "batch"], Field(description="normalisation before each ReLU")]


@register("model", "mlp")
@dataclass(frozen=True, kw_only=True)
class Mlp:
    """Fully connected layers with ReLU between them.

    >>> sum(p.numel() for p in Mlp(hidden=(128,)).module((1, 8, 8), 10).parameters())
    9610
    """

    hidden: Annotated[tuple[Width, ...], Field(strict=False, description="widths of the hidden layers")] = (128,)
    dropout: Share = 0.0
    norm: Norm = "none"

    def module(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        widths = [prod(input_shape), *self.hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for inner, outer in pairwise(widths):
            layers += [nn.Linear(inner, outer), *_norm(self.norm, outer), *_hidden(self.dropout)]
        return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))


@register("model", "cnn")
@dataclass(frozen=True, kw_only=True)
class Cnn:
    """3 x 3 convolutions, each with 2 x 2 max pooling and ReLU, then one hidden layer (225,034 parameters on MNIST).

    The order of pooling and ReLU changes no number: the largest of four is the largest before and after it. Pooling
    first leaves a quarter of the work to ReLU.

    >>> sum(p.numel() for p in Cnn().module((1, 28, 28), 10).parameters())
    225034

    Raises SettingError where pooling leaves nothing of the image.
    """

    channels: Annotated[tuple[Width, ...], Field(strict=False, description="channels of the convolutions")] = (32, 64)
    hidden: Annotated[int, Field(ge=1, description="width of the hidden layer")] = 128
    padding: Annotated[int, Field(ge=0, le=1, description="zero padding of the convolutions, pixels")] = 0
    dropout: Share = 0.0

    def module(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        if len(input_shape) != 3:
            raise SettingError(f"model 'cnn' needs images [channels, height, width], the data has {input_shape}")
        inner, height, width = input_shape
        layers: list[nn.Module] = []
        for outer in self.channels:
            layers += [nn.Conv2d(inner, outer, 3, padding=self.padding), nn.MaxPool2d(2), nn.ReLU()]
            inner, height, width = outer, *((side - 2 + 2 * self.padding) // 2 for side in (height, width))
        if min(height, width) < 1:
            raise SettingError(
                f"model 'cnn' with {len(self.channels)} convolutions leaves nothing of {input_shape[1]} x "
                f"{input_shape[2]} images; set model.padding = 1 or give fewer model.channels"
            )
        layers += [nn.Flatten(), nn.Linear(inner * height * width, self.hidden), *_hidden(self.dropout)]
        return nn.Sequential(*layers, nn.Linear(self.hidden, outputs))


def _norm(norm: str, width: int) -> list[nn.Module]:
    if norm == "none":
        return []
    return [nn.LayerNorm(width) if norm == "layer" else nn.BatchNorm1d(width)]


def _hidden(dropout: float) -> list[nn.Module]:
    """What follows a hidden linear layer."""
    return [nn.ReLU(), nn.Dropout(dropout)] if dropout else [nn.ReLU()]
