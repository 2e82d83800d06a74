"""Gossip in rounds: every peer trains, sends its model to those that hear it, and merges what it hears."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fedgen.contracts import Broadcast
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.parameters import Array, Tensors, canonical
from fedgen.server.rounds.exchange import exchange
from fedgen.server.rounds.loop import Loop
from fedgen.server.rounds.measures import note_not_finite, own_metrics
from fedgen.server.rounds.peer_metrics import (
    consensus_distance,
    honest_peers,
    mean_of,
    measured,
    summary,
    told_of_honest,
)
from fedgen.server.rounds.peers import Merging, Sending, merge, send
from fedgen.server.rounds.rejoin import pulled
from fedgen.server.rounds.session import Session, Stopwatch
from fedgen.server.rounds.star import note_redrawn
from fedgen.topology.graph import Matrix, by_row
from fedgen.tracking.record import Outcomes, RoundRecord, Traffic


class Gossip(Loop):
    """Peers without a server, in rounds."""

    def check(self, federation: Federation) -> None:
        """Also refused: a graph that is none, or that leaves peers with fewer neighbours than the rule needs."""
        super().check(federation)
        network, aggregation = federation.network, federation.experiment.aggregation
        graph = network.graph(0)
        network.mixing.weights(graph)
        if federation.experiment.weighs_samples and federation.experiment.gossip.mixing == "metropolis_hastings":
            raise SettingError(
                'gossip.mixing "metropolis_hastings" fixes the weights of the neighbours; set aggregation.weights = '
                '"equal"'
            )
        if federation.root is not None:
            raise SettingError(
                f"aggregation.rule {aggregation.rule.name!r} learns from samples at a server, and gossip has none; "
                "choose another rule, such as monna"
            )
        needed = federation.rule.minimum(aggregation.f)
        if network.static and graph.degrees.min() < needed and federation.experiment.data.clients > 1:
            short = np.flatnonzero(graph.degrees < needed).tolist()
            raise SettingError(
                f"aggregation.rule {aggregation.rule.name!r} needs {needed} messages to withstand aggregation.f = "
                f"{aggregation.f} in an inbox, and {len(short)} peers have fewer neighbours, peer {short[0]} only "
                f"{graph.degrees[short[0]]}; lower aggregation.f or give gossip.topology more edges"
            )

    def initial_state(self, federation: Federation) -> Tensors:
        """{name: [N, ...]} of all peers; one tensor for all where the method says so."""
        peers = federation.experiment.data.clients
        agreed = federation.experiment.gossip.seed_agreement
        common, together = federation.common_state, Tensors()
        for peer in range(peers):
            for name, value in federation.method.initial_state(0 if agreed else peer).items():
                if name in common:
                    together.setdefault(name, value)
                else:
                    together.setdefault(name, value.new_empty(peers, *value.shape))[peer] = value
        return together

    def final_model(self, federation: Federation, state: Tensors, round: int) -> Tensor:
        """The mean of the models of the peers that are honest in that round."""
        return mean_of(state["model"], honest_peers(federation, round)).to(state["model"].dtype)

    def play_round(self, session: Session, evaluate: bool) -> RoundRecord:
        federation, standing, clock = session.federation, session.standing, Stopwatch()
        method, round = federation.method, standing.round
        # 1. Who is there, and what they begin with; who comes back pulls a neighbour's model first.
        gone = federation.network.gone(round)
        broadcast = method.broadcast(pulled(federation, standing.state, round), round)
        blocks = present(federation.cohort(round, everyone=True), gone)
        note_redrawn(session, blocks)
        if broadcast.reduce != "aggregate":
            return flood(session, broadcast, blocks, evaluate, clock)
        # 2. They train; what liars send is something else.
        sending = send(session, broadcast, blocks)
        clock.lap("train")
        # 3. Each merges what reaches it, and runs the server half.
        heard = arriving(federation, round, [*sending.silent, *np.flatnonzero(gone).tolist()])
        note_bound(session, heard, sending.sent.senders)
        own_seen = None if sending.failed else sending.own_seen
        merging = merge(session, broadcast, blocks, sending.own, sending.sent, heard, own_seen)
        clock.lap("aggregate")
        return conclude(session, broadcast, sending, merging, int(heard.nnz), evaluate, clock)


def conclude(
    session: Session,
    broadcast: Broadcast,
    sending: Sending,
    merging: Merging,
    messages: int,
    evaluate: bool,
    clock: Stopwatch,
) -> RoundRecord:
    """Evaluate held-back samples at every peer; then, when nothing can interrupt it any more, the round counts."""
    federation, standing = session.federation, session.standing
    round, state = standing.round, merging.state
    own = own_metrics(session, sending.reports, weighted=False)
    values = measured(session, state) if evaluate else {}
    last = round + 1 == federation.experiment.federation.rounds
    held_back = summary(session, values)
    if evaluate:
        held_back["consensus_distance"] = consensus_distance(federation, state["model"], round)
    note_not_finite(session, held_back)
    told = told_of_honest(federation, round, state["model"] if evaluate else None, merging.diagnostics)
    clock.lap("evaluate")
    sending.commit(standing)
    standing.rule_memory, standing.memories = merging.stacked, merging.memories
    session.spare.give(standing.state["model"])
    session.spare.give(sending.own)
    standing.state, standing.round = state, round + 1
    size_bytes = sending.sent.models.shape[1] * broadcast.expects.dtype.itemsize * messages
    return RoundRecord(
        round=round,
        evaluated=evaluate,
        metrics={**held_back, **own},
        clients=Outcomes(**sending.counts(merging.refused)),
        skipped=False,
        bytes=Traffic(up=size_bytes, down=size_bytes),
        seconds=clock.laps,
        messages=messages,
        alone=len(merging.alone),
        peers={name: value.tolist() for name, value in values.items()} if last else {},
        aggregation=told.aggregation,
        factor=told.factor,
        variance=told.variance,
        by_weight=told.by_weight,
    )


def note_bound(session: Session, heard: Matrix, senders: Array) -> None:
    """Log that honest peers hear more liars than the rule is to withstand; heard csr[N, m]: messages of senders[m]."""
    federation, round = session.federation, session.standing.round
    f = federation.experiment.aggregation.f
    if federation.rule.linear or federation.experiment.byzantine.attack.name == "none":
        return
    lying = federation.liars(torch.from_numpy(senders), round).numpy()
    heard_liars = np.bincount(by_row(heard, np.arange(heard.shape[0])), lying[heard.indices], heard.shape[0])
    exposed = heard_liars[honest_peers(federation, round).numpy()]
    if len(exposed) and exposed.max() > f:
        liars, hit = int(exposed.max()), int((exposed > f).sum())
        reason = f"{hit} of {len(exposed)} honest peers hear more liars than aggregation.f = {f}, up to {liars}"
        session.journal.event("bound_broken", round, reason=reason, liars=liars, f=f)


def present(blocks: list[Tensor], gone: Array) -> list[Tensor]:
    """The blocks without the peers that are gone bool[N]."""
    kept = [block[torch.from_numpy(~gone[block.numpy()])] for block in blocks]
    return [block for block in kept if len(block)]


def arriving(federation: Federation, round: int, silent: list[int]) -> Matrix:
    """csr[N, N]: mixing weights of the messages that reach somebody in this round: none of silent peers, none lost."""
    network = federation.network
    weights = network.mixing.weights(network.graph(round))
    receivers = by_row(weights, np.arange(network.peers))
    heard = ~network.lost(round, receivers, weights.indices)
    if silent:
        heard &= ~np.isin(weights.indices, silent)
    if heard.all():
        return weights
    return csr_array((weights.data[heard], (receivers[heard], weights.indices[heard])), shape=weights.shape)


def flood(
    session: Session, broadcast: Broadcast, blocks: list[Tensor], evaluate: bool, clock: Stopwatch
) -> RoundRecord:
    """An exchange of what is no model: passed on until everybody has it, it is the same at every peer."""
    standing, method = session.standing, session.federation.method
    outcome = exchange(session, replace(broadcast, start=broadcast.start[0]), blocks)
    clock.lap("train")
    updated = method.server_update(standing.state, outcome.inbox, standing.round)
    state = {name: canonical(value) for name, value in updated.items()}
    clock.lap("aggregate")
    held_back = summary(session, measured(session, state) if evaluate else {})
    note_not_finite(session, held_back)
    own = own_metrics(session, outcome.reports, weighted=True)
    clock.lap("evaluate")
    outcome.commit(standing)
    size_bytes = broadcast.expects.size * broadcast.expects.dtype.itemsize
    messages = len(outcome.inbox.clients) * session.federation.network.graph(0).hears.nnz
    record = RoundRecord(
        round=standing.round,
        evaluated=evaluate,
        metrics={**held_back, **own},
        clients=Outcomes(**outcome.counts),
        skipped=False,
        bytes=Traffic(up=size_bytes * messages, down=size_bytes * messages),
        seconds=clock.laps,
        messages=messages,
    )
    standing.state, standing.round = state, standing.round + 1
    return record
