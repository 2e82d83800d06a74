"""Noise instead of an update: Gaussian, or uniform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack, Distort, Draws
from fedgen.contracts import Columns, Rows, View
from fedgen.errors import SettingError
from fedgen.parameters import Tensors
from fedgen.registry import register


@register("attack", "gaussian")
@dataclass(frozen=True, kw_only=True)
class Gaussian(BaseAttack):
    """Sends normal noise around zero.

    g_ij <- scale * z_ij, z_ij ~ N(0, 1), drawn by client i, round and column j

    >>> sent = Gaussian(scale=2.0)([[0.0] * 1000, [7.0] * 1000], byzantine=[0])
    >>> [round(float(number), 1) for number in (sent[0].std(), sent[1].mean())]
    [2.0, 7.0]

    Source: P. Blanchard et al., arXiv 1703.02757 (2017), experiments ("Gaussian Byzantine"), scale 200 there.
    """

    scale: Annotated[float, Field(gt=0, description="standard deviation of every coordinate")] = 1.0

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        lie = GaussianNoise(Draws.of(view, "gaussian"), self.scale)
        return rows.map(Distort.of(view, lie)), view.weights, view.memory


@register("attack", "uniform")
@dataclass(frozen=True, kw_only=True)
class Uniform(BaseAttack):
    """Sends uniform noise; with the default bounds, which have a mean, independent attackers still pull one way.

    g_ij <- low + (high - low) * u_ij, u_ij uniform in (0, 1), drawn by client i, round and column j;  low < high

    Two rows of U(0, 1) have the cosine 3/4.

    >>> sent = Uniform()([[0.0] * 1000, [0.0] * 1000], byzantine=[0, 1])
    >>> 0.7 < sent[0] @ sent[1] / (sent[0].norm() * sent[1].norm()) < 0.8
    tensor(True)

    Source: H. Almasi et al., Flag Aggregator, arXiv 2302.05865 (2024), section 3 ("uniformly random gradients").
    """

    low: Annotated[float, Field(allow_inf_nan=False, description="least value of a coordinate")] = 0.0
    high: Annotated[float, Field(allow_inf_nan=False, description="largest value of a coordinate")] = 1.0

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise SettingError(
                f"byzantine.attack 'uniform': low = {self.low} must be less than high = {self.high}; exchange them"
            )

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        lie = UniformNoise(Draws.of(view, "uniform"), self.low, self.high)
        return rows.map(Distort.of(view, lie)), view.weights, view.memory


@dataclass(frozen=True)
class GaussianNoise:
    """slab[k, c] -> scale * N(0, 1)."""

    draws: Draws
    scale: float

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return self.scale * self.draws.normal(columns)


@dataclass(frozen=True)
class UniformNoise:
    """slab[k, c] -> U(low, high)."""

    draws: Draws
    low: float
    high: float

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return self.low + (self.high - self.low) * self.draws.uniform(columns)
