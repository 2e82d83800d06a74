"""Worker momentum: clients send a running mean of their updates, whose small variance exposes Byzantine ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field

from fedgen.contracts import Block, Broadcast, Update
from fedgen.methods.wrapper import MethodWrapper
from fedgen.registry import register

STATE = "worker_momentum"


@register("wrapper", "worker_momentum")
@dataclass(frozen=True, kw_only=True)
class WorkerMomentum(MethodWrapper):
    """Each client sends the running mean of its updates instead of the last one.

    m_i <- beta * m_i + (1 - beta) * g_i, kept as client state "worker_momentum"; the client sends m_i

    Statistics, and columns of a row that are no model, such as SCAFFOLD's controls, are sent as they are.

    Source: S. P. Karimireddy, L. He, M. Jaggi, Learning from history for Byzantine robust optimization, arXiv
    2012.10333 (2021), algorithm 1.
    """

    beta: Annotated[float, Field(ge=0, lt=1, description="share of the past in the running mean")] = 0.9

    def client_update(self, broadcast: Broadcast, block: Block) -> Update:
        update = self.inner.client_update(broadcast, block)
        if broadcast.phase != "train":
            return update
        moved, rest = update.rows.tensor_split([self.layout.parameters.stop], dim=1)
        mean = self.beta * block.stored(STATE, moved) + (1 - self.beta) * moved
        state = {**update.client_state, STATE: mean}
        return replace(update, rows=torch.cat([mean, rest], dim=1), client_state=state)
