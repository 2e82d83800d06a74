"""A block of gossip peers: they train and send, then each merges what reached it. No clock, no messages of its own.

Pure: result = f(federation, models, inboxes, memory), for rounds and for events, so any worker may compute any block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fedgen.admission import WEIGHT_LIMIT, admit
from fedgen.clients.cohort import Exchange, arrived, sent_by, surviving
from fedgen.contracts import Aggregation, Context, Inbox, Inboxes
from fedgen.federation import Federation
from fedgen.parameters import Array, Layout, Tensors, canonical
from fedgen.rows import LocalRows
from fedgen.topology.graph import Matrix
from fedgen.topology.mixing import mixing_of, normalised

LENGTH = "length"


@dataclass(frozen=True)
class PeerReport:
    """What a block of peers holds and sends after training.

    clients[n]: who trained.  own[n, d]: their models, and what is seen of them.  sent[n, d]: what leaves them, None
    where that is the same.  weights[n].  rejected: client -> why its message cannot be read.  failed: client -> why it
    did not train.
    """

    clients: Tensor
    own: Tensor
    seen: Tensors
    sent: Tensor | None
    sent_seen: Tensors | None
    weights: Tensor
    rejected: dict[int, str]
    failed: dict[int, str]
    client_state: Tensors
    metrics: Tensors


def train_peers(federation: Federation, exchange: Exchange, start: Tensor, *rest: Any) -> tuple[PeerReport]:
    """One block of peers, each from its own row of start[N, d]."""
    *tensors, clients, client_state = rest
    broadcast = exchange.broadcast(start, tensors)
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
            seen=observe(federation, own),
            sent=None if sent is own else sent,
            sent_seen=None if sent is own else observe(federation, sent),
            weights=weights,
            rejected={int(block.clients[position]): reason for position, reason in malformed.items()},
            failed=failed,
            client_state=update.client_state,
            metrics=update.metrics,
        ),
    )


@dataclass(frozen=True)
class Merge:
    """What the blocks of one merging have in common, besides models and the rest of their states, by names.

    senders[m], weights[m], seen {name: [m, ...]}: of every message (see `observe`).  own_seen {name: [N, ...]}: of
    every peer's own model, None where each block is to look.
    """

    round: int
    layout: Layout
    names: tuple[str, ...]
    senders: Array
    weights: Array
    seen: Tensors
    own_seen: Tensors | None = None


@dataclass(frozen=True)
class MergeReport:
    """Peers after merging: state {name: [k, ...]}.

    refused: sender -> (why, by how many receivers); alone: receivers of fewer messages than the rule needs.
    memory: {name: [k, ...]} where the rule mixes, else {"receiver/name": ...}.  diagnostics {name: [k, ...]}: what the
    rule told of each inbox, NaN where it did not.
    """

    receivers: Tensor
    state: Tensors
    refused: dict[int, tuple[str, int]]
    alone: list[int]
    memory: Tensors
    diagnostics: Tensors


def merge_peers(federation: Federation, merge: Merge, own: Tensor, sent: Tensor, *rest: Any) -> MergeReport:
    """Every receiver merges its inbox into its own model, and runs the server half of the method on its own state.

    own[N, d]: all peers' models; sent[m, d]: messages.  rest: the other tensors of all peers' states, then
    receivers[k], heard csr[k, m] (mixing weights of the messages that arrived) and the rule's memory.
    """
    *tensors, receivers, heard, memory = rest
    mine = canonical(own.index_select(0, receivers))
    if merge.own_seen is None:
        own_seen = observe(federation, mine)
    else:
        own_seen = {name: value[receivers] for name, value in merge.own_seen.items()}
    admitted, refused = _admitted(federation, merge, mine, own_seen, sent, heard)
    if getattr(federation.rule, "mixes", False):
        merged = _mixed(federation, merge, mine, own_seen, sent, admitted, memory)
    else:
        merged = _each(federation, merge, mine, sent, receivers, heard, admitted, memory)
    state = {name: tensor.index_select(0, receivers) for name, tensor in zip(merge.names, tensors, strict=True)}
    equal = torch.ones(len(receivers), dtype=torch.float64)
    inbox = Inbox(receivers, equal, None, lambda: Aggregation(merged.models.sub_(mine)))
    state = federation.method.server_update({**state, "model": mine}, inbox, merge.round)
    return MergeReport(receivers, state, refused, merged.alone, merged.memory, merged.diagnostics)


@dataclass(frozen=True)
class Merged:
    """models[k, d] after merging; the rest is as in MergeReport."""

    models: Tensor
    alone: list[int]
    memory: Tensors
    diagnostics: Tensors


def _mixed(
    federation: Federation,
    merge: Merge,
    mine: Tensor,
    own_seen: Tensors,
    sent: Tensor,
    admitted: Matrix,
    memory: Tensors,
) -> Merged:
    weights, received = normalised(admitted)
    share = _share(federation, received)
    inboxes = Inboxes(mine, sent, weights, share, merge.layout, merge.seen, own_seen, memory)
    mixed = federation.rule.mix(inboxes)  # type: ignore[attr-defined]
    return Merged(mixed.models, [], mixed.memory, mixed.diagnostics)


def _each(
    federation: Federation,
    merge: Merge,
    mine: Tensor,
    sent: Tensor,
    receivers: Tensor,
    heard: Matrix,
    admitted: Matrix,
    memory: Tensors,
) -> Merged:
    """One inbox after another, by any rule: rows are differences from the receiver's own model."""
    merged, alone = mine.clone(), []
    kept: Tensors = {}
    told: list[Tensors] = []
    f = federation.experiment.aggregation.f
    _, received = normalised(admitted)
    shares = _share(federation, received)
    for place, receiver in enumerate(receivers.tolist()):
        inside = slice(admitted.indptr[place], admitted.indptr[place + 1])
        messages = torch.from_numpy(admitted.indices[inside].astype(np.int64))
        senders = torch.from_numpy(merge.senders)[messages]
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
        rows = LocalRows(sent.index_select(0, messages).sub_(mine[place]), federation.slice_width)
        result = federation.rule.aggregate(rows, torch.from_numpy(admitted.data[inside]), context)
        merged[place].add_(result.aggregate, alpha=context.share)
        kept |= {f"{receiver}/{name}": value for name, value in result.memory.items()}
        told.append({**result.diagnostics, **_trust(federation, merge.round, senders, result.coefficients)})
    return Merged(merged, alone, kept, _stacked(told))


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
    federation: Federation, merge: Merge, mine: Tensor, own_seen: Tensors, sent: Tensor, heard: Matrix
) -> tuple[Matrix, dict[int, tuple[str, int]]]:
    """The messages that pass admission, with their weights, and why others do not.

    |sent - own| <= |sent| + |own| spares almost every message the way to its own difference.
    """
    limit = federation.norm_limit("train")
    longest = own_seen[LENGTH].numpy(), merge.seen[LENGTH].numpy()
    receiver = np.repeat(np.arange(len(mine)), np.diff(heard.indptr))
    message = heard.indices
    weighty = (merge.weights[message] > 0) & (merge.weights[message] <= WEIGHT_LIMIT)
    sure = (longest[0][receiver] + longest[1][message] <= limit) & weighty
    refused: dict[int, tuple[str, int]] = {}
    passed = sure.copy()
    for edge in np.flatnonzero(~sure).tolist():
        difference = sent[int(message[edge])] - mine[int(receiver[edge])]
        weight = torch.from_numpy(merge.weights[message[edge : edge + 1]])
        admission = admit(LocalRows(difference[None]).norms(), weight, limit)
        passed[edge] = bool(admission.mask[0])
        if not passed[edge]:
            sender = int(merge.senders[message[edge]])
            why, times = refused.get(sender, (admission.reasons.get(0, ""), 0))
            refused[sender] = why, times + 1
    if passed.all() and (merge.weights == 1).all():
        return heard, refused
    weights = heard.data * merge.weights[message]
    return csr_array((weights[passed], (receiver[passed], message[passed])), shape=heard.shape), refused


def observe(federation: Federation, models: Tensor) -> Tensors:
    """{name: [n, ...]}: what is wanted of models[n, d] once, not once for everybody who hears them.

    LENGTH: their Euclidean lengths, rounded up; infinite or NaN where float32 does not hold their squares.  The rest is
    the rule's.
    """
    length = torch.linalg.vector_norm(models, dim=1).double().mul_(1 + 1e-4)
    if not getattr(federation.rule, "mixes", False):
        return {LENGTH: length}
    return {LENGTH: length, **federation.rule.observe(models, federation.method.layout)}  # type: ignore[attr-defined]


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
