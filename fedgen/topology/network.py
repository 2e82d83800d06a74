"""The graph and the mixing weights of each round."""

from __future__ import annotations

from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import torch

from fedgen import registry
from fedgen.config import Experiment
from fedgen.errors import SettingError
from fedgen.parameters import Array
from fedgen.streams import Streams
from fedgen.topology.base import RandomTopology, Topology
from fedgen.topology.graph import Graph, Matrix, Protocol
from fedgen.topology.mixing import Mixing, matrix, mixing_of

DRAWINGS = 100
"""Times that a random graph is drawn until it connects everybody."""


@dataclass(frozen=True)
class Churn:
    """In each round from `first` to `last` every peer goes offline with equal probability, for `away` rounds.

    Departures are a function of seed, round and peer, so no state is kept.
    """

    probability: float = 0.0
    away: int = 20
    first: int = 0
    last: int = 2**62

    def gone(self, streams: Streams, peers: int, round: int) -> Array:
        """bool[N]: peers that went offline in one of the last `away` rounds."""
        gone = np.zeros(peers, dtype=bool)
        if self.probability:
            for left in range(max(self.first, round - self.away + 1), min(self.last, round) + 1):
                gone |= streams.uniform("churn", left, torch.arange(peers), 1)[:, 0].numpy() < self.probability
        return gone


@dataclass(frozen=True)
class Network:
    """The communication graph of every round, as the tables [gossip] and [faults] describe it."""

    topology: Topology
    peers: int
    mixing: Mixing
    streams: Streams
    protocol: Protocol = "push"
    name: str = "topology"
    loss: float = 0.0
    churn: Churn = field(default_factory=lambda: Churn())
    _last: dict[int, Graph] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def static(self) -> bool:
        """Whether all rounds use one graph."""
        return self.topology.redraw == 0

    def graph(self, round: int) -> Graph:
        """The graph of a round.

        Raises SettingError where the one graph of all rounds leaves peers that cannot reach one another; it names them.
        """
        drawing = 0 if self.static else max(0, round) // self.topology.redraw
        if drawing not in self._last:
            graph = self._draw(drawing)
            self._last.clear()
            self._last[drawing] = graph
        return self._last[drawing]

    def lost(self, round: int, receivers: Array, senders: Array) -> Array:
        """bool[e]: lost messages of a round."""
        if not self.loss:
            return np.zeros(len(receivers), dtype=bool)
        edges = torch.from_numpy(receivers.astype(np.int64) * self.peers + senders)
        lost: Array = self.streams.uniform("loss", round, edges, 1)[:, 0].numpy() < self.loss
        return lost

    def gone(self, round: int) -> Array:
        """bool[N]: peers that are offline in a round."""
        return self.churn.gone(self.streams, self.peers, round)

    def matrix(self, round: int) -> Matrix:
        """W of a round, csr float64[N, N]."""
        return matrix(self.mixing, self.graph(round))

    def _contacts(self, drawing: int, generator: np.random.Generator) -> nx.Graph:
        """A single peer has no neighbours, whatever the topology."""
        return nx.empty_graph(1) if self.peers == 1 else self.topology.contacts(self.peers, drawing, generator)

    def _draw(self, drawing: int) -> Graph:
        generator = np.random.default_rng(self.streams.seed_for("topology", drawing))
        again = DRAWINGS if self.static and isinstance(self.topology, RandomTopology) else 1
        for _ in range(again):
            graph = Graph.of(self._contacts(drawing, generator), self.peers, self.protocol)
            if not self.static or len(graph.parts()) == 1:
                return graph
        parts = graph.parts()
        told = [_told(part) for part in parts[:3]] + (["..."] if len(parts) > 3 else [])
        raise SettingError(
            f"gossip.topology {self.name!r} falls into {len(parts)} parts that cannot reach one another: "
            f"{'; '.join(told)}; give it more edges"
        )


def network_of(experiment: Experiment) -> Network:
    """The network of an experiment, from its tables [gossip] and [faults], number of clients and seed alone."""
    gossip, faults = experiment.gossip, experiment.faults
    choice = gossip.topology
    return Network(
        topology=registry.build("topology", choice.name, choice.params),
        peers=experiment.data.clients,
        mixing=mixing_of(gossip.mixing, gossip.keep),
        streams=Streams(experiment.experiment.seed),
        protocol=gossip.protocol,
        name=choice.name,
        loss=faults.loss,
        churn=Churn(faults.churn, faults.away, *(faults.churn_rounds or (0, 2**62))),
    )


def _told(part: list[int]) -> str:
    shown = ", ".join(map(str, part[:6])) + (", ..." if len(part) > 6 else "")
    return f"{'peer' if len(part) == 1 else f'{len(part)} peers'} {shown}"
