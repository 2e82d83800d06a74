"""Gossip in virtual time: a round is a tick; trainings take several ticks; peers merge when their inbox is full."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fedgen.clients.mail import Messages
from fedgen.contracts import Broadcast
from fedgen.federation import Federation
from fedgen.parameters import Array
from fedgen.server.rounds.gossip import Gossip, conclude, flood, note_bound
from fedgen.server.rounds.peers import Sending, merge, send
from fedgen.server.rounds.post import MESSAGE, NONE, RECEIVER, SENDER, SENT, Post
from fedgen.server.rounds.rejoin import pulled, returning
from fedgen.server.rounds.session import Session, Stopwatch
from fedgen.server.rounds.star import note_redrawn
from fedgen.topology.graph import Matrix, entries
from fedgen.tracking.record import RoundRecord


class VirtualTime(Gossip):
    """Peers without a server, at different speeds; a round is a tick."""

    def play_round(self, session: Session, evaluate: bool) -> RoundRecord:
        federation = session.federation
        standing = session.standing
        clock = Stopwatch()
        tick = standing.round
        network = federation.network
        # 1. Peers that are present; those that come back pull a neighbour's model first.
        gone = network.gone(tick)
        broadcast = federation.method.broadcast(pulled(federation, standing.state, tick), tick)
        if broadcast.reduce != "aggregate":
            return flood(session, broadcast, federation.cohort(tick, everyone=True), evaluate, clock)
        post = Post.restore(standing.post) if standing.post else _opened(federation, broadcast)
        post = post.forgetting(returning(federation, tick))
        note_redrawn(session, federation.cohort(tick, everyone=True))
        # 2. Peers whose training ends in this tick train and send.
        ready = np.flatnonzero((post.due <= tick) & ~gone)
        sending = send(session, broadcast, _blocks(federation, ready), post.changed, fatal=False)
        post = _posted(federation, post, sending, ready, tick)
        clock.lap("train")
        # 3. Messages arrive; peers with a full inbox merge it and run `server_update`.
        post = post.delivered(tick, gone)
        weights = network.mixing.weights(network.graph(tick))
        receivers, places = post.inboxes(tick, _needed(federation, weights, gone), weights)
        letters = post.letters[places]
        heard = _heard(federation, letters, weights, len(post.messages.senders), tick)
        note_bound(session, heard, post.messages.senders)
        merging = merge(session, broadcast, _blocks(federation, receivers), sending.own, post.messages, heard)
        clock.lap("aggregate")
        # 4. Evaluation; then the tick is committed.
        record = conclude(session, broadcast, sending, merging, len(letters), evaluate, clock)
        standing.post = post.without(places).forgetting(receivers).tensors()
        staleness = float((tick - letters[:, SENT]).mean()) if len(letters) else None
        return replace(record, staleness=staleness, merged=len(receivers))


def _opened(federation: Federation, broadcast: Broadcast) -> Post:
    """The state before the first tick: all peers train, no message has been sent."""
    peers, size = broadcast.start.shape
    layout = federation.sent_layout(broadcast.expects)
    nothing = Messages(torch.empty(0, layout.size, dtype=layout.dtype), np.empty(0, np.int64), np.empty(0), {})
    changed = torch.zeros(peers, layout.size - size, dtype=layout.dtype)
    trained = np.zeros(peers, np.int64)
    due = _durations(federation, np.arange(peers), trained)
    return Post(due, trained, np.full(peers, NONE), np.empty((0, 5), np.int64), nothing, changed)


def _durations(federation: Federation, peers: Array, trained: Array) -> Array:
    """int64[k]: ticks of the next training of each peer."""
    least, most = federation.experiment.virtual_time.training_ticks
    durations = np.empty(len(peers), np.int64)
    for count in np.unique(trained):
        those = trained == count
        clients = torch.from_numpy(peers[those])
        words = federation.streams.words("duration", int(count), clients, 1)[:, 0].astype(np.int64)
        durations[those] = least + words % (most - least + 1)
    slow = federation.stragglers.numpy()[peers]
    durations[slow] = np.ceil(durations[slow] * federation.experiment.virtual_time.slowdown)
    return durations


def _delays(federation: Federation, tick: int, edges: Array, purpose: str) -> Array:
    """int64[e]: delay of a letter in ticks."""
    least, most = federation.experiment.virtual_time.delay
    words = federation.streams.words(f"delay.{purpose}", tick, torch.from_numpy(edges), 1)[:, 0].astype(np.int64)
    return least + words % (most - least + 1)


def _posted(federation: Federation, post: Post, sending: Sending, ready: Array, tick: int) -> Post:
    """The post after the peers in `ready` have sent their models and pulled those of neighbours."""
    network = federation.network
    protocol = federation.experiment.gossip.protocol
    senders = np.setdiff1d(ready, sending.silent)
    fresh = sending.sent.of(senders)
    newest = post.latest.copy()
    newest[senders] = len(post.messages.senders) + np.arange(len(senders))
    hears = network.graph(tick).hears.tocoo()
    letters = []
    if protocol != "pull":
        sent = np.isin(hears.col, senders)
        letters.append(_letters(federation, tick, hears.row[sent], hears.col[sent], newest, 1))
    if protocol != "push":  # a pull is answered with the neighbour's last message, after two delays
        asked = np.isin(hears.row, senders) & (post.latest[hears.col] != NONE)
        letters.append(_letters(federation, tick, hears.row[asked], hears.col[asked], post.latest, 2))
    trained = post.trained.copy()
    trained[ready] += 1
    due = post.due.copy()
    due[ready] = tick + _durations(federation, ready, trained[ready])
    latest = np.full_like(newest, NONE) if protocol == "push" else newest
    changed = sending.own[:, sending.own.shape[1] - post.changed.shape[1] :].clone()
    letters_now = np.concatenate([post.letters, *letters])
    return Post(due, trained, latest, letters_now, post.messages + fresh, changed)


def _letters(federation: Federation, tick: int, receivers: Array, senders: Array, message: Array, ways: int) -> Array:
    """int64[l, 5]: letters sent in this tick, without lost ones."""
    network = federation.network
    receivers = receivers.astype(np.int64)
    senders = senders.astype(np.int64)
    kept = ~network.lost(tick, receivers, senders)
    receivers, senders = receivers[kept], senders[kept]
    edges = receivers * network.peers + senders
    arrival = tick + sum(_delays(federation, tick, edges, str(way)) for way in range(ways))
    ticks = np.full(len(receivers), tick)
    return np.stack([arrival, receivers, senders, ticks, message[senders]], axis=1)


def _needed(federation: Federation, weights: Matrix, gone: Array) -> Array:
    """int64[N]: letters that fill an inbox, a share of the present neighbours; unreachably many for absent peers."""
    there = np.asarray((weights > 0).astype(np.float64) @ (~gone).astype(np.float64))
    share = federation.experiment.virtual_time.inbox
    needed: Array = np.maximum(1, np.ceil(share * there - 1e-9)).astype(np.int64)
    return np.where(gone, np.iinfo(np.int64).max, needed)


def _heard(federation: Federation, letters: Array, weights: Matrix, messages: int, tick: int) -> Matrix:
    """csr[N, m]: mixing weights of the merged letters, reduced by age:

    w <- w (1 + t)^-age_decay, t: ticks since a letter was sent.  Source: C. Xie, S. Koyejo, I. Gupta, Asynchronous
    federated optimization, arXiv 1903.03934 (2019), section 5.2, polynomial.
    """
    values = entries(weights, letters[:, RECEIVER], letters[:, SENDER])
    values = values * (1.0 + tick - letters[:, SENT]) ** -federation.experiment.virtual_time.age_decay
    heard = csr_array((values, (letters[:, RECEIVER], letters[:, MESSAGE])), shape=(weights.shape[0], messages))
    heard.sort_indices()
    return heard


def _blocks(federation: Federation, peers: Array) -> list[Tensor]:
    """Peers in blocks of the experiment's size, in order."""
    block = federation.experiment.training.block
    assert isinstance(block, int)
    return [part for part in torch.from_numpy(peers).split(block) if len(part)]
