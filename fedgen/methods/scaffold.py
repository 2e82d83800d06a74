"""SCAFFOLD: control variates against client drift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedgen.contracts import Block, Broadcast, Inbox, Update
from fedgen.errors import SettingError
from fedgen.methods.sgd import LocalSgd
from fedgen.parameters import Tensors
from fedgen.registry import register
from fedgen.training.optimizers import Sgd
from fedgen.training.server_optimizers import stepped

CONTROL = "control"


@register("method", "scaffold")
@dataclass(frozen=True, kw_only=True)
class Scaffold(LocalSgd):
    """Local SGD whose every gradient is corrected by the difference of two control variates.

    w <- w - lr (g_i(w) - c_i + c);  c_i+ = c_i - c + (w_start - w_end) / (K lr);  row = [w_end - w_start | c_i+ - c_i]
    c <- c + sum of p_i over S * aggregate of the second half, so that c = sum of p_i c_i over all clients, for the mean

    K: steps of the client in this round, S: clients admitted, p_i: the weight of client i over that of all clients
    (facts.weights).  c is state "control", c_i client state.  A client that was never admitted has c_i = 0.

    Raises SettingError for an optimiser other than plain SGD, for which (w_start - w_end) / (K lr) is no gradient.
    Source: S. P. Karimireddy et al., arXiv 1910.06378 (2020), algorithm 1 with option II.  There all clients weigh the
    same, p_i = 1 / N; here the experiment's weights and rule apply to both halves of the row.
    """

    modes: ClassVar[frozenset[str]] = frozenset({"star"})

    def __post_init__(self) -> None:
        optimizer = self.learner.trainer.optimizer
        if not isinstance(optimizer, Sgd) or optimizer.momentum:
            raise SettingError(
                f"training.method 'scaffold' needs training.optimizer 'sgd' without momentum, not {optimizer}"
            )

    def initial_state(self, replica: int) -> Tensors:
        state = super().initial_state(replica)
        return {**state, CONTROL: state["model"].new_zeros(self.learner.model.parameters.size)}

    def broadcast(self, state: Tensors, round: int) -> Broadcast:
        expects = self.layout.extended(**{CONTROL: state[CONTROL].shape[-1:]})
        return Broadcast(state["model"], expects, {CONTROL: state[CONTROL]})

    def client_update(self, broadcast: Broadcast, block: Block) -> Update:
        trainer = self.learner.trainer
        common = broadcast.tensors[CONTROL]
        own = block.stored(CONTROL, block.start[:, : len(common)])
        correction = common - own
        trained = trainer.train(block, control=correction)
        moved = trained.rows.sub_(block.start)
        lr = trainer.schedule.factor(block.round) * trainer.optimizer.lr
        if lr == 0:  # nothing moved, and nothing is known of the gradients
            change = torch.zeros_like(own)
        else:
            change = -common - moved[:, : len(common)] / (lr * trained.steps.clamp_min(1))[:, None]
        state = {**trained.client_state, CONTROL: own + change}
        return Update(torch.cat([moved, change], 1), block.counts.double(), state, {"train_loss": trained.losses})

    def server_update(self, state: Tensors, inbox: Inbox, round: int) -> Tensors:
        update, change = inbox.aggregate.tensor_split([self.layout.size], dim=-1)
        weights = self.facts.weights
        share = float(weights[inbox.clients].sum() / weights.sum())
        stepping = stepped(self.learner.server_optimizer, state, update, self.layout)
        return {**stepping, CONTROL: state[CONTROL] + share * change}
