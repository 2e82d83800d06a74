"""A block of gossip peers: they train and send, then each merges what reached it. No clock, no messages of its own.

Pure: result = f(federation, models, inboxes, memory), for rounds and for events, so any worker may compute any block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fedgen.admission import WEIGHT_LIMIT, admit
from fedgen.clients.cohort import Exchange, arrived, sent_by, surviving
from fedgen.contracts import Broadcast, Context, Inboxes
from fedgen.federation import Federation
from fedgen.parameters import Array, Layout, Tensors, canonical
from fedgen.rows import LocalRows
from fedgen.topology.graph import Matrix
from fedgen.topology.mixing import mixing_of, normalised


@dataclass(frozen=True)
class PeerReport:
    """What a block of peers holds and sends after training.

    clients[n]: who trained.  own[n, d]: their models.  sent[n, d]: what leaves them, None where that is the same.
    weights[n].  rejected: client -> why its message cannot be read.  failed: client -> why it did not train.
    """

    clients: Tensor
    own: Tensor
    sent: Tensor | None
    weights: Tensor
    rejected: dict[int, str]
    failed: dict[int, str]
    client_state: Tensors
    metrics: Tensors


def train_peers(federation: Federation, exchange: Exchange, start: Tensor, *rest: Any) -> tuple[PeerReport]:
    """One block of peers, each from its own row of start[N, d]."""
    *tensors, clients, client_state = rest
    broadcast = Broadcast(start, exchange.expects, dict(zip(exchange.names, tensors, strict=True)), exchange.phase)
    block = federation.block(clients, canonical(start.index_select(0, clients)), client_state, exchange.round)
    update, block, failed = surviving(federation, broadcast, block)
    own = update.rows.add_(block.start)
    nothing = torch.zeros(exchange.expects.size)
    sent, weights = sent_by(federation, exchange, block, replace(update, rows=own), nothing)
    sent, weights, malformed = arrived(federation, exchange, block, sent, weights)
    return (
        PeerReport(
            clients=block.clients,
            own=own,
            sent=None if sent is own else sent,
            weights=weights,
            rejected={int(block.clients[position]): reason for position, reason in malformed.items()},
            failed=failed,
            client_state=update.client_state,
            metrics=update.metrics,
        ),
    )


@dataclass(frozen=True)
class Merge:
    """What the blocks of one merging have in common, besides models.

    lengths[N]: of every model as sent, rounded up; weights[N]: of every sender; seen {name: [N, ...]}: what the rule
    wants to know of every message.
    """

    round: int
    layout: Layout
    lengths: Array
    weights: Array
    seen: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class MergeReport:
    """Models after merging: merged[k, d].

    refused: sender -> (why, by how many receivers); alone: receivers of fewer messages than the rule needs.
    memory: {name: [k, ...]} where the rule mixes, else {"receiver/name": ...}.  diagnostics {name: [k, ...]}: what the
    rule told of each inbox, NaN where it did not.
    """

    receivers: Tensor
    merged: Tensor
    refused: dict[int, tuple[str, int]]
    alone: list[int] = field(default_factory=list)
    memory: Tensors = field(default_factory=dict)
    diagnostics: Tensors = field(default_factory=dict)


def merge_peers(
    federation: Federation, merge: Merge, own: Tensor, sent: Tensor, receivers: Tensor, heard: Matrix, memory: Tensors
) -> MergeReport:
    """Every receiver's own model and its inbox become its next model.

    own[N, d], sent[N, d]: all peers' models, and as they were sent.  heard: csr[k, N], the mixing weights of the
    messages that arrived.
    """
    mine = canonical(own.index_select(0, receivers))
    admitted, refused = _admitted(federation, merge, mine, sent, heard)
    if getattr(federation.rule, "mixes", False):
        return _mixed(federation, merge, mine, sent, receivers, admitted, refused, memory)
    return _each(federation, merge, mine, sent, receivers, heard, admitted, refused, memory)


def _mixed(
    federation: Federation,
    merge: Merge,
    mine: Tensor,
    sent: Tensor,
    receivers: Tensor,
    admitted: Matrix,
    refused: dict[int, tuple[str, int]],
    memory: Tensors,
) -> MergeReport:
    weights, received = normalised(admitted)
    share = _share(federation, received)
    inboxes = Inboxes(mine, sent, weights, share, merge.layout, merge.seen, memory)
    mixed = federation.rule.mix(inboxes)  # type: ignore[attr-defined]
    return MergeReport(receivers, mixed.models, refused, [], mixed.memory, mixed.diagnostics)


def _each(
    federation: Federation,
    merge: Merge,
    mine: Tensor,
    sent: Tensor,
    receivers: Tensor,
    heard: Matrix,
    admitted: Matrix,
    refused: dict[int, tuple[str, int]],
    memory: Tensors,
) -> MergeReport:
    """One inbox after another, by any rule: rows are differences from the receiver's own model."""
    merged, alone = mine.clone(), []
    kept: Tensors = {}
    told: list[Tensors] = []
    f = federation.experiment.aggregation.f
    _, received = normalised(admitted)
    shares = _share(federation, received)
    for place, receiver in enumerate(receivers.tolist()):
        inside = slice(admitted.indptr[place], admitted.indptr[place + 1])
        senders = torch.from_numpy(admitted.indices[inside].astype(np.int64))
        allowed = max(0, f - int(heard.indptr[place + 1] - heard.indptr[place] - len(senders)))
        if len(senders) < max(1, federation.rule.minimum(allowed)):
            alone.append(receiver)
            told.append({})
            continue
        context = Context(
            reference=mine[place],
            layout=merge.layout,
            clients=senders,
            f=allowed,
            memory=_of(receiver, memory),
            round=merge.round,
            streams=federation.streams,
            share=float(shares[place]),
        )
        rows = LocalRows(sent.index_select(0, senders).sub_(mine[place]), federation.slice_width)
        result = federation.rule.aggregate(rows, torch.from_numpy(admitted.data[inside]), context)
        merged[place].add_(result.aggregate, alpha=context.share)
        kept |= {f"{receiver}/{name}": value for name, value in result.memory.items()}
        told.append({**result.diagnostics, **_trust(federation, merge.round, senders, result.coefficients)})
    return MergeReport(receivers, merged, refused, alone, kept, _stacked(told))


