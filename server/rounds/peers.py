"""The two halves of a gossip round, the same for both clocks: peers train and send; peers merge their inboxes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedgen.admission import as_sent
from fedgen.clients.attacked import view_of
from fedgen.clients.cohort import BlockReport, Training
from fedgen.clients.mail import Messages, observe
from fedgen.clients.merging import Delivery, Memories, Merge, Refused, merge_peers
from fedgen.clients.peer import train_peers
from fedgen.contracts import Broadcast, Context, Diagnostics
from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.leaves import with_leaves
from fedgen.parameters import Array, Layout, Tensors, place_rows
from fedgen.rows import LocalRows
from fedgen.server.pools.on_demand import OnDemand
from fedgen.server.pools.pool import BlockFailure
from fedgen.server.rounds.exchange import note_failures, train
from fedgen.server.rounds.session import Session
from fedgen.server.store.checkpoint import Standing
from fedgen.server.words import round_name
from fedgen.topology.graph import Matrix


@dataclass(frozen=True)
class Sending:
    """All peers after training.

    own[N, d]: their models; own_seen: observations of these. sent: the messages, whose models are `own` itself without
    an attack. silent: peers that send no readable message; failed: how many of them did not train.
    """

    own: Tensor
    own_seen: Tensors
    sent: Messages
    silent: list[int]
    failed: int
    reports: list[BlockReport]
    attack_memory: Tensors

    def commit(self, standing: Standing) -> None:
        """Keep the state of the peers that trained, and the memory of the attack."""
        for place, report in enumerate(self.reports):
            if report.client_state:
                standing.clients.commit(report.clients, report.client_state)
                self.reports[place] = replace(report, client_state={})  # frees it: two copies of one block, not of all
        standing.attack_memory = self.attack_memory

    def counts(self, refused: Collection[int]) -> dict[str, int]:
        """Numbers of admitted, rejected and failed peers; refused: senders whose message a receiver rejected."""
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
    """Train the peers of `blocks`; other peers keep their models and send nothing.

    changed[N, j]: the trailing columns of the other peers' rows, zero if not given. fatal: raise FedgenError if all of
    `blocks` failed.
    """
    federation, standing = session.federation, session.standing
    layout = federation.sent_layout(broadcast.expects)
    size = broadcast.start.shape[1]
    own = session.spare.empty_like(broadcast.start, layout.size)
    weights = np.ones(len(own))
    answers: list[BlockReport | BlockFailure] = []
    seen = ByPeer(len(own))
    attacked: list[tuple[Tensor, Tensor, Tensors]] = []
    for result in train(session, train_peers, Training(standing.round, broadcast), blocks, keep=1):
        answers.append(result if isinstance(result, BlockFailure) else result.report)
        if isinstance(result, BlockFailure):
            continue
        models = session.pool.fetch(result.models)
        report = result.report
        place_rows(own, report.clients, models.own)
        weights[report.clients.numpy()] = report.weights.numpy()
        seen.place(report.clients, models.seen)
        if models.sent is not None:
            attacked.append((report.clients, models.sent, models.sent_seen or models.seen))
    failed = note_failures(session, blocks, answers, fatal) if blocks else 0
    reports = [answer for answer in answers if not isinstance(answer, BlockFailure)]
    trained = torch.cat([*(report.clients for report in reports), torch.empty(0, dtype=torch.int64)]).sort().values
    idle = torch.from_numpy(np.setdiff1d(np.arange(len(own)), trained.numpy()))
    place_rows(own[:, :size], idle, broadcast.start[idle])
    if layout.size > size:
        own[idle, size:] = 0 if changed is None else changed[idle]
    sent, sent_seen = own, seen
    if attacked:
        sent = own.clone()
        sent_seen = ByPeer(len(own), seen.tensors)
        for clients, rows, part in attacked:
            place_rows(sent, clients, rows)
            sent_seen.place(clients, part)
    memory = standing.attack_memory
    byzantine = bool(federation.byzantine_among(trained, standing.round).any())
    if federation.attack.omniscient and byzantine and not federation.attacks_inboxes(broadcast.phase):
        sent, weights, memory = _corrupt(session, layout, broadcast.start, sent, weights, trained)
        sent_seen = ByPeer(len(own))
        sent_seen.place(trained, observe(federation, sent[trained]))
    unread = {client for report in reports for client in report.rejected}
    silent = sorted(unread | set(idle.tolist()))
    messages = Messages(sent, np.arange(len(own)), weights, sent_seen.tensors)
    return Sending(own, seen.tensors, messages, silent, failed, reports, memory)


class ByPeer:
    """{name: [N, ...]}, filled block by block; tensors of blocks are copied, so that they can be freed.

    Peers outside of all blocks keep the value in `before`, or `blank`.
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
    """(models sent[N, d], weights, memory) after an omniscient attack; start[N, d]: models before training."""
    federation, standing = session.federation, session.standing
    unchanged = torch.zeros(len(trained), layout.size - start.shape[1])
    context = Context(
        reference=torch.zeros(layout.size),
        layout=layout,
        clients=trained,
        f=federation.experiment.aggregation.f,
        memory=standing.rule_memory,
        round=standing.round,
        streams=federation.streams,
    )
    began = torch.cat([start[trained], unchanged], dim=1)
    view = view_of(federation, context, torch.from_numpy(weights)[trained], memory=standing.attack_memory, start=began)
    rows, scaled, memory = federation.attack.corrupt(LocalRows(sent[trained], federation.slice_width), view)
    attacked = sent.index_copy(0, trained, as_sent(rows.collect(), layout.dtype))
    changed = weights.copy()
    changed[trained.numpy()] = scaled.numpy()
    return attacked, changed, memory


