"""Exponential graphs: directed, with diameter log2 N."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import networkx as nx
import numpy as np

from fedgen.registry import register
from fedgen.topology.base import Topology


@register("topology", "exponential")
@dataclass(frozen=True, kw_only=True)
class Exponential(Topology):
    """Peer i sends to i + 1, i + 2, i + 4, ... (modulo N): log2 N neighbours, few hops.

    Source: M. Assran et al., Stochastic gradient push, arXiv 1811.10792 (2019), section 3.
    """

    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        return _steps(peers, hops(peers))


@register("topology", "one_peer_exponential")
@dataclass(frozen=True, kw_only=True)
class OnePeerExponential(Topology):
    """In round t peer i sends to i + 2^t (modulo N) alone, the power running through the exponential graph's.

    Source: B. Ying et al., Exponential graph is provably efficient, arXiv 2110.13363 (2021), section 4.
    """

    redraw: ClassVar[int] = 1

    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        every = hops(peers)
        return _steps(peers, every[drawing % len(every) :][:1])


def hops(peers: int) -> list[int]:
    """1, 2, 4, ... below the number of peers.

    >>> hops(9)
    [1, 2, 4, 8]
    """
    return [1 << power for power in range(max(1, (peers - 1).bit_length()))]


def _steps(peers: int, steps: list[int]) -> nx.DiGraph:
    graph = nx.empty_graph(peers, create_using=nx.DiGraph)
    graph.add_edges_from((peer, (peer + step) % peers) for step in steps for peer in range(peers))
    return graph
