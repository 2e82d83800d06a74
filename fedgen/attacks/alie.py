"""A Little Is Enough: all Byzantine clients shift their update within the spread of the honest ones."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack, Replace
from fedgen.attacks.gram import Along, Deviation
from fedgen.attacks.search import strongest
from fedgen.contracts import Rows, View
from fedgen.errors import SettingError
from fedgen.parameters import Tensors
from fedgen.registry import register


@register("attack", "alie")
@dataclass(frozen=True, kw_only=True)
class ALittleIsEnough(BaseAttack):
    """Sends the honest mean plus z standard deviations in every coordinate, too near to stand out.

    g_i <- mean + z * std over the honest rows, for Byzantine i.  The paper's mean - z * std is of gradients, whose
    negatives updates are; a negative z pulls to the other side.

    z: `z` where given; else the paper's z_max(n, f), f Byzantine among n rows:
    z_max = Phi^-1((n - f - s) / (n - f)), s = floor(n / 2 + 1) - f, Phi the normal distribution function.
    With `optimize`, the z in 0.1 .. 100 that moves the running rule farthest from the honest mean
    (16 points evenly spaced by ratio, then 8 golden sections, on inner products where the rule needs no more).
    Without honest rows nothing is changed.

    >>> ALittleIsEnough(z=2.0)([[1.0, 5.0], [3.0, 5.0], [0.0, 0.0]], byzantine=[2])
    tensor([[1., 5.],
            [3., 5.],
            [4., 5.]])
    >>> round(z_max(50, 24), 2)
    1.43

    Source: M. Baruch, G. Baruch, Y. Goldberg, arXiv 1902.06156 (2019), "preventing convergence".  There the attackers
    estimate mean and deviation from their own updates; here, as in later work, they see the honest ones.  With few
    attackers the formula falls below 0, which would help the mean: then z is 0; at least one honest row counts as a
    supporter.  The line search is that of Y. Allouah et al., arXiv 2302.01772 (2023), experiments.
    """

    z: Annotated[
        float | None, Field(allow_inf_nan=False, description="standard deviations; by the paper's formula if left out")
    ] = None
    optimize: Annotated[bool, Field(description="the z that moves the running rule farthest")] = False
    omniscient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.optimize and self.z is not None:
            raise SettingError(
                f"byzantine.attack 'alie': z = {self.z} is fixed and optimize = true searches it; leave one of them out"
            )

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        honest = ~view.byzantine
        if not honest.any():
            return rows, view.weights, view.memory
        deviation = Deviation(honest)
        lie = Along(honest, 1.0, self._strength(rows, view, deviation), deviation)
        return rows.map(Replace.of(view, lie)), view.weights, view.memory

    def _strength(self, rows: Rows, view: View, deviation: Deviation) -> float:
        if self.optimize:
            return strongest(rows, view, lambda z: (1.0, z), deviation)
        return z_max(len(view.byzantine), int(view.byzantine.sum())) if self.z is None else self.z


def z_max(n: int, f: int) -> float:
    """Largest number of standard deviations for which f Byzantine rows among n still get a majority."""
    supporters = max(n // 2 + 1 - f, 1)
    share = (n - f - supporters) / (n - f)
    return max(NormalDist().inv_cdf(share), 0.0) if share > 0 else 0.0
