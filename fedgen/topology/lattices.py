"""Regular shapes: ring, line, star, torus, complete graph."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import networkx as nx
import numpy as np

from fedgen.errors import SettingError
from fedgen.registry import register
from fedgen.topology.base import Topology


@register("topology", "ring")
@dataclass(frozen=True, kw_only=True)
class Ring(Topology):
    """Peers i and i + 1 exchange messages, and so do the last and the first."""

    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        return nx.cycle_graph(peers)


@register("topology", "line")
@dataclass(frozen=True, kw_only=True)
class Line(Topology):
    """Peers i and i + 1 exchange messages: the slowest topology to reach consensus."""

    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        return nx.path_graph(peers)


@register("topology", "star")
@dataclass(frozen=True, kw_only=True)
class Star(Topology):
    """Peer 0 exchanges messages with every other peer; it is a peer, not a server."""

    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        return nx.star_graph(peers - 1)


@register("topology", "torus")
@dataclass(frozen=True, kw_only=True)
class Torus(Topology):
    """A grid with opposite edges joined, as square as the number of peers allows: four neighbours each."""

    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        rows = next((rows for rows in range(isqrt(peers), 2, -1) if peers % rows == 0), 0)
        if not rows:
            side = max(3, isqrt(peers - 1) + 1)
            raise SettingError(
                f"gossip.topology 'torus' needs a number of peers that is rows * columns, both 3 or more, not "
                f"data.clients = {peers}; try {side} * {side} = {side**2}"
            )
        grid = nx.grid_2d_graph(rows, peers // rows, periodic=True)
        return nx.convert_node_labels_to_integers(grid, ordering="sorted")


@register("topology", "complete")
@dataclass(frozen=True, kw_only=True)
class Complete(Topology):
    """Every peer receives from every other."""

    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        return nx.complete_graph(peers)
