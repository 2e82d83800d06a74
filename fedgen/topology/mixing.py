"""Mixing matrices W: one step of averaging is x <- W x."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from scipy.sparse import csr_array, diags_array

from fedgen.errors import SettingError
from fedgen.parameters import Array
from fedgen.topology.graph import Graph, Matrix, by_row, with_data

Name = Literal["uniform", "metropolis_hastings"]


class Mixing(Protocol):
    """Merging of an inbox: own + share * (weighted mean of the inbox - own)."""

    def weights(self, graph: Graph) -> Matrix:
        """csr[N, N] of the graph's pattern: the weight of each message.

        Raises SettingError for a graph that this mixing does not support.
        """
        ...

    def share(self, received: Array) -> Array:
        """float64[k]: total mixing weight of the neighbours, 1 - self-weight, for peers whose received messages weigh
        received[k] in sum; 0 for none."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Equal neighbour weights; self-weight `keep`: w_ii = keep, w_ij = (1 - keep) / |inbox of i|."""

    keep: float = 0.5

    def weights(self, graph: Graph) -> Matrix:
        return graph.hears

    def share(self, received: Array) -> Array:
        return np.where(received > 0, 1 - self.keep, 0.0)


@dataclass(frozen=True)
class MetropolisHastings:
    """w_ij = 1 / (1 + max(degree_i, degree_j)), w_ii = 1 - sum_j w_ij: doubly stochastic, so mixing preserves the mean.

    Source: L. Xiao, S. Boyd, S. Lall, Distributed average consensus with least-mean-square deviation, 2005, section 2.
    """

    def weights(self, graph: Graph) -> Matrix:
        if not graph.symmetric:
            raise SettingError(
                "gossip.mixing 'metropolis_hastings' needs a graph in which everybody is heard by those it hears; "
                'set gossip.mixing = "uniform" or gossip.protocol = "push_pull"'
            )
        edges = graph.hears.tocoo()
        weights = 1 / (1 + np.maximum(graph.degrees[edges.row], graph.degrees[edges.col]))
        return csr_array((weights, (edges.row, edges.col)), shape=edges.shape)

    def share(self, received: Array) -> Array:
        return received


def mixing_of(name: Name, keep: float | None) -> Mixing:
    """The mixing that the experiment configures."""
    return MetropolisHastings() if name == "metropolis_hastings" else Uniform(0.5 if keep is None else keep)


def normalised(weights: Matrix) -> tuple[Matrix, Array]:
    """(weights[k, N] with rows that add up to 1, or are empty; float64[k]: what they added up to)."""
    peers = weights.shape[0]
    received = np.bincount(by_row(weights, np.arange(peers)), weights.data, peers).astype(np.float64)  # int if empty
    scale = np.divide(1, received, out=np.zeros_like(received), where=received > 0)
    return with_data(weights, weights.data * by_row(weights, scale)), received


def matrix(mixing: Mixing, graph: Graph) -> Matrix:
    """W as csr float64[N, N]: every row adds up to 1.

    >>> import networkx as nx
    >>> matrix(Uniform(0.5), Graph.of(nx.path_graph(3), 3)).toarray().tolist()
    [[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [0.0, 0.5, 0.5]]
    """
    means, received = normalised(mixing.weights(graph))
    share = mixing.share(received)
    return csr_array(diags_array(1 - share) + diags_array(share) @ means)
