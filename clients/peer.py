"""A block of gossip peers: they train and send, and are evaluated; `merging` is what they do with what they hear.

Pure: result = f(federation, models, client state), for rounds and for events, so any worker may compute any block.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedgen.clients.cohort import Exchange, arrived, sent_by, surviving
from fedgen.clients.mail import observe
from fedgen.federation import Federation
from fedgen.parameters import Tensors, canonical


@dataclass(frozen=True)
class PeerReport:
    """What a block of peers tells the coordinator: who trained, and why a message cannot be read, or a peer did not
    train."""

    clients: Tensor
    weights: Tensor
    rejected: dict[int, str]
    failed: dict[int, str]
    client_state: Tensors
    metrics: Tensors


@dataclass(frozen=True)
class Models:
    """Of a block of peers after training: own[n, d], and what is seen of them; sent[n, d]: what leaves them, None where
    that is the same."""

    own: Tensor
    seen: Tensors
    sent: Tensor | None
    sent_seen: Tensors | None


def train_peers(federation: Federation, exchange: Exchange, start: Tensor, *rest: Any) -> tuple[PeerReport, Models]:
    """One block of peers, each from its own row of start[N, d]."""
    *tensors, clients, client_state = rest
    broadcast = exchange.broadcast(start, tensors)
    block = federation.block(clients, canonical(start.index_select(0, clients)), client_state, exchange.round)
    update, block, failed = surviving(federation, broadcast, block)
    exchange = replace(exchange, expects=federation.sent_layout(exchange.expects))
    if exchange.expects.size > update.rows.shape[1]:
        changed = update.rows[:, federation.method.layout.parameters]
        own = torch.cat([update.rows + block.start, changed], dim=1)
    else:
        own = update.rows.add_(block.start)
    nothing = torch.zeros(exchange.expects.size)
    unchanged = torch.zeros(len(own), own.shape[1] - block.start.shape[1])
    start = torch.cat([block.start, unchanged], dim=1) if unchanged.numel() else block.start
    sent, weights = sent_by(federation, exchange, block, replace(update, rows=own), nothing, start)
    sent, weights, malformed = arrived(federation, exchange.expects, exchange.round, block.clients, sent, weights)
    report = PeerReport(
        clients=block.clients,
        weights=weights,
        rejected={int(block.clients[position]): reason for position, reason in malformed.items()},
        failed=failed,
        client_state=update.client_state,
        metrics=update.metrics,
    )
    same = sent is own
    seen = observe(federation, own)
    return report, Models(own, seen, None if same else sent, None if same else observe(federation, sent))


def evaluate_peers(federation: Federation, names: tuple[str, ...], *rest: Any) -> tuple[dict[str, Tensor], int]:
    """({metric: float64[k]} of k peers on one part of a held-back set, its number of samples).

    rest: the tensors of all peers' states in the order of names, then the number of the set, the samples' slice and the
    peers' slice.
    """
    *tensors, number, samples, peers = rest
    held = federation.evaluations[number]
    x, y = held.x[samples], held.y[samples]
    state = {name: tensor[peers] for name, tensor in zip(names, tensors, strict=True)}
    return held.named(federation.method.evaluate(state, x, y)), len(y)
