"""Worker momentum: clients send a running mean of their updates, which liars cannot hide behind."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

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

    Source: S. P. Karimireddy, L. He, M. Jaggi, Learning from history for Byzantine robust optimization, arXiv
    2012.10333 (2021), algorithm 1.
    """

    beta: Annotated[float, Field(ge=0, lt=1, description="share of the past in the running mean")] = 0.9

    def client_update(self, broadcast: Broadcast, block: Block) -> Update:
        update = self.inner.client_update(broadcast, block)
        if broadcast.phase != "train":
            return update
        mean = self.beta * block.stored(STATE, update.rows) + (1 - self.beta) * update.rows
        return replace(update, rows=mean, client_state={**update.client_state, STATE: mean})
