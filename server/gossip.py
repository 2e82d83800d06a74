"""Gossip in rounds: every peer trains, sends its model to those that hear it, and merges what it hears."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fedgen.admission import as_sent
from fedgen.clients.peer import Merge, MergeReport, PeerReport, merge_peers, observe, train_peers
from fedgen.contracts import BlockFailure, Broadcast, View
from fedgen.errors import FedgenError, SettingError
from fedgen.federation import Federation
from fedgen.parameters import Array, Tensors, canonical, place_rows
from fedgen.rows import LocalRows
from fedgen.server.checkpoint import Standing
from fedgen.server.exchange import exchange, exchange_of, note_failures, train
from fedgen.server.peer_metrics import consensus_distance, honest_peers, measured, summary, told_of_honest
from fedgen.server.session import Session, Stopwatch
from fedgen.server.star import note_redrawn
from fedgen.topology.graph import Matrix


def initial_state(federation: Federation) -> Tensors:
    """{name: [N, ...]}: every peer's state before the first round."""
    peers = federation.experiment.data.clients
    agreed = federation.experiment.federation.seed_agreement
    states = [federation.method.initial_state(0 if agreed else peer) for peer in range(peers)]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def final_model(federation: Federation, state: Tensors) -> Tensor:
    """The row [d] that a run leaves behind: the mean of the honest peers' models."""
    honest = honest_peers(federation, federation.experiment.federation.rounds)
    return state["model"][honest].double().mean(0).to(state["model"].dtype)


def check(federation: Federation) -> None:
    """Raises SettingError where the graph is not one, or leaves peers with fewer neighbours than the rule needs."""
    network, aggregation = federation.network, federation.experiment.aggregation
    graph = network.graph(0)
    network.mixing.weights(graph)
    if federation.experiment.weighs_samples and federation.experiment.federation.mixing == "metropolis_hastings":
        raise SettingError(
            'federation.mixing "metropolis_hastings" fixes the weights of the neighbours; set aggregation.weights = '
            '"equal"'
        )
    if federation.root is not None:
        raise SettingError(
            f"aggregation.rule {aggregation.rule.name!r} learns from samples at a server, and gossip has none; choose "
            "another rule, such as monna"
        )
    needed = federation.rule.minimum(aggregation.f)
    if network.static and graph.degrees.min() < needed and federation.experiment.data.clients > 1:
        short = np.flatnonzero(graph.degrees < needed).tolist()
        raise SettingError(
            f"aggregation.rule {aggregation.rule.name!r} needs {needed} messages to withstand aggregation.f = "
            f"{aggregation.f} in an inbox, and {len(short)} peers have fewer neighbours, peer {short[0]} only "
            f"{graph.degrees[short[0]]}; lower aggregation.f or give federation.topology more edges"
        )


def play_round(session: Session, evaluate: bool) -> dict[str, Any]:
    """One round of all peers; returns its line of metrics.jsonl.

    Raises FedgenError where every peer failed.
    """
    federation, standing, clock = session.federation, session.standing, Stopwatch()
    method, round = federation.method, standing.round
    # 1. What peers begin with.
    broadcast = method.broadcast(standing.state, round)
    blocks = federation.cohort(round, everyone=True)
    note_redrawn(session, blocks)
    if broadcast.reduce != "aggregate":
        return _flood(session, broadcast, blocks, clock)
    # 2. They train; what liars send is something else.
    sending = _send(session, broadcast, blocks)
    clock.lap("train")
    # 3. Each merges what reaches it, and runs the server half.
    heard = _arriving(federation, round, sending)
    merging = _merge(session, broadcast, blocks, sending, heard)
    state = merging.state
    clock.lap("aggregate")
    # 4. Held-back samples, at every peer.
    values = measured(session, state) if evaluate else {}
    last = round + 1 == federation.experiment.federation.rounds
    distance = {"consensus_distance": consensus_distance(federation, state["model"], round)} if evaluate else {}
    told = told_of_honest(federation, round, state["model"] if evaluate else None, merging.diagnostics)
    clock.lap("evaluate")
    # 5. Only now, when nothing can interrupt it any more, the round counts.
    sending.commit(standing)
    standing.rule_memory = merging.memory
    standing.state, standing.round = state, round + 1
    messages = int(heard.nnz)
    size_bytes = broadcast.expects.size * broadcast.expects.dtype.itemsize * messages
    return {
        "round": round,
        "metrics": {**summary(session, values), **sending.metrics(federation), **distance},
        "clients": {
            "admitted": len(sending.own) - len(sending.silent) - len(merging.refused),
            "rejected": len(sending.silent) - sending.failed + len(merging.refused),
            "failed": sending.failed,
            "late": 0,
        },
        "skipped": False,
        "bytes": {"up": size_bytes, "down": size_bytes},
        "messages": messages,
        "alone": len(merging.alone),
        **told,
        **({"peers": {name: value.tolist() for name, value in values.items()}} if last else {}),
        "seconds": clock.laps,
    }