def _of(receiver: int, memory: Tensors) -> Tensors:
    prefix = f"{receiver}/"
    return {name.removeprefix(prefix): value for name, value in memory.items() if name.startswith(prefix)}


def _trust(federation: Federation, round: int, senders: Tensor, coefficients: Tensor | None) -> Tensors:
    """Mean coefficients of honest and of Byzantine senders, in equal shares."""
    if coefficients is None:
        return {}
    liars = federation.liars(senders, round)
    groups = {"honest": coefficients[~liars], "byzantine": coefficients[liars]}
    return {name: part.mean() * len(coefficients) for name, part in groups.items() if len(part)}


def _stacked(told: Sequence[Tensors]) -> Tensors:
    """{name: [k, ...]} of what k inboxes told, NaN where one told nothing; what is of each sender is left out."""
    stacked = {}
    for name in dict.fromkeys(name for each in told for name in each):
        shapes = {each[name].shape for each in told if name in each}
        if len(shapes) == 1:
            blank = torch.full(shapes.pop(), torch.nan, dtype=torch.float64)
            stacked[name] = torch.stack([each.get(name, blank).double() for each in told])
    return stacked


def _share(federation: Federation, received: Array) -> Array:
    section = federation.experiment.federation
    return mixing_of(section.mixing, section.keep).share(received)


def _admitted(
    federation: Federation, merge: Merge, mine: Tensor, sent: Tensor, heard: Matrix
) -> tuple[Matrix, dict[int, tuple[str, int]]]:
    """The messages that pass admission, with their weights, and why others do not.

    |sent - own| <= |sent| + |own| spares almost every message the way to its own difference.
    """
    limit = federation.norm_limit("train")
    receiver = np.repeat(np.arange(len(mine)), np.diff(heard.indptr))
    sender = heard.indices
    weighty = (merge.weights[sender] > 0) & (merge.weights[sender] <= WEIGHT_LIMIT)
    sure = (merge.lengths[sender] + lengths(mine)[receiver] <= limit) & weighty
    refused: dict[int, tuple[str, int]] = {}
    passed = sure.copy()
    for edge in np.flatnonzero(~sure).tolist():
        difference = sent[int(sender[edge])] - mine[int(receiver[edge])]
        weight = torch.from_numpy(merge.weights[sender[edge : edge + 1]])
        admission = admit(LocalRows(difference[None]).norms(), weight, limit)
        passed[edge] = bool(admission.mask[0])
        if not passed[edge]:
            why, times = refused.get(int(sender[edge]), (admission.reasons.get(0, ""), 0))
            refused[int(sender[edge])] = why, times + 1
    if passed.all() and (merge.weights == 1).all():
        return heard, refused
    weights = heard.data * merge.weights[sender]
    return csr_array((weights[passed], (receiver[passed], sender[passed])), shape=heard.shape), refused


def lengths(rows: Tensor) -> Array:
    """float64[n]: Euclidean lengths, rounded up; infinite or NaN where float32 does not hold their squares."""
    found: Array = torch.linalg.vector_norm(rows, dim=1).double().mul_(1 + 1e-4).numpy()
    return found


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
