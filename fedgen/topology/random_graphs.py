"""Graphs that are drawn: k-regular, small world, scale-free, Erdos-Renyi; each may be drawn anew every few rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import networkx as nx
import numpy as np
from pydantic import Field

from fedgen.errors import SettingError
from fedgen.registry import register
from fedgen.topology.base import RandomTopology


@register("topology", "k_regular")
@dataclass(frozen=True, kw_only=True)
class KRegular(RandomTopology):
    """A random graph in which every peer has the same number of neighbours.

    Raises SettingError where degree * N is odd, or degree is not below N.
    """

    degree: Annotated[int, Field(ge=1, description="neighbours of a peer")] = 4

    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        _check_fewer("k_regular", "degree", self.degree, peers)
        if self.degree * peers % 2:
            raise SettingError(
                f"gossip.topology 'k_regular': {peers} peers with {self.degree} neighbours each cannot be, as an "
                "edge has two ends; make degree or data.clients even"
            )
        return nx.random_regular_graph(self.degree, peers, seed=_seed(generator))


@register("topology", "small_world")
@dataclass(frozen=True, kw_only=True)
class SmallWorld(RandomTopology):
    """A ring lattice, some of whose edges are rewired to distant peers.

    Source: D. Watts, S. Strogatz, Collective dynamics of small-world networks, Nature 393 (1998).
    """

    degree: Annotated[int, Field(ge=2, multiple_of=2, description="neighbours on the ring before rewiring")] = 4
    rewire: Annotated[float, Field(ge=0, le=1, description="probability that an edge is led elsewhere")] = 0.1

    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        _check_fewer("small_world", "degree", self.degree, peers)
        return nx.watts_strogatz_graph(peers, self.degree, self.rewire, seed=_seed(generator))


@register("topology", "scale_free")
@dataclass(frozen=True, kw_only=True)
class ScaleFree(RandomTopology):
    """Preferential attachment: a few hubs have many neighbours, most peers have few.

    Source: A.-L. Barabasi, R. Albert, Emergence of scaling in random networks, Science 286 (1999).
    """

    attach: Annotated[int, Field(ge=1, description="edges that each newcomer brings")] = 3

    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        _check_fewer("scale_free", "attach", self.attach, peers)
        return nx.barabasi_albert_graph(peers, self.attach, seed=_seed(generator))


@register("topology", "erdos_renyi")
@dataclass(frozen=True, kw_only=True)
class ErdosRenyi(RandomTopology):
    """Every pair of peers is joined with probability degree / (N - 1).

    With a mean degree below log N some peers are likely to be isolated.
    """

    degree: Annotated[float, Field(gt=0, description="neighbours of a peer in the mean")] = 8.0

    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        probability = min(1.0, self.degree / max(1, peers - 1))
        return nx.fast_gnp_random_graph(peers, probability, seed=_seed(generator))


def _check_fewer(name: str, parameter: str, count: int, peers: int) -> None:
    if count >= peers:
        raise SettingError(
            f"gossip.topology.{parameter} = {count}: a {name!r} graph of data.clients = {peers} peers needs fewer, "
            f"at most {peers - 1}"
        )


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**32))