@dataclass(frozen=True)
class Sending:
    """All peers after training: own[N, d], sent[N, d] (the same tensor where nobody lies), what is seen of both,
    weights[N], and from whom nothing comes that can be read; failed: how many of those did not train."""

    own: Tensor
    own_seen: Tensors
    sent: Tensor
    seen: Tensors
    weights: Array
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


def _send(session: Session, broadcast: Broadcast, blocks: list[Tensor]) -> Sending:
    federation, standing = session.federation, session.standing
    results = train(session, train_peers, exchange_of(session, broadcast), broadcast, blocks)
    failed = note_failures(session, blocks, results)
    reports: list[PeerReport] = [result[0] for result in results if not isinstance(result, BlockFailure)]
    own = broadcast.start.clone() if failed else torch.empty_like(broadcast.start)
    weights, lied = np.ones(len(own)), any(report.sent is not None for report in reports)
    for report in reports:
        place_rows(own, report.clients, report.own)
        weights[report.clients.numpy()] = report.weights.numpy()
    own_seen = seen = _seen(federation, own, [(report.clients, report.seen) for report in reports])
    sent = own
    if lied:
        sent = own.clone()
        for report in reports:
            if report.sent is not None:
                place_rows(sent, report.clients, report.sent)
        seen = _seen(federation, sent, [(report.clients, report.sent_seen or report.seen) for report in reports])
    trained = torch.cat([report.clients for report in reports]).sort().values
    memory, lies = standing.attack_memory, federation.liars(trained, standing.round)
    if federation.attack.omniscient and bool(lies.any()):
        sent, weights, memory = _corrupt(session, broadcast, sent, weights, trained)
        seen = _seen(federation, sent, [])
    unread = {client for report in reports for client in report.rejected}
    silent = sorted(unread | (set(range(len(own))) - set(trained.tolist())))
    kept = [replace(report, own=own, sent=None, sent_seen=None) for report in reports]  # all rows are in one place now
    return Sending(own, own_seen, sent, seen, weights, silent, failed, kept, memory)


def _seen(federation: Federation, models: Tensor, parts: list[tuple[Tensor, Tensors]]) -> Tensors:
    """{name: [N, ...]} of models[N, d], from what the blocks saw of theirs; of a model that no block has seen, now."""
    clients = torch.cat([each for each, _ in parts]) if parts else torch.empty(0, dtype=torch.int64)
    if len(clients) < len(models):
        missing = torch.ones(len(models), dtype=torch.bool)
        missing[clients] = False
        rest = missing.nonzero()[:, 0]
        parts = [*parts, (rest, observe(federation, models[rest]))]
        clients = torch.cat([clients, rest])
    order = clients.argsort()
    return {name: torch.cat([seen[name] for _, seen in parts])[order] for name in parts[0][1]}


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


def _arriving(federation: Federation, round: int, sending: Sending) -> Matrix:
    """csr[N, N]: mixing weights of the messages that reach somebody in this round."""
    network = federation.network
    weights = network.mixing.weights(network.graph(round))
    if sending.silent:
        heard = ~np.isin(weights.indices, sending.silent)
        receivers = np.repeat(np.arange(network.peers), np.diff(weights.indptr))
        weights = csr_array((weights.data[heard], (receivers[heard], weights.indices[heard])), shape=weights.shape)
    return weights


