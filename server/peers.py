"""What peers do in gossip, whatever the clock: they train and send, and they merge what reached them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedgen.admission import as_sent
from fedgen.clients.peer import Merge, MergeReport, PeerReport, merge_peers, observe, train_peers
from fedgen.contracts import BlockFailure, Broadcast, View
from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.parameters import Array, Tensors, place_rows
from fedgen.rows import LocalRows
from fedgen.server.checkpoint import Standing
from fedgen.server.exchange import exchange_of, note_failures, train
from fedgen.server.session import Session
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
        """Keep the state of those that trained, and the attack's memory."""
        for report in self.reports:
            if report.client_state:
                standing.clients.commit(report.clients, report.client_state)
        standing.attack_memory = self.attack_memory

    def counts(self, refused: Collection[int]) -> dict[str, int]:
        """How many were heard, and how many not; refused: whom receivers turned away."""
        asked = sum(len(report.clients) + len(report.failed) for report in self.reports)
        rejected = len({client for report in self.reports for client in report.rejected} | set(refused))
        return {"admitted": asked - self.failed - rejected, "rejected": rejected, "failed": self.failed}

    def metrics(self, federation: Federation) -> dict[str, float]:
        """Means of the honest peers' own metrics."""
        names = dict.fromkeys(name for report in self.reports for name in report.metrics)
        means = {}
        for name in names:
            measured = [report for report in self.reports if name in report.metrics]
            values = torch.cat([report.metrics[name] for report in measured]).double()
            honest = ~federation.byzantine.index_select(0, torch.cat([report.clients for report in measured]))
            means[name] = float(values[honest].mean())
        return means


def send(session: Session, broadcast: Broadcast, blocks: list[Tensor], fatal: bool = True) -> Sending:
    """All peers after those of `blocks` have trained; the others hold what they held, and are silent.

    fatal: raise FedgenError where all of them failed.
    """
    federation, standing = session.federation, session.standing
    results = train(session, train_peers, exchange_of(session, broadcast), broadcast, blocks)
    failed = note_failures(session, blocks, results, fatal) if blocks else 0
    reports: list[PeerReport] = [result[0] for result in results if not isinstance(result, BlockFailure)]
    trained = torch.cat([*(report.clients for report in reports), torch.empty(0, dtype=torch.int64)]).sort().values
    own = broadcast.start.clone() if len(trained) < len(broadcast.start) else torch.empty_like(broadcast.start)
    weights, lied = np.ones(len(own)), any(report.sent is not None for report in reports)
    for place, report in enumerate(reports):
        place_rows(own, report.clients, report.own)
        weights[report.clients.numpy()] = report.weights.numpy()
        reports[place] = replace(report, own=own)  # the block's copy may go
    own_seen = seen = _seen(len(own), [(report.clients, report.seen) for report in reports])
    sent = own
    if lied:
        sent = own.clone()
        for report in reports:
            if report.sent is not None:
                place_rows(sent, report.clients, report.sent)
        seen = _seen(len(own), [(report.clients, report.sent_seen or report.seen) for report in reports])
    memory, lies = standing.attack_memory, federation.liars(trained, standing.round)
    if federation.attack.omniscient and bool(lies.any()):
        sent, weights, memory = _corrupt(session, broadcast, sent, weights, trained)
        seen = _seen(len(own), [(trained, observe(federation, sent[trained]))])
    unread = {client for report in reports for client in report.rejected}
    silent = sorted(unread | (set(range(len(own))) - set(trained.tolist())))
    kept = [replace(report, sent=None, sent_seen=None) for report in reports]
    messages = Messages(sent, np.arange(len(own)), weights, seen)
    return Sending(own, own_seen, messages, silent, failed, kept, memory)


def _seen(peers: int, parts: list[tuple[Tensor, Tensors]]) -> Tensors:
    """{name: [N, ...]}: what blocks saw of their peers' models, by peer; zeros for those that sent none."""
    seen: Tensors = {}
    for clients, part in parts:
        for name, value in part.items():
            place_rows(seen.setdefault(name, value.new_zeros(peers, *value.shape[1:])), clients, value)
    return seen


