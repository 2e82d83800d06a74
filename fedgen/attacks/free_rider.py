"""Free riders: take the model, train nothing, send something that looks like work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack, Distort, Draws
from fedgen.contracts import Columns, Rows, View
from fedgen.parameters import Tensors
from fedgen.registry import register

REFERENCE = "reference"
"""Memory: the model that free riders received when one of them last took part."""


@register("attack", "free_rider")
@dataclass(frozen=True, kw_only=True)
class FreeRider(BaseAttack):
    """Sends what the others achieved last time, or nothing, with noise as a disguise; never what was trained.

    g_i <- w_t - w_s ("last") or 0 ("zeros"), plus noise * (t + 1)^-decay * z_i, z_i ~ N(0, 1)

    w_t: the model of this round t.  w_s: the one of the last round s < t in which free riders took part, which they
    remember together as the attack's memory; in their first round the difference is 0.  Only the coordinator keeps an
    attack's memory, so free riders act on the whole round, of which they look at nothing.

    In gossip, where models are sent, a free rider sends the model that its training would have begun from, which holds
    what the others achieved: g_i <- start_i + noise.

    >>> FreeRider()([[1.0, 2.0], [3.0, 4.0]], byzantine=[1])
    tensor([[1., 2.],
            [0., 0.]])

    Source: "last" is the delta-weights attack of J. Lin, M. Du, J. Liu, arXiv 1911.12560 (2019); "zeros"
    with noise the disguised free rider of Y. Fraboni, R. Vidal, M. Lorenzi, arXiv 2006.11901 (2021).  The
    simulation trains a free rider all the same, and throws the result away.
    """

    update: Annotated[Literal["last", "zeros"], Field(description="what is sent below the noise")] = "last"
    noise: Annotated[float, Field(ge=0, description="standard deviation of the disguise in round 0")] = 0.0
    decay: Annotated[float, Field(ge=0, description="power of the round by which the disguise shrinks")] = 0.0
    omniscient: ClassVar[bool] = True

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        known = view.memory.get(REFERENCE, view.context.reference)
        now = view.context.reference
        if view.start is not None:
            step = view.start[view.byzantine]
        else:
            step = now - known if self.update == "last" else torch.zeros_like(now)
        noise = self.noise * (view.context.round + 1) ** -self.decay
        lie = Pretence(step, noise, Draws.of(view, "free_rider"))
        return rows.map(Distort.of(view, lie)), view.weights, {REFERENCE: now}


@dataclass(frozen=True)
class Pretence:
    """slab[k, c] -> step[c] or [k, c] + noise * N(0, 1)."""

    step: Tensor
    noise: float
    draws: Draws

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        same = self.step[..., columns].expand(slab.shape).to(slab.dtype)
        return same + self.noise * self.draws.normal(columns).to(slab.device) if self.noise else same
