"""Training and evaluation of a block of gossip peers; see `merging` for what follows; the same for both clocks.

The tasks are pure: result = f(federation, training, members). Any worker can compute any block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgen.clients.cohort import BlockReport, Members, Training, arrived, sent_by, surviving
from fedgen.clients.mail import observe
from fedgen.federation import Federation
from fedgen.leaves import Held
from fedgen.parameters import Tensors, canonical


@dataclass(frozen=True)
class Models:
    """A block of peers after training: models own[n, d] and the models that they send, sent[n, d].

    seen, sent_seen: their observations. sent, sent_seen are None if no attack changed the models.
    """

    own: Tensor
    seen: Tensors
    sent: Tensor | None
    sent_seen: Tensors | None


@dataclass(frozen=True)
class TrainedPeers:
    """The result of a block of peers: its report, and a handle of its models."""

    report: BlockReport
    models: Held[Models]


@dataclass(frozen=True)
class PeersPart:
    """A slice of the peers, and a slice of the samples of evaluation set `number`."""

    number: int
    samples: slice
    peers: slice


def train_peers(federation: Federation, training: Training, members: Members) -> TrainedPeers:
    """Train one block of peers, peer i from row i of start[N, d]."""
    broadcast, round = training.broadcast, training.round
    start = canonical(broadcast.start.index_select(0, members.clients))
    block = federation.block(members.clients, start, members.client_state, round)
    update, block, failed = surviving(federation, broadcast, block)
    layout = federation.sent_layout(broadcast.expects)
    if layout.size > update.rows.shape[1]:
        changed = update.rows[:, federation.method.layout.parameters]
        own = torch.cat([update.rows + block.start, changed], dim=1)
    else:
        own = update.rows.add_(block.start)
    unchanged = torch.zeros(len(own), own.shape[1] - block.start.shape[1])
    began = torch.cat([block.start, unchanged], dim=1) if unchanged.numel() else block.start
    nothing = torch.zeros(layout.size)
    sent, weights = sent_by(federation, training, layout, block, replace(update, rows=own), nothing, began)
    sent, weights, malformed = arrived(federation, layout, round, block.clients, sent, weights)
    report = BlockReport(
        clients=block.clients,
        weights=weights,
        rejected={int(block.clients[position]): reason for position, reason in malformed.items()},
        failed=failed,
        client_state=update.client_state,
        metrics=update.metrics,
    )
    same = sent is own
    seen = observe(federation, own)
    models = Models(own, seen, None if same else sent, None if same else observe(federation, sent))
    return TrainedPeers(report, Held(models))


def evaluate_peers(federation: Federation, state: Tensors, part: PeersPart) -> tuple[Tensors, int]:
    """({metric: float64[k]} of k peers, number of samples) on one part of an evaluation set.

    state {name: [N, ...]}: of all peers.
    """
    evaluation = federation.evaluations[part.number]
    x, y = evaluation.x[part.samples], evaluation.y[part.samples]
    evaluated = {name: tensor[part.peers] for name, tensor in state.items()}
    return evaluation.named(federation.method.evaluate(evaluated, x, y)), len(y)
