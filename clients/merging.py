"""A block of gossip peers merges its inboxes; the same for both clocks.

The task is pure: result = f(federation, merge, delivery). Any worker can compute any block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fedgen.admission import WEIGHT_LIMIT, judge
from fedgen.aggregation.statistics import apply_rule
from fedgen.clients.inbox_attacks import AttackKnowledge, attack_inboxes
from fedgen.clients.mail import LENGTH, SOUND, Mail, Messages, observe
from fedgen.contracts import Aggregation, Context, Diagnostics, Inbox, Inboxes
from fedgen.federation import Federation
from fedgen.parameters import Array, Layout, Tensors, canonical
from fedgen.rows import LocalRows
from fedgen.topology.graph import Matrix, by_row
from fedgen.topology.mixing import mixing_of, normalised

Refused = dict[int, tuple[str, int]]
"""Sender -> (reason of the rejection, number of receivers that rejected it)."""


@dataclass(frozen=True)
class Merge:
    """The inputs of a merge that all its blocks share.

    own[N, d]: models of all peers in the layout of messages; for a rule with `sends_change`, followed by the change in
    training. others {name: [N, ...]}: the rest of the peers' state. own_seen {name: [N, ...]}: observations of `own`
    (see `observe`); None: each block computes them.
    """

    round: int
    layout: Layout
    own: Tensor
    others: Tensors
    messages: Messages
    own_seen: Tensors | None = None


@dataclass(frozen=True)
class Memories:
    """Memory of single inboxes: receiver -> the memory that the rule, or an attack on that inbox, last returned."""

    rule: dict[int, Tensors] = field(default_factory=dict)
    attack: dict[int, Tensors] = field(default_factory=dict)

    def of(self, receivers: Sequence[int]) -> Memories:
        """The memories of these receivers."""
        rule = {receiver: self.rule[receiver] for receiver in receivers if receiver in self.rule}
        return Memories(rule, {receiver: self.attack[receiver] for receiver in receivers if receiver in self.attack})

    def updated(self, newer: Sequence[Memories]) -> Memories:
        """These memories, each replaced by the last newer one of its receiver."""
        rule, attack = dict(self.rule), dict(self.attack)
        for each in newer:
            rule |= each.rule
            attack |= each.attack
        return Memories(rule, attack)


@dataclass(frozen=True)
class Delivery:
    """The inboxes of receivers[k]; heard csr[k, m]: mixing weights of the messages that arrived.

    stacked {name: [k, ...]}: memory of a rule that merges all inboxes at once. memories: of single inboxes.
    """

    receivers: Tensor
    heard: Matrix
    stacked: Tensors
    memories: Memories


@dataclass(frozen=True)
class MergeReport:
    """k peers after the merge: state {name: [k, ...]}.

    alone: receivers with fewer messages than the rule needs. stacked, memories: as in `Delivery`, for the next round.
    diagnostics: of all k inboxes, NaN for inboxes without a value.
    """

    receivers: Tensor
    state: Tensors
    refused: Refused
    alone: list[int]
    stacked: Tensors
    memories: Memories
    diagnostics: Diagnostics


@dataclass(frozen=True)
class Receivers:
    """k peers before the merge: own[k, d], its observations `seen`, their mail, and the memories of their inboxes."""

    clients: Tensor
    own: Tensor
    seen: Tensors
    mail: Mail
    stacked: Tensors
    memories: Memories


@dataclass(frozen=True)
class Merged:
    """models[k, d] after the merge; other fields as in `MergeReport`, with the memories of the rule only."""

    models: Tensor
    alone: list[int]
    stacked: Tensors
    memories: dict[int, Tensors]
    diagnostics: Diagnostics


def merge_peers(federation: Federation, merge: Merge, delivery: Delivery) -> MergeReport:
    """Every receiver merges its inbox into its own model, then runs `server_update` of the method on its own state."""
    clients = delivery.receivers
    own = canonical(merge.own.index_select(0, clients))
    known = merge.own_seen
    seen = observe(federation, own) if known is None else {name: value[clients] for name, value in known.items()}
    mail = Mail(merge.messages, delivery.heard)
    peers = Receivers(clients, own, seen, mail, delivery.stacked, delivery.memories)
    if federation.attacks_inboxes("train"):
        peers = _attacked(federation, merge, peers)
    admitted, refused = _admitted(federation, merge.layout, peers)
    merged = (_mixed if federation.mixes else _each)(federation, merge, peers, admitted)
    size = federation.method.layout.size
    state = {name: tensor.index_select(0, clients) for name, tensor in merge.others.items()}
    equal = torch.ones(len(clients), dtype=torch.float64)
    inbox = Inbox(clients, equal, None, lambda: Aggregation(merged.models.sub_(own)[:, :size]))
    state = federation.method.server_update({**state, "model": own[:, :size]}, inbox, merge.round)
    memories = Memories(merged.memories, peers.memories.attack)
    return MergeReport(clients, state, refused, merged.alone, merged.stacked, memories, merged.diagnostics)


def _attacked(federation: Federation, merge: Merge, peers: Receivers) -> Receivers:
    """The receivers after the attack on each inbox, with the memories of the attack."""
    mail = peers.mail.heard_only()
    clients = peers.clients.tolist()
    memories = peers.memories
    known = AttackKnowledge(
        receivers=peers.clients,
        own=peers.own,
        share=_share(federation, normalised(mail.heard)[1]),
        round=merge.round,
        layout=merge.layout,
        memory=[memories.attack.get(client, {}) for client in clients],
        rule_memory=[
            {name: value[place] for name, value in peers.stacked.items()} or memories.rule.get(client, {})
            for place, client in enumerate(clients)
        ],
    )
    attacked = attack_inboxes(federation, mail, known)
    mail = mail.with_replies(attacked.places, attacked.sent, attacked.weights, observe(federation, attacked.sent))
    remembered = {client: memory for client, memory in zip(clients, attacked.memory, strict=True) if memory}
    return replace(peers, mail=mail, memories=replace(memories, attack=remembered))


def _mixed(federation: Federation, merge: Merge, peers: Receivers, admitted: Matrix) -> Merged:
    """Merge all inboxes at once, for a rule with a batched form."""
    weights, received = normalised(admitted)
    inboxes = Inboxes(
        own=peers.own,
        sent=peers.mail.messages.models,
        weights=weights,
        share=_share(federation, received),
        layout=merge.layout,
        seen=peers.mail.messages.seen,
        own_seen=peers.seen,
        memory=peers.stacked,
    )
    batched = federation.rule.batched()
    assert batched is not None
    mixed = batched.merge(inboxes)
    return Merged(mixed.models, [], mixed.memory, {}, mixed.diagnostics)


def _each(federation: Federation, merge: Merge, peers: Receivers, admitted: Matrix) -> Merged:
    """Merge one inbox after another, with any rule; rows are differences from the receiver's model."""
    merged = peers.own.clone()
    messages = peers.mail.messages
    alone: list[int] = []
    kept: dict[int, Tensors] = {}
    reported: list[Diagnostics] = []
    shares = _share(federation, normalised(admitted)[1])
    lacking = np.diff(peers.mail.heard.indptr) - np.diff(admitted.indptr)
    for place, receiver in enumerate(peers.clients.tolist()):
        inside = slice(admitted.indptr[place], admitted.indptr[place + 1])
        heard = torch.from_numpy(admitted.indices[inside].astype(np.int64))
        allowed = max(0, federation.experiment.aggregation.f - int(lacking[place]))
        if len(heard) < max(1, federation.rule.minimum(allowed)):
            alone.append(receiver)
            reported.append(Diagnostics())
            continue
        context = Context(
            reference=peers.own[place],
            layout=merge.layout,
            clients=torch.from_numpy(messages.senders)[heard],
            f=allowed,
            memory=peers.memories.rule.get(receiver, {}),
            round=merge.round,
            streams=federation.streams,
            share=float(shares[place]),
        )
        rows = LocalRows(messages.models.index_select(0, heard).sub_(peers.own[place]), federation.slice_width)
        result = apply_rule(federation.rule, rows, torch.from_numpy(admitted.data[inside]), context)
        merged[place].add_(result.aggregate, alpha=context.share)
        if result.memory:
            kept[receiver] = result.memory
        trust = trust_in(federation.byzantine_among(context.clients, merge.round), result.coefficients)
        reported.append(result.diagnostics | Diagnostics(scalars=trust))
    return Merged(merged, alone, {}, kept, _stacked(reported))


