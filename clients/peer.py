"""A block of gossip peers: they train and send, and are evaluated; `merging` is what they do with what they hear.

Pure: result = f(federation, training, members), for rounds and for events, so any worker may compute any block.
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
    """Of a block of peers after training: own[n, d], and what is seen of them; sent[n, d]: what leaves them, None where
    that is the same."""

    own: Tensor
    seen: Tensors
    sent: Tensor | None
    sent_seen: Tensors | None


@dataclass(frozen=True)
class TrainedPeers:
    """What a block of peers tells the coordinator, and apart from it their models."""

    report: BlockReport
    models: Held[Models]


@dataclass(frozen=True)
class PeersPart:
    """Some peers, and samples of one of the held-back sets, by its number."""

    number: int
    samples: slice
    peers: slice


def train_peers(federation: Federation, training: Training, members: Members) -> TrainedPeers:
    """One block of peers, each from its own row of start[N, d]."""
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
    same, seen = sent is own, observe(federation, own)
    models = Models(own, seen, None if same else sent, None if same else observe(federation, sent))
    return TrainedPeers(report, Held(models))


def evaluate_peers(federation: Federation, state: Tensors, part: PeersPart) -> tuple[Tensors, int]:
    """({metric: float64[k]} of k peers on one part of a held-back set, its number of samples).

    state {name: [N, ...]}: of all peers.
    """
    held = federation.evaluations[part.number]
    x, y = held.x[part.samples], held.y[part.samples]
    theirs = {name: tensor[part.peers] for name, tensor in state.items()}
    return held.named(federation.method.evaluate(theirs, x, y)), len(y)