@dataclass(frozen=True)
class Merging:
    """All peers after the merge: state {name: [N, ...]}.

    diagnostics: of all N peers, NaN for those that did not merge. stacked {name: [N, ...]}, memories: as in `Delivery`,
    for the next round.
    """

    state: Tensors
    refused: Refused
    alone: list[int]
    stacked: Tensors
    memories: Memories
    diagnostics: Diagnostics


def merge(
    session: Session,
    broadcast: Broadcast,
    blocks: list[Tensor],
    own: Tensor,
    messages: Messages,
    heard: Matrix,
    own_seen: Tensors | None = None,
) -> Merging:
    """The receivers of `blocks` merge their inboxes into own[N, d].

    heard csr[N, m]: mixing weights of the messages that arrived. Raises FedgenError if a block fails.
    """
    federation, standing = session.federation, session.standing
    others = _others(federation, standing.state)
    layout = federation.sent_layout(broadcast.expects)
    shared = Merge(standing.round, layout, own, others, messages, own_seen)
    before = {"model": own[:, : broadcast.start.shape[1]], **others}
    state = {name: session.spare.empty_like(value) for name, value in before.items()}
    if sum(map(len, blocks)) < len(own):
        for name, value in before.items():
            state[name].copy_(value)
    stacked = ByPeer(len(own), standing.rule_memory if federation.mixes else None)
    memories: list[Memories] = []
    scalars, by_weight = ByPeer(len(own), blank=torch.nan), ByPeer(len(own), blank=torch.nan)
    refused: Refused = {}
    alone: list[int] = []
    deliveries = OnDemand(blocks, lambda receivers: _delivery(standing, receivers, heard))
    for result in session.pool.map(merge_peers, deliveries, shared):
        if isinstance(result, BlockFailure):
            raise FedgenError(f"{round_name(standing.round)}: models could not be merged: {result.reason}")
        for name, value in result.state.items():
            place_rows(state[name], result.receivers, value)
        stacked.place(result.receivers, result.stacked)
        memories.append(with_leaves(result.memories, Tensor, Tensor.clone))
        scalars.place(result.receivers, _wide(result.diagnostics.scalars))
        by_weight.place(result.receivers, _wide(result.diagnostics.by_weight))
        alone += result.alone
        for sender, (why, times) in result.refused.items():
            refused[sender] = refused.get(sender, (why, 0))[0], refused.get(sender, (why, 0))[1] + times
    _note(session, refused, sorted(alone))
    whole = {name: state.get(name, value) for name, value in standing.state.items()}
    diagnostics = Diagnostics(scalars.tensors, by_weight=by_weight.tensors)
    kept = standing.memories.updated(memories)
    return Merging(whole, refused, sorted(alone), stacked.tensors, kept, diagnostics)


def _wide(tensors: Tensors) -> Tensors:
    return {name: value.double() for name, value in tensors.items()}


def _delivery(standing: Standing, receivers: Tensor, heard: Matrix) -> Delivery:
    stacked = {name: value[receivers] for name, value in standing.rule_memory.items()}
    return Delivery(receivers, heard[receivers.numpy()], stacked, standing.memories.of(receivers.tolist()))


def _others(federation: Federation, state: Tensors) -> Tensors:
    """{name: [N, ...]}: state of every peer besides its model."""
    return {name: value for name, value in state.items() if name not in federation.common_state | {"model"}}


def _note(session: Session, refused: Refused, alone: list[int]) -> None:
    """Log rejected senders, and receivers with too few messages to merge."""
    journal = session.journal
    round = session.standing.round
    for sender, (why, times) in sorted(refused.items()):
        journal.event("rejected", round, client=sender, reason=why, receivers=times)
    if alone:
        journal.event("alone", round, clients=alone, reason="too few messages to merge")
