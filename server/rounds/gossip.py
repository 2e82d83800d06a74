"""Gossip in rounds: every peer trains, sends its model to its neighbours, and merges the models it receives."""

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
    honest_means,
    honest_peers,
    mean_of,
    measured,
    summary,
)
from fedgen.server.rounds.peers import Merging, Sending, merge, send
from fedgen.server.rounds.rejoin import pulled
from fedgen.server.rounds.session import Session, Stopwatch
from fedgen.server.rounds.star import note_redrawn
from fedgen.topology.graph import Matrix, by_row
from fedgen.tracking.record import Outcomes, RoundRecord, Traffic


class Gossip(Loop):
    """Peers without a server; all train and merge in every round."""

    def check(self, federation: Federation) -> None:
        """Also refuses an invalid graph, and one in which a peer has fewer neighbours than the rule needs."""
        super().check(federation)
        network = federation.network
        aggregation = federation.experiment.aggregation
        graph = network.graph(0)
        network.mixing.weights(graph)
        if federation.experiment.weighs_samples and federation.experiment.gossip.mixing == "metropolis_hastings":
            raise SettingError(
                'gossip.mixing "metropolis_hastings" fixes the weights of the neighbours; set aggregation.weights = '
                '"equal"'
            )
        if federation.root is not None:
            raise SettingError(
                f"aggregation.rule {aggregation.rule.name!r} needs samples at a server, and gossip has no server; "
                "choose another rule, such as monna"
            )
        needed = federation.rule.minimum(aggregation.f)
        if network.static and graph.degrees.min() < needed and federation.experiment.data.clients > 1:
            short = np.flatnonzero(graph.degrees < needed).tolist()
            raise SettingError(
                f"aggregation.rule {aggregation.rule.name!r} needs {needed} messages in an inbox to tolerate "
                f"aggregation.f = {aggregation.f}, but {len(short)} peers have fewer neighbours, peer {short[0]} only "
                f"{graph.degrees[short[0]]}; lower aggregation.f or give gossip.topology more edges"
            )

    def initial_state(self, federation: Federation) -> Tensors:
        """{name: [N, ...]} of all peers; names in the method's `common` have one tensor for all peers."""
        peers = federation.experiment.data.clients
        agreed = federation.experiment.gossip.seed_agreement
        common = federation.common_state
        together = Tensors()
        for peer in range(peers):
            for name, value in federation.method.initial_state(0 if agreed else peer).items():
                if name in common:
                    together.setdefault(name, value)
                else:
                    together.setdefault(name, value.new_empty(peers, *value.shape))[peer] = value
        return together

    def final_model(self, federation: Federation, state: Tensors, round: int) -> Tensor:
        """Mean model of the peers that are honest in this round."""
        return mean_of(state["model"], honest_peers(federation, round)).to(state["model"].dtype)

    def play_round(self, session: Session, evaluate: bool) -> RoundRecord:
        federation = session.federation
        standing = session.standing
        clock = Stopwatch()
        method = federation.method
        round = standing.round
        # 1. Peers that are present; those that come back pull a neighbour's model first.
        gone = federation.network.gone(round)
        broadcast = method.broadcast(pulled(federation, standing.state, round), round)
        blocks = present(federation.cohort(round, everyone=True), gone)
        note_redrawn(session, blocks)
        if broadcast.reduce != "aggregate":
            return flood(session, broadcast, blocks, evaluate, clock)
        # 2. They train and send; attacks change what Byzantine peers send.
        sending = send(session, broadcast, blocks)
        clock.lap("train")
        # 3. Every peer merges its inbox and runs `server_update`.
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
    """Evaluate every peer; then, when nothing can interrupt it any more, commit the round."""
    federation, standing = session.federation, session.standing
    round = standing.round
    state = merging.state
    own = own_metrics(session, sending.reports, weighted=False)
    values = measured(session, state) if evaluate else {}
    last = round + 1 == federation.experiment.federation.rounds
    held_back = summary(session, values)
    if evaluate:
        held_back["consensus_distance"] = consensus_distance(federation, state["model"], round)
    note_not_finite(session, held_back)
    means = honest_means(federation, round, state["model"] if evaluate else None, merging.diagnostics)
    clock.lap("evaluate")
    sending.commit(standing)
    standing.rule_memory, standing.memories = merging.stacked, merging.memories
    session.spare.give(standing.state["model"])
    session.spare.give(sending.own)
    standing.state = state
    standing.round = round + 1
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
        aggregation=means.aggregation,
        factor=means.factor,
        variance=means.variance,
        by_weight=means.by_weight,
    )


def note_bound(session: Session, heard: Matrix, senders: Array) -> None:
    """Log the honest peers whose inbox has more than f Byzantine messages; heard csr[N, m]: messages of senders[m]."""
    federation = session.federation
    round = session.standing.round
    f = federation.experiment.aggregation.f
    if federation.rule.linear or federation.experiment.byzantine.attack.name == "none":
        return
    byzantine = federation.byzantine_among(torch.from_numpy(senders), round).numpy()
    heard_byzantine = np.bincount(by_row(heard, np.arange(heard.shape[0])), byzantine[heard.indices], heard.shape[0])
    exposed = heard_byzantine[honest_peers(federation, round).numpy()]
    if len(exposed) and exposed.max() > f:
        most, hit = int(exposed.max()), int((exposed > f).sum())
        reason = f"{hit} honest peers receive more than aggregation.f = {f} Byzantine messages, up to {most}"
        session.journal.event("bound_broken", round, reason=reason, byzantine=most, f=f)


def present(blocks: list[Tensor], gone: Array) -> list[Tensor]:
    """The blocks without absent peers; gone bool[N]."""
    kept = [block[torch.from_numpy(~gone[block.numpy()])] for block in blocks]
    return [block for block in kept if len(block)]


def arriving(federation: Federation, round: int, silent: list[int]) -> Matrix:
    """csr[N, N]: mixing weights of the messages that arrive in this round, without silent senders and lost messages."""
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
    """A setup exchange: its rows are flooded through the network, so every peer receives the same ones."""
    standing = session.standing
    method = session.federation.method
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
    standing.state = state
    standing.round += 1
    return record
