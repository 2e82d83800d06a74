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
from fedgen.aggregation.variance_correction import FACTOR
from fedgen.clients.cohort import Exchange, arrived, sent_by, surviving
from fedgen.clients.lies import Known, lies_to_each
from fedgen.clients.mail import Mail
from fedgen.contracts import Aggregation, Context, Inbox, Inboxes
from fedgen.federation import Federation
from fedgen.parameters import Array, Layout, Tensors, canonical
from fedgen.rows import LocalRows
from fedgen.topology.graph import Matrix
from fedgen.topology.mixing import mixing_of, normalised

LENGTH = "length"


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
        own = torch.cat([update.rows + block.start, update.rows], dim=1)
    else:
        own = update.rows.add_(block.start)
    nothing = torch.zeros(exchange.expects.size)
    sent, weights = sent_by(federation, exchange, block, replace(update, rows=own), nothing)
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
    memory: {name: [k, ...]} where the rule mixes, else {"receiver/name": ...}; attack_memory: {"receiver/name": ...},
    of attacks on an inbox.  diagnostics {name: [k, ...]}: what the rule told of each inbox, NaN where it did not.
    """

    receivers: Tensor
    state: Tensors
    refused: dict[int, tuple[str, int]]
    alone: list[int]
    memory: Tensors
    attack_memory: Tensors
    diagnostics: Tensors


def merge_peers(federation: Federation, merge: Merge, own: Tensor, sent: Tensor, *rest: Any) -> MergeReport:
    """Every receiver merges its inbox into its own model, and runs the server half of the method on its own state.

    own[N, d]: all peers' models; sent[m, d]: messages, both with deltas behind them where the rule wants them.  rest:
    the other tensors of all peers' states, then receivers[k], heard csr[k, m] (mixing weights of the messages that
    arrived) and the memories of rule and attack.
    """
    *tensors, receivers, heard, memory, attack_memory = rest
    mine = canonical(own.index_select(0, receivers))
    if merge.own_seen is None:
        own_seen = observe(federation, mine)
    else:
        own_seen = {name: value[receivers] for name, value in merge.own_seen.items()}
    mail = Mail(sent, merge.senders, merge.weights, merge.seen, heard)
    if federation.lies_to_each("train"):
        mail, attack_memory = _lied_to(federation, merge, mine, mail, receivers, memory, attack_memory)
    admitted, refused = _admitted(federation, mine, own_seen, mail)
    if getattr(federation.rule, "mixes", False):
        merged = _mixed(federation, merge, mine, own_seen, mail, admitted, memory)
    else:
        merged = _each(federation, merge, mine, mail, receivers, admitted, memory)
    state = {name: tensor.index_select(0, receivers) for name, tensor in zip(merge.names, tensors, strict=True)}
    equal = torch.ones(len(receivers), dtype=torch.float64)
    size = federation.method.layout.size
    inbox = Inbox(receivers, equal, None, lambda: Aggregation(merged.models.sub_(mine)[:, :size]))
    state = federation.method.server_update({**state, "model": mine[:, :size]}, inbox, merge.round)
    return MergeReport(receivers, state, refused, merged.alone, merged.memory, attack_memory, merged.diagnostics)


def _lied_to(
    federation: Federation,
    merge: Merge,
    mine: Tensor,
    mail: Mail,
    receivers: Tensor,
    memory: Tensors,
    attack_memory: Tensors,
) -> tuple[Mail, Tensors]:
    """The mail in which every receiver hears lies of its own, and what the attack remembers of each."""
    _, received = normalised(mail.heard)
    names = receivers.tolist()
    if getattr(federation.rule, "mixes", False):
        remembered = [{name: value[place] for name, value in memory.items()} for place in range(len(names))]
    else:
        remembered = [_of(receiver, memory) for receiver in names]
    known = Known(
        receivers=receivers,
        own=mine,
        share=_share(federation, received),
        round=merge.round,
        layout=merge.layout,
        memory=[_of(receiver, attack_memory) for receiver in names],
        rule_memory=remembered,
    )
    mail = mail.heard_only()
    lies = lies_to_each(federation, mail, known)
    kept = {
        f"{receiver}/{name}": value
        for receiver, held in zip(names, lies.memory, strict=True)
        for name, value in held.items()
    }
    return mail.with_replies(lies.places, lies.sent, lies.weights, observe(federation, lies.sent)), kept


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
    mail: Mail,
    admitted: Matrix,
    memory: Tensors,
) -> Merged:
    weights, received = normalised(admitted)
    share = _share(federation, received)
    inboxes = Inboxes(mine, mail.sent, weights, share, merge.layout, mail.seen, own_seen, memory)
    mixed = federation.rule.mix(inboxes)  # type: ignore[attr-defined]
    return Merged(mixed.models, [], mixed.memory, mixed.diagnostics)


def _each(
    federation: Federation,
    merge: Merge,
    mine: Tensor,
    mail: Mail,
    receivers: Tensor,
    admitted: Matrix,
    memory: Tensors,
) -> Merged:
    """One inbox after another, by any rule: rows are differences from the receiver's own model."""
    merged, alone = mine.clone(), []
    kept: Tensors = {}
    told: list[Tensors] = []
    f = federation.experiment.aggregation.f
    _, received = normalised(admitted)
    shares, arrived_in = _share(federation, received), np.diff(mail.heard.indptr)
    for place, receiver in enumerate(receivers.tolist()):
        inside = slice(admitted.indptr[place], admitted.indptr[place + 1])
        messages = torch.from_numpy(admitted.indices[inside].astype(np.int64))
        senders = torch.from_numpy(mail.senders)[messages]
        allowed = max(0, f - (int(arrived_in[place]) - len(senders)))
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
        rows = LocalRows(mail.sent.index_select(0, messages).sub_(mine[place]), federation.slice_width)
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
    """{name: [k, ...]} of what k inboxes told, NaN where one told nothing: single numbers and factors, as what is of
    each sender has no common shape."""
    stacked = {}
    for name in dict.fromkeys(name for each in told for name in each):
        like = next(each[name] for each in told if name in each)
        if like.dim() == 0 or name == FACTOR:
            blank = torch.full(like.shape, torch.nan, dtype=torch.float64)
            stacked[name] = torch.stack([each.get(name, blank).double() for each in told])
    return stacked


