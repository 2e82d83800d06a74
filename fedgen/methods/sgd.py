"""Local SGD: federated averaging in a star, gossip learning on a graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedgen.contracts import Block, Broadcast, Facts, Inbox, Method, Update
from fedgen.parameters import Layout, Tensors
from fedgen.registry import register
from fedgen.training.learner import Learner
from fedgen.training.server_optimizers import opened, stepped


@register("method", "sgd")
@dataclass(frozen=True, kw_only=True)
class LocalSgd(Method):
    """Clients train the model on their own samples and send the difference (federated averaging).

    row of client k = w_k - w, weight n_k;  model <- server_optimizer(model, aggregate)

    Source: H. B. McMahan et al., arXiv 1602.05629 (2017), algorithm 1; with a server optimiser, S. Reddi et al.,
    arXiv 2003.00295 (2021), algorithm 1.
    """

    facts: Facts
    learner: Learner
    modes: ClassVar[frozenset[str]] = frozenset({"star", "gossip"})

    @property
    def layout(self) -> Layout:
        return self.learner.model.layout

    def initial_state(self, replica: int) -> Tensors:
        model = self.learner.model.initial(self.facts.streams, replica)
        return opened(self.learner.server_optimizer, model, self.layout)

    def broadcast(self, state: Tensors, round: int) -> Broadcast:
        return Broadcast(state["model"], self.layout)

    def client_update(self, broadcast: Broadcast, block: Block) -> Update:
        trained = self.learner.trainer.train(block)
        metrics = {"train_loss": trained.losses}
        return Update(trained.rows.sub_(block.start), block.counts.double(), trained.client_state, metrics)

    def server_update(self, state: Tensors, inbox: Inbox, round: int) -> Tensors:
        return stepped(self.learner.server_optimizer, state, inbox.aggregate, self.layout)

    def evaluate(self, state: Tensors, x: Tensor, y: Tensor) -> Tensors:
        return self.learner.model.evaluate(state["model"], x, y)