def trust_in(byzantine: Tensor, coefficients: Tensor | None) -> Tensors:
    """Mean coefficients of honest and of Byzantine senders, in units of the equal share 1 / n; byzantine bool[n]."""
    if coefficients is None:
        return {}
    groups = {"honest": coefficients[~byzantine], "byzantine": coefficients[byzantine]}
    return {name: part.mean() * len(coefficients) for name, part in groups.items() if len(part)}


def _stacked(inboxes: Sequence[Diagnostics]) -> Diagnostics:
    """Diagnostics of k inboxes in one; values per row are left out, as inboxes differ in their number of rows."""
    return Diagnostics(
        scalars=_with_blanks([inbox.scalars for inbox in inboxes]),
        by_weight=_with_blanks([inbox.by_weight for inbox in inboxes]),
    )


def _with_blanks(inboxes: Sequence[Tensors]) -> Tensors:
    """{name: float64[k, ...]}, NaN for inboxes without the name."""
    stacked = {}
    for name in dict.fromkeys(name for values in inboxes for name in values):
        shape = next(values[name].shape for values in inboxes if name in values)
        blank = torch.full(shape, torch.nan, dtype=torch.float64)
        stacked[name] = torch.stack([values.get(name, blank).double() for values in inboxes])
    return stacked