@dataclass(frozen=True)
class Merging:
    """All peers after merging: state {name: [N, ...]}; see MergeReport."""

    state: Tensors
    refused: dict[int, tuple[str, int]]
    alone: list[int]
    memory: Tensors
    diagnostics: Tensors


def _merge(session: Session, broadcast: Broadcast, blocks: list[Tensor], sending: Sending, heard: Matrix) -> Merging:
    federation, standing = session.federation, session.standing
    mixes = getattr(federation.rule, "mixes", False)
    others = {name: value for name, value in standing.state.items() if name != "model"}
    common = Merge(
        round=standing.round,
        layout=broadcast.expects,
        names=tuple(others),
        weights=sending.weights,
        own_seen=sending.own_seen,
        seen=sending.seen,
    )
    items = [
        (receivers, heard[receivers.numpy()], _memory_of(standing.rule_memory, receivers, mixes))
        for receivers in blocks
    ]
    results = session.pool.map(merge_peers, items, (common, sending.own, sending.sent, *others.values()))
    state: Tensors = {}
    refused: dict[int, tuple[str, int]] = {}
    for result in results:
        if isinstance(result, BlockFailure):
            raise FedgenError(f"round {standing.round}: models could not be merged: {result.reason}")
        for name, value in result.state.items():
            whole = state.setdefault(name, value.new_empty(len(sending.own), *value.shape[1:]))
            place_rows(whole, result.receivers, value)
        for sender, (why, times) in result.refused.items():
            refused[sender] = refused.get(sender, (why, 0))[0], refused.get(sender, (why, 0))[1] + times
    for sender, (why, times) in sorted(refused.items()):
        session.journal.event("rejected", standing.round, client=sender, reason=why, receivers=times)
    alone = sorted(receiver for result in results for receiver in result.alone)
    if alone:
        session.journal.event("alone", standing.round, clients=alone, reason="too few messages to merge")
    names = set.intersection(*(set(result.diagnostics) for result in results))
    told = _rows(results, {name: [result.diagnostics[name] for result in results] for name in sorted(names)})
    return Merging(state, refused, alone, _memory(results, standing.rule_memory, mixes), told)


def _memory_of(memory: Tensors, receivers: Tensor, mixes: bool) -> Tensors:
    """A block's part of the rule's memory: rows of [N, ...] where the rule mixes, else by the receivers' names."""
    if mixes:
        return {name: value[receivers] for name, value in memory.items()}
    wanted = set(map(str, receivers.tolist()))
    return {name: value for name, value in memory.items() if name.partition("/")[0] in wanted}


def _memory(results: list[MergeReport], before: Tensors, mixes: bool) -> Tensors:
    if not mixes:
        return {**before, **{name: value for result in results for name, value in result.memory.items()}}
    return _rows(results, {name: [result.memory[name] for result in results] for name in results[0].memory})


def _rows(results: list[MergeReport], parts: dict[str, list[Tensor]]) -> Tensors:
    """{name: [N, ...]}: the blocks' rows, by peer."""
    order = torch.cat([result.receivers for result in results]).argsort()
    return {name: torch.cat(values)[order] for name, values in parts.items()}


def _flood(session: Session, broadcast: Broadcast, blocks: list[Tensor], clock: Stopwatch) -> dict[str, Any]:
    """An exchange of what is no model: passed on until everybody has it, it is the same at every peer."""
    standing, method = session.standing, session.federation.method
    outcome = exchange(session, replace(broadcast, start=broadcast.start[0]), blocks)
    updated = method.server_update(standing.state, outcome.inbox, standing.round)
    outcome.commit(standing)
    size_bytes = broadcast.expects.size * broadcast.expects.dtype.itemsize
    messages = len(outcome.inbox.clients) * session.federation.network.graph(0).hears.nnz
    record = {
        "round": standing.round,
        "metrics": outcome.metrics(),
        "clients": outcome.counts,
        "skipped": False,
        "bytes": {"up": size_bytes * messages, "down": size_bytes * messages},
        "messages": messages,
        "seconds": clock.laps,
    }
    standing.state = {name: canonical(value) for name, value in updated.items()}
    standing.round += 1
    return record
