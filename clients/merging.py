"""A block of gossip peers merges what reached it. No clock, no messages of its own.

Pure: result = f(federation, models, inboxes, memories), for rounds and for events, so any worker may compute any block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fedgen.admission import WEIGHT_LIMIT, judge
from fedgen.aggregation.statistics import apply_rule
from fedgen.aggregation.variance_correction import FACTOR
from fedgen.clients.lies import Known, lies_to_each
from fedgen.clients.mail import LENGTH, SOUND, Mail, observe
from fedgen.contracts import Aggregation, Context, Inbox, Inboxes
from fedgen.federation import Federation
from fedgen.parameters import Array, Layout, Tensors, canonical
from fedgen.rows import LocalRows
from fedgen.topology.graph import Matrix, by_row
from fedgen.topology.mixing import mixing_of, normalised

Refused = dict[int, tuple[str, int]]
"""Sender -> (why it was turned away, by how many receivers)."""


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

    alone: receivers of fewer messages than the rule needs.
    memory: {name: [k, ...]} where the rule mixes, else {"receiver/name": ...}; attack_memory: {"receiver/name": ...},
    of attacks on an inbox.  diagnostics {name: [k, ...]}: what the rule told of each inbox, NaN where it did not.
    """

    receivers: Tensor
    state: Tensors
    refused: Refused
    alone: list[int]
    memory: Tensors
    attack_memory: Tensors
    diagnostics: Tensors


@dataclass(frozen=True)
class Receivers:
    """k peers before they merge: own[k, d], what is seen of it, and their mail."""

    clients: Tensor
    own: Tensor
    seen: Tensors
    mail: Mail


@dataclass(frozen=True)
class Merged:
    """models[k, d] after merging; the rest is as in MergeReport."""

    models: Tensor
    alone: list[int]
    memory: Tensors
    diagnostics: Tensors


def merge_peers(federation: Federation, merge: Merge, own: Tensor, sent: Tensor, *rest: Any) -> MergeReport:
    """Every receiver merges its inbox into its own model, and runs the server half of the method on its own state.

    own[N, d]: all peers' models; sent[m, d]: messages, both with deltas behind them where the rule wants them.  rest:
    the other tensors of all peers' states, then receivers[k], heard csr[k, m] (mixing weights of the messages that
    arrived) and the memories of rule and attack.
    """
    *tensors, clients, heard, memory, attack_memory = rest
    mine = canonical(own.index_select(0, clients))
    known = merge.own_seen
    seen = observe(federation, mine) if known is None else {name: value[clients] for name, value in known.items()}
    peers = Receivers(clients, mine, seen, Mail(sent, merge.senders, merge.weights, merge.seen, heard))
    if federation.lies_to_each("train"):
        peers, attack_memory = _lied_to(federation, merge, peers, memory, attack_memory)
    admitted, refused = _admitted(federation, merge.layout, peers)
    merged = (_mixed if federation.mixes else _each)(federation, merge, peers, admitted, memory)
    size = federation.method.layout.size
    state = {name: tensor.index_select(0, clients) for name, tensor in zip(merge.names, tensors, strict=True)}
    equal = torch.ones(len(clients), dtype=torch.float64)
    inbox = Inbox(clients, equal, None, lambda: Aggregation(merged.models.sub_(mine)[:, :size]))
    state = federation.method.server_update({**state, "model": mine[:, :size]}, inbox, merge.round)
    return MergeReport(clients, state, refused, merged.alone, merged.memory, attack_memory, merged.diagnostics)


def _lied_to(
    federation: Federation, merge: Merge, peers: Receivers, memory: Tensors, attack_memory: Tensors
) -> tuple[Receivers, Tensors]:
    """The receivers when each of them has heard lies of its own, and what the attack remembers of each."""
    mail, clients = peers.mail.heard_only(), peers.clients.tolist()
    known = Known(
        receivers=peers.clients,
        own=peers.own,
        share=_share(federation, normalised(mail.heard)[1]),
        round=merge.round,
        layout=merge.layout,
        memory=[_of(client, attack_memory) for client in clients],
        rule_memory=[
            {name: value[place] for name, value in memory.items()} if federation.mixes else _of(client, memory)
            for place, client in enumerate(clients)
        ],
    )
    lies = lies_to_each(federation, mail, known)
    mail = mail.with_replies(lies.places, lies.sent, lies.weights, observe(federation, lies.sent))
    kept = [_named(client, held) for client, held in zip(clients, lies.memory, strict=True)]
    return replace(peers, mail=mail), {name: value for each in kept for name, value in each.items()}