def _corrupt(
    session: Session, broadcast: Broadcast, sent: Tensor, weights: Array, trained: Tensor
) -> tuple[Tensor, Array, Tensors]:
    """What peers send where liars see all models of the round."""
    federation, standing = session.federation, session.standing
    view = View(
        byzantine=federation.liars(trained, standing.round),
        clients=trained,
        weights=torch.from_numpy(weights)[trained],
        round=standing.round,
        streams=federation.streams,
        reference=torch.zeros(broadcast.expects.size),
        rule=federation.rule,
        f=federation.experiment.aggregation.f,
        memory=standing.attack_memory,
        layout=broadcast.expects,
        rule_memory=standing.rule_memory,
    )
    rows, theirs, memory = federation.attack.corrupt(LocalRows(sent[trained], federation.slice_width), view)
    lies = sent.index_copy(0, trained, as_sent(rows.collect(), broadcast.expects.dtype))
    changed = weights.copy()
    changed[trained.numpy()] = theirs.numpy()
    return lies, changed, memory


@dataclass(frozen=True)
class Merging:
    """All peers after merging: state {name: [N, ...]}, diagnostics too, NaN where nobody merged; see MergeReport."""

    state: Tensors
    refused: dict[int, tuple[str, int]]
    alone: list[int]
    memory: Tensors
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
    mixes = getattr(federation.rule, "mixes", False)
    own_names = standing.state.keys() - federation.common_state
    others = {name: value for name, value in standing.state.items() if name in own_names - {"model"}}
    common = Merge(
        round=standing.round,
        layout=broadcast.expects,
        names=tuple(others),
        senders=messages.senders,
        weights=messages.weights,
        seen=messages.seen,
        own_seen=own_seen,
    )
    items = [
        (receivers, heard[receivers.numpy()], _memory_of(standing.rule_memory, receivers, mixes))
        for receivers in blocks
    ]
    results = session.pool.map(merge_peers, items, (common, own, messages.models, *others.values()))
    for result in results:
        if isinstance(result, BlockFailure):
            raise FedgenError(f"round {standing.round}: models could not be merged: {result.reason}")
    before = {"model": own, **others}
    whole = sum(map(len, blocks)) == len(own)
    state = {name: torch.empty_like(value) if whole else value.clone() for name, value in before.items()}
    refused: dict[int, tuple[str, int]] = {}
    for result in results:
        for name, value in result.state.items():
            place_rows(state[name], result.receivers, value)
        for sender, (why, times) in result.refused.items():
            refused[sender] = refused.get(sender, (why, 0))[0], refused.get(sender, (why, 0))[1] + times
    for sender, (why, times) in sorted(refused.items()):
        session.journal.event("rejected", standing.round, client=sender, reason=why, receivers=times)
    alone = sorted(receiver for result in results for receiver in result.alone)
    if alone:
        session.journal.event("alone", standing.round, clients=alone, reason="too few messages to merge")
    memory = _memory(results, standing.rule_memory, mixes, len(own))
    told = [{name: value.double() for name, value in result.diagnostics.items()} for result in results]
    names = set.intersection(*map(set, told)) if told else set()
    spread = {name: _spread(results, [each[name] for each in told], len(own), torch.nan) for name in names}
    state = {name: state.get(name, value) for name, value in standing.state.items()}
    return Merging(state, refused, alone, memory, spread)


def _memory_of(memory: Tensors, receivers: Tensor, mixes: bool) -> Tensors:
    """A block's part of the rule's memory: rows of [N, ...] where the rule mixes, else by the receivers' names."""
    if mixes:
        return {name: value[receivers] for name, value in memory.items()}
    wanted = set(map(str, receivers.tolist()))
    return {name: value for name, value in memory.items() if name.partition("/")[0] in wanted}


def _memory(results: list[MergeReport], before: Tensors, mixes: bool, peers: int) -> Tensors:
    """The rule's memory after a merge; that of peers who did not merge stays."""
    if not mixes:
        return {**before, **{name: value for result in results for name, value in result.memory.items()}}
    names = results[0].memory if results else before
    return {
        name: _spread(results, [result.memory[name] for result in results], peers, 0.0, before.get(name))
        for name in names
    }


def _spread(
    results: list[MergeReport], parts: list[Tensor], peers: int, blank: float, before: Tensor | None = None
) -> Tensor:
    """[N, ...]: the blocks' rows, by peer; of the others those before, or blank."""
    if not parts:
        return torch.empty(peers, 0) if before is None else before
    rows = torch.full((peers, *parts[0].shape[1:]), blank, dtype=parts[0].dtype) if before is None else before.clone()
    for result, part in zip(results, parts, strict=True):
        place_rows(rows, result.receivers, part)
    return rows
