"""What method wrappers have in common: everything is the inner method's until a wrapper says otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fedgen.contracts import Block, Broadcast, Inbox, Method, Occasion, Update
from fedgen.exhibits import Exhibit
from fedgen.parameters import Layout, Tensors


@dataclass(frozen=True, kw_only=True)
class MethodWrapper(Method):
    """A Method around a Method; a subclass overrides what it changes, and acts in phase "train" only."""

    inner: Method

    @property
    def modes(self) -> frozenset[str]:
        return self.inner.modes

    @property
    def layout(self) -> Layout:
        return self.inner.layout

    @property
    def setup_rounds(self) -> int:
        return self.inner.setup_rounds

    @property
    def common(self) -> frozenset[str]:
        return self.inner.common

    def initial_state(self, replica: int) -> Tensors:
        return self.inner.initial_state(replica)

    def broadcast(self, state: Tensors, round: int) -> Broadcast:
        return self.inner.broadcast(state, round)

    def client_update(self, broadcast: Broadcast, block: Block) -> Update:
        return self.inner.client_update(broadcast, block)

    def server_update(self, state: Tensors, inbox: Inbox, round: int) -> Tensors:
        return self.inner.server_update(state, inbox, round)

    def evaluate(self, state: Tensors, x: Tensor, y: Tensor) -> Tensors:
        return self.inner.evaluate(state, x, y)

    def exhibits(self, state: Tensors, occasion: Occasion) -> Sequence[Exhibit]:
        return self.inner.exhibits(state, occasion)
