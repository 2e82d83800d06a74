"""Augmented data: workers that mean well and train on pictures that a nonlinear map has bent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack
from fedgen.attacks.samples import drawn_samples, over_samples
from fedgen.contracts import Block, Facts, Samples
from fedgen.device import on_host
from fedgen.errors import SettingError
from fedgen.registry import register

STEPS = 32
"""Runge-Kutta steps of the Lotka-Volterra flow: its error is far below a pixel."""

ALPHA = 2 / 3
BETA = 4 / 3
GAMMA = -1.0
DELTA = -1.0
"""The paper's Lotka-Volterra parameters."""


@register("attack", "augmented")
@dataclass(frozen=True, kw_only=True)
class Augmented(BaseAttack):
    """Trains on pictures warped by a Lotka-Volterra flow or Arnold's cat map, under Gaussian noise.

    for a drawn `share` of a Byzantine client's samples: x(p) <- x(T p) + u * noise * z(p), z ~ N(0, 1) a pixel,
    u uniform in (0, 1) a sample;  p = (p1, p2) in [0, 1]^2, read between pixels by bilinear
    interpolation, beyond the edge at the edge

    "lotka_volterra": T the flow for the time 1 of p1' = alpha p1 - beta p1 p2, p2' = delta p1 p2 - gamma p2,
    alpha, beta, gamma, delta = 2/3, 4/3, -1, -1;
    "cat_map": T p = (2 p1 + p2, p1 + p2) mod 1, which permutes the pixels;
    "smooth_cat_map": the same with t mod 1 made smooth as t - sum_(j = 1, 2) t^k / (t^k + j^k), k = m / (1 - m),
    m the `smoothness`: the step of the remainder as a logistic function of log(t / j)

    Source: H. Almasi et al., Flag Aggregator, arXiv 2302.05865 (2024), section 3 and figure 7, with m = .95.  The paper
    integrates with LSODA, here Runge-Kutta of order four does; it gives no number for the time and the noise, and its
    smooth remainder is written for one period: ours tends to the cat map as m tends to 1.
    """

    facts: Facts
    transform: Annotated[
        Literal["lotka_volterra", "cat_map", "smooth_cat_map"], Field(description="how pictures are bent")
    ] = "lotka_volterra"
    share: Annotated[float, Field(gt=0, le=1, description="share of a Byzantine client's samples that change")] = 1.0
    noise: Annotated[float, Field(ge=0, description="largest standard deviation of the noise, in the data's units")] = (
        0.1
    )
    smoothness: Annotated[float, Field(gt=0, lt=1, description="m of the smooth cat map; nearer to 1 is sharper")] = (
        0.95
    )

    def __post_init__(self) -> None:
        shape = self.facts.input_shape
        square = len(shape) >= 2 and shape[-1] == shape[-2]
        if len(shape) < 2 or not (square or self.transform == "lotka_volterra"):
            raise SettingError(
                f"byzantine.attack 'augmented': transform = {self.transform!r} bends "
                f"{'square ' if len(shape) >= 2 else ''}pictures, and samples have the shape {shape}; choose another "
                "data set or attack"
            )

    def poison(self, block: Block, byzantine: Tensor) -> Block:
        chosen = drawn_samples(block, self.share, "augmented")
        x = block.x.clone()
        own = block.x[byzantine]
        augmented = sampled(own, self._lookup().to(own.device)) + self._noise(block, byzantine)
        x[byzantine] = torch.where(over_samples(chosen[byzantine], own), augmented, own)
        return replace(block, samples=Samples.of(x, block.y))

    def _lookup(self) -> Tensor:
        """float64[height, width, 2]: where each pixel is read, in pixels."""
        sizes = torch.tensor(self.facts.input_shape[-2:], dtype=torch.float64)
        axes = [torch.arange(int(size), dtype=torch.float64) for size in sizes]
        pixels = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        if self.transform == "lotka_volterra":
            return lotka_volterra((pixels + 0.5) / sizes) * sizes - 0.5
        first, second = pixels.unbind(-1)
        mapped = torch.stack([2 * first + second, first + second], dim=-1)
        if self.transform == "cat_map":
            return mapped % sizes
        return smooth_remainder(mapped / sizes, self.smoothness) * sizes

    def _noise(self, block: Block, byzantine: Tensor) -> Tensor:
        """[k, m, ...]: of each Byzantine client and sample, the same in every round."""
        clients = block.clients[on_host(byzantine)]
        m = block.longest
        features = prod(self.facts.input_shape)
        levels = block.streams.uniform("attack.augmented.level", 0, clients, m)
        noise = block.streams.normal("attack.augmented.noise", 0, clients, m * features)
        made = self.noise * over_samples(levels, block.x) * noise.view(len(clients), m, *self.facts.input_shape)
        return made.to(block.x.device)


def lotka_volterra(points: Tensor) -> Tensor:
    """points[..., 2] after the time 1, by Runge-Kutta of order four.

    >>> lotka_volterra(torch.tensor([[0.0, 0.5]]).double())[0, 1] / 0.5 - torch.e < 1e-5
    tensor(True)
    """

    def speed(at: Tensor) -> Tensor:
        first, second = at.unbind(-1)
        return torch.stack([ALPHA * first - BETA * first * second, DELTA * first * second - GAMMA * second], dim=-1)

    step = 1 / STEPS
    for _ in range(STEPS):
        one = speed(points)
        two = speed(points + step / 2 * one)
        three = speed(points + step / 2 * two)
        four = speed(points + step * three)
        points = points + step / 6 * (one + 2 * two + 2 * three + four)
    return points


def smooth_remainder(values: Tensor, smoothness: float) -> Tensor:
    """values in [0, 3) -> about values mod 1.

    >>> smooth_remainder(torch.tensor([0.25, 1.5, 2.75]).double(), 0.99).round(decimals=2)
    tensor([0.2500, 0.5000, 0.7500], dtype=torch.float64)
    """
    power = smoothness / (1 - smoothness)
    steps = [torch.sigmoid(power * (values / whole).log()) for whole in (1, 2)]
    return values - steps[0] - steps[1]


def sampled(x: Tensor, where: Tensor) -> Tensor:
    """x[..., height, width] read at where[height, width, 2] in pixels: bilinear, clamped to the edge."""
    height, width = x.shape[-2:]
    limits = torch.tensor([height - 1, width - 1], dtype=torch.float64).to(where.device)
    at = where.clamp_min(0).minimum(limits)
    low = at.floor().minimum((limits - 1).clamp_min(0))
    part = (at - low).flatten(0, 1)
    low = low.long().flatten(0, 1)
    high = (low + 1).minimum(limits.long())
    flat = x.flatten(-2)
    result = torch.zeros_like(x.flatten(-2))
    for rows, row_weight in ((low[:, 0], 1 - part[:, 0]), (high[:, 0], part[:, 0])):
        for columns, column_weight in ((low[:, 1], 1 - part[:, 1]), (high[:, 1], part[:, 1])):
            result += (row_weight * column_weight).to(x.dtype) * flat[..., rows * width + columns]
    return result.view(x.shape)
