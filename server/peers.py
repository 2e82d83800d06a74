"""What peers do in gossip, whatever the clock: they train and send, and they merge what reached them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgen.admission import as_sent
from fedgen.clients.mail import observe
from fedgen.clients.merging import Merge, Refused, merge_peers
from fedgen.clients.peer import PeerReport, train_peers
from fedgen.contracts import BlockFailure, Broadcast, View
from fedgen.errors import FedgenError
from fedgen.parameters import Array, Layout, Tensors, place_rows
from fedgen.rows import LocalRows
from fedgen.server.checkpoint import Standing
from fedgen.server.exchange import exchange_of, note_failures, train
from fedgen.server.session import Session
from fedgen.server.words import round_name
from fedgen.topology.graph import Matrix


@dataclass(frozen=True)
class Messages:
    """Models as they were sent: models[m, d], senders[m] in order, weights[m], and what is seen of them (`observe`)."""

    models: Tensor
    senders: Array
    weights: Array
    seen: Tensors

    def of(self, places: Array) -> Messages:
        """Those at some places."""
        rows = torch.from_numpy(places)
        seen = {name: value[rows] for name, value in self.seen.items()}
        return Messages(self.models[rows], self.senders[places], self.weights[places], seen)

    def __add__(self, more: Messages) -> Messages:
        if 0 in (len(self.senders), len(more.senders)):
            return self if len(self.senders) else more
        seen = {name: torch.cat([value, more.seen[name]]) for name, value in self.seen.items()}
        senders, weights = (
            np.concatenate(each) for each in ((self.senders, more.senders), (self.weights, more.weights))
        )
        return Messages(torch.cat([self.models, more.models]), senders, weights, seen)


@dataclass(frozen=True)
class Sending:
    """All peers after training: own[N, d], what is seen of them, what each of the N sends (the same tensor where nobody
    lies), and from whom nothing comes that can be read; failed: how many of those did not train."""

    own: Tensor
    own_seen: Tensors
    sent: Messages
    silent: list[int]
    failed: int
    reports: list[PeerReport]
    attack_memory: Tensors

    def commit(self, standing: Standing) -> None:
        """Keep the state of those that trained, and the memory of an attack on what they send."""
        for place, report in enumerate(self.reports):
            if report.client_state:
                standing.clients.commit(report.clients, report.client_state)
                self.reports[place] = replace(report, client_state={})  # two copies of one block's, not of all peers'
        standing.attack_memory = self.attack_memory

    def counts(self, refused: Collection[int]) -> dict[str, int]:
        """How many were heard, and how many not; refused: whom receivers turned away."""
        asked = sum(len(report.clients) + len(report.failed) for report in self.reports)
        rejected = len({client for report in self.reports for client in report.rejected} | set(refused))
        return {"admitted": asked - self.failed - rejected, "rejected": rejected, "failed": self.failed}


def send(
    session: Session,
    broadcast: Broadcast,
    blocks: list[Tensor],
    changed: Tensor | None = None,
    fatal: bool = True,
) -> Sending:
    """All peers after those of `blocks` have trained; the others hold what they held, and are silent.

    changed[N, j]: what stands behind the models of those others, zeros unless given.  fatal: raise FedgenError where
    all of `blocks` failed.
    """
    federation, standing = session.federation, session.standing
    layout, size = federation.sent_layout(broadcast.expects), broadcast.start.shape[1]
    own = session.spare.empty_like(broadcast.start, layout.size)
    weights = np.ones(len(own))
    results: list[Any] = []
    seen = ByPeer(len(own))
    lies: list[tuple[Tensor, Tensor, Tensors]] = []
    for result in train(session, train_peers, exchange_of(session, broadcast), broadcast, blocks, keep=1):
        if isinstance(result, BlockFailure):
            results.append(result)
            continue
        report, handle = result
        models = session.pool.fetch(handle)  # apart from the report, which is held until the round ends
        results.append((report,))
        place_rows(own, report.clients, models.own)
        weights[report.clients.numpy()] = report.weights.numpy()
        seen.place(report.clients, models.seen)
        if models.sent is not None:
            lies.append((report.clients, models.sent, models.sent_seen or models.seen))
    failed = note_failures(session, blocks, results, fatal) if blocks else 0
    reports: list[PeerReport] = [result[0] for result in results if not isinstance(result, BlockFailure)]
    trained = torch.cat([*(report.clients for report in reports), torch.empty(0, dtype=torch.int64)]).sort().values
    idle = torch.from_numpy(np.setdiff1d(np.arange(len(own)), trained.numpy()))
    place_rows(own[:, :size], idle, broadcast.start[idle])
    if layout.size > size:
        own[idle, size:] = 0 if changed is None else changed[idle]
    sent, sent_seen = own, seen
    if lies:
        sent, sent_seen = own.clone(), ByPeer(len(own), seen.tensors)
        for clients, rows, part in lies:
            place_rows(sent, clients, rows)
            sent_seen.place(clients, part)
    memory, lying = standing.attack_memory, bool(federation.liars(trained, standing.round).any())
    if federation.attack.omniscient and lying and not federation.lies_to_each(broadcast.phase):
        sent, weights, memory = _corrupt(session, layout, broadcast.start, sent, weights, trained)
        sent_seen = ByPeer(len(own))
        sent_seen.place(trained, observe(federation, sent[trained]))
    unread = {client for report in reports for client in report.rejected}
    silent = sorted(unread | set(idle.tolist()))
    messages = Messages(sent, np.arange(len(own)), weights, sent_seen.tensors)
    return Sending(own, seen.tensors, messages, silent, failed, reports, memory)


class ByPeer:
    """{name: [N, ...]}, filled block by block, so that no block's own tensors are held.

    Of peers that no block is about stands what there was before, or blank.
    """

    def __init__(self, peers: int, before: Tensors | None = None, blank: float = 0.0) -> None:
        self.peers, self.blank = peers, blank
        self.tensors = {name: value.clone() for name, value in (before or {}).items()}

    def place(self, clients: Tensor, part: Tensors) -> None:
        """part {name: [n, ...]} of these clients[n]."""
        for name, value in part.items():
            if name not in self.tensors:
                self.tensors[name] = torch.full((self.peers, *value.shape[1:]), self.blank, dtype=value.dtype)
            place_rows(self.tensors[name], clients, value)


def _corrupt(
    session: Session, layout: Layout, start: Tensor, sent: Tensor, weights: Array, trained: Tensor
) -> tuple[Tensor, Array, Tensors]:
    """What peers send where liars see all models of the round; start[N, d]: what training began from."""
    federation, standing = session.federation, session.standing
    unchanged = torch.zeros(len(trained), layout.size - start.shape[1])
    view = View(
        byzantine=federation.liars(trained, standing.round),
        clients=trained,
        weights=torch.from_numpy(weights)[trained],
        round=standing.round,
        streams=federation.streams,
        reference=torch.zeros(layout.size),
        rule=federation.rule,
        f=federation.experiment.aggregation.f,
        memory=standing.attack_memory,
        layout=layout,
        rule_memory=standing.rule_memory,
        start=torch.cat([start[trained], unchanged], dim=1),
    )
    rows, theirs, memory = federation.attack.corrupt(LocalRows(sent[trained], federation.slice_width), view)
    lies = sent.index_copy(0, trained, as_sent(rows.collect(), layout.dtype))
    changed = weights.copy()
    changed[trained.numpy()] = theirs.numpy()
    return lies, changed, memory


@dataclass(frozen=True)
class Merging:
    """All peers after merging: state {name: [N, ...]}, diagnostics too, NaN where nobody merged; see MergeReport."""

    state: Tensors
    refused: Refused
    alone: list[int]
    memory: Tensors
    attack_memory: Tensors
    diagnostics: Tensors


def merge(
    session: Session,
    broadcast: Broadcast,
    blocks: list[Tensor],
    own: Tensor,
    messages: Messages,
    heard: Matrix,
    own_seen: Tensors | None = None,
) -> Merging:
    """The receivers of `blocks` merge their rows of heard csr[N, m], the mixing weights of the messages that arrived,
    into their own[N, d].

    Raises FedgenError where a block cannot.
    """
    federation, standing = session.federation, session.standing
    mixes, each = federation.mixes, federation.lies_to_each(broadcast.phase)
    own_names = standing.state.keys() - federation.common_state
    others = {name: value for name, value in standing.state.items() if name in own_names - {"model"}}
    common = Merge(
        round=standing.round,
        layout=federation.sent_layout(broadcast.expects),
        names=tuple(others),
        senders=messages.senders,
        weights=messages.weights,
        seen=messages.seen,
        own_seen=own_seen,
    )
    attack_memory = standing.attack_memory if each else {}
    items = [
        (
            receivers,
            heard[receivers.numpy()],
            _memory_of(standing.rule_memory, receivers, mixes),
            _memory_of(attack_memory, receivers, False),
        )
        for receivers in blocks
    ]
    before, whole = {"model": own[:, : broadcast.start.shape[1]], **others}, sum(map(len, blocks)) == len(own)
    state = {name: session.spare.empty_like(value) for name, value in before.items()}
    if not whole:
        for name, value in before.items():
            state[name].copy_(value)
    memory, own_memory = ByPeer(len(own), standing.rule_memory if mixes else None), dict(standing.rule_memory)
    diagnostics = ByPeer(len(own), blank=torch.nan)
    refused: Refused = {}
    alone: list[int] = []
    for result in session.pool.map(merge_peers, items, (common, own, messages.models, *others.values())):
        if isinstance(result, BlockFailure):
            raise FedgenError(f"{round_name(standing.round)}: models could not be merged: {result.reason}")
        for name, value in result.state.items():
            place_rows(state[name], result.receivers, value)
        if mixes:
            memory.place(result.receivers, result.memory)
        else:
            own_memory |= {name: value.clone() for name, value in result.memory.items()}
        attack_memory = attack_memory | {name: value.clone() for name, value in result.attack_memory.items()}
        diagnostics.place(result.receivers, {name: value.double() for name, value in result.diagnostics.items()})
        alone += result.alone
        for sender, (why, times) in result.refused.items():
            refused[sender] = refused.get(sender, (why, 0))[0], refused.get(sender, (why, 0))[1] + times
    _note(session, refused, sorted(alone))
    return Merging(
        state={name: state.get(name, value) for name, value in standing.state.items()},
        refused=refused,
        alone=sorted(alone),
        memory=memory.tensors if mixes else own_memory,
        attack_memory=attack_memory,
        diagnostics=diagnostics.tensors,
    )


def _note(session: Session, refused: Refused, alone: list[int]) -> None:
    """Log whom receivers turned away, and who heard too little to merge."""
    journal, round = session.journal, session.standing.round
    for sender, (why, times) in sorted(refused.items()):
        journal.event("rejected", round, client=sender, reason=why, receivers=times)
    if alone:
        journal.event("alone", round, clients=alone, reason="too few messages to merge")


def _memory_of(memory: Tensors, receivers: Tensor, mixes: bool) -> Tensors:
    """A block's part of a memory: rows of [N, ...] where the rule mixes, else by the receivers' names."""
    if mixes:
        return {name: value[receivers] for name, value in memory.items()}
    wanted = set(map(str, receivers.tolist()))
    return {name: value for name, value in memory.items() if name.partition("/")[0] in wanted}