def _share(federation: Federation, received: Array) -> Array:
    section = federation.experiment.federation
    return mixing_of(section.mixing, section.keep).share(received)


def _admitted(
    federation: Federation, mine: Tensor, own_seen: Tensors, mail: Mail
) -> tuple[Matrix, dict[int, tuple[str, int]]]:
    """The messages that pass admission, with their weights, and why others do not.

    |sent - own| <= |sent| + |own| spares almost every message the way to its own difference.
    """
    limit = federation.norm_limit("train")
    heard, message = mail.heard, mail.heard.indices
    longest = own_seen[LENGTH].numpy(), mail.seen[LENGTH].numpy()
    receiver = np.repeat(np.arange(len(mine)), np.diff(heard.indptr))
    weighty = (mail.weights[message] > 0) & (mail.weights[message] <= WEIGHT_LIMIT)
    sure = (longest[0][receiver] + longest[1][message] <= limit) & weighty
    refused: dict[int, tuple[str, int]] = {}
    passed = sure.copy()
    for edge in np.flatnonzero(~sure).tolist():
        difference = mail.sent[int(message[edge])] - mine[int(receiver[edge])]
        weight = torch.from_numpy(mail.weights[message[edge : edge + 1]])
        admission = admit(LocalRows(difference[None]).norms(), weight, limit)
        passed[edge] = bool(admission.mask[0])
        if not passed[edge]:
            sender = int(mail.senders[message[edge]])
            why, times = refused.get(sender, (admission.reasons.get(0, ""), 0))
            refused[sender] = why, times + 1
    if passed.all() and (mail.weights == 1).all():
        return heard, refused
    weights = heard.data * mail.weights[message]
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