def _share(federation: Federation, received: Array) -> Array:
    section = federation.experiment.gossip
    return mixing_of(section.mixing, section.keep).share(received)


def _admitted(federation: Federation, layout: Layout, peers: Receivers) -> tuple[Matrix, Refused]:
    """(weights of the messages that pass admission, senders of rejected messages with the reason).

    As |sent - own| <= |sent| + |own|, almost no message needs its difference from the receiver's model.
    """
    limits = federation.limits("train")
    messages = peers.mail.messages
    heard = peers.mail.heard
    message = peers.mail.heard.indices
    receiver = by_row(heard, np.arange(len(peers.own)))
    weighty = (messages.weights[message] > 0) & (messages.weights[message] <= WEIGHT_LIMIT)
    longest = peers.seen[LENGTH].numpy()[receiver] + messages.seen[LENGTH].numpy()[message]
    passed = (longest <= limits.norm) & weighty
    if SOUND in messages.seen:
        passed &= messages.seen[SOUND].numpy()[message]
    refused: Refused = {}
    for edge in np.flatnonzero(~passed).tolist():
        own = peers.own[int(receiver[edge])]
        difference = LocalRows((messages.models[int(message[edge])] - own)[None])
        weight = torch.from_numpy(messages.weights[message[edge : edge + 1]])
        admission = judge(difference, weight, own, layout, limits)
        passed[edge] = bool(admission.mask[0])
        if not passed[edge]:
            sender = int(messages.senders[message[edge]])
            why, times = refused.get(sender, (admission.reasons[0], 0))
            refused[sender] = why, times + 1
    if passed.all() and (messages.weights == 1).all():
        return heard, refused
    weights = heard.data * messages.weights[message]
    return csr_array((weights[passed], (receiver[passed], message[passed])), shape=heard.shape), refused