def _mixed(federation: Federation, merge: Merge, peers: Receivers, admitted: Matrix, memory: Tensors) -> Merged:
    """All inboxes at once."""
    weights, received = normalised(admitted)
    inboxes = Inboxes(
        own=peers.own,
        sent=peers.mail.sent,
        weights=weights,
        share=_share(federation, received),
        layout=merge.layout,
        seen=peers.mail.seen,
        own_seen=peers.seen,
        memory=memory,
    )
    batched = federation.rule.batched()
    assert batched is not None
    mixed = batched.merge(inboxes)
    return Merged(mixed.models, [], mixed.memory, mixed.diagnostics)


def _each(federation: Federation, merge: Merge, peers: Receivers, admitted: Matrix, memory: Tensors) -> Merged:
    """One inbox after another, by any rule: rows are differences from the receiver's own model."""
    merged, alone = peers.own.clone(), []
    kept: Tensors = {}
    told: list[Tensors] = []
    shares = _share(federation, normalised(admitted)[1])
    lacking = np.diff(peers.mail.heard.indptr) - np.diff(admitted.indptr)
    for place, receiver in enumerate(peers.clients.tolist()):
        inside = slice(admitted.indptr[place], admitted.indptr[place + 1])
        messages = torch.from_numpy(admitted.indices[inside].astype(np.int64))
        allowed = max(0, federation.experiment.aggregation.f - int(lacking[place]))
        if len(messages) < max(1, federation.rule.minimum(allowed)):
            alone.append(receiver)
            told.append({})
            continue
        context = Context(
            reference=peers.own[place],
            layout=merge.layout,
            clients=torch.from_numpy(peers.mail.senders)[messages],
            f=allowed,
            memory=_of(receiver, memory),
            round=merge.round,
            streams=federation.streams,
            share=float(shares[place]),
        )
        rows = LocalRows(peers.mail.sent.index_select(0, messages).sub_(peers.own[place]), federation.slice_width)
        result = apply_rule(federation.rule, rows, torch.from_numpy(admitted.data[inside]), context)
        merged[place].add_(result.aggregate, alpha=context.share)
        kept |= _named(receiver, result.memory)
        told.append({**result.diagnostics, **_trust(federation, merge.round, context.clients, result.coefficients)})
    return Merged(merged, alone, kept, _stacked(told))


def _named(receiver: int, memory: Tensors) -> Tensors:
    return {f"{receiver}/{name}": value for name, value in memory.items()}


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


def _admitted(federation: Federation, layout: Layout, peers: Receivers) -> tuple[Matrix, Refused]:
    """The messages that pass admission, with their weights, and why others do not.

    |sent - own| <= |sent| + |own| spares almost every message the way to its own difference.
    """
    limits, mail = federation.limits("train"), peers.mail
    heard, message = mail.heard, mail.heard.indices
    receiver = by_row(heard, np.arange(len(peers.own)))
    weighty = (mail.weights[message] > 0) & (mail.weights[message] <= WEIGHT_LIMIT)
    longest = peers.seen[LENGTH].numpy()[receiver] + mail.seen[LENGTH].numpy()[message]
    passed = (longest <= limits.norm) & weighty
    if SOUND in mail.seen:
        passed &= mail.seen[SOUND].numpy()[message]
    refused: Refused = {}
    for edge in np.flatnonzero(~passed).tolist():
        own = peers.own[int(receiver[edge])]
        difference = LocalRows((mail.sent[int(message[edge])] - own)[None])
        weight = torch.from_numpy(mail.weights[message[edge : edge + 1]])
        admission = judge(difference, weight, own, layout, limits)
        passed[edge] = bool(admission.mask[0])
        if not passed[edge]:
            sender = int(mail.senders[message[edge]])
            why, times = refused.get(sender, (admission.reasons[0], 0))
            refused[sender] = why, times + 1
    if passed.all() and (mail.weights == 1).all():
        return heard, refused
    weights = heard.data * mail.weights[message]
    return csr_array((weights[passed], (receiver[passed], message[passed])), shape=heard.shape), refused
