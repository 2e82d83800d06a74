"""A drawn graph as one sparse matrix: networkx generates, this is the one conversion."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import networkx as nx
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from fedgen.lazy import lazy_property
from fedgen.parameters import Array

Matrix = Any
"""scipy's csr_array, which has no type of its own."""

Protocol = Literal["push", "pull", "push_pull"]


def with_data(matrix: Matrix, data: Array) -> Matrix:
    """The csr matrix of the same pattern with other numbers in it."""
    return csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def by_row(matrix: Matrix, values: Array) -> Array:
    """values[k] of each row, once for every number that the row of csr[k, N] holds."""
    return np.repeat(values, np.diff(matrix.indptr))


def entries(matrix: Matrix, rows: Array, columns: Array) -> Array:
    """float64[e]: the numbers of csr[k, N] at those places, 0 where it holds none."""
    width = matrix.shape[1]
    matrix = matrix.sorted_indices()
    held = by_row(matrix, np.arange(matrix.shape[0])) * width + matrix.indices
    wanted = rows * width + columns
    places = np.searchsorted(held, wanted).clip(max=max(0, len(held) - 1))
    found = held[places] == wanted if len(held) else np.zeros(len(wanted), dtype=bool)
    return np.where(found, matrix.data[places] if len(held) else 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Graph:
    """Which peers receive from which: hears[i, j] = 1 where messages of j reach i; the diagonal is 0."""

    hears: Matrix

    @classmethod
    def of(cls, contacts: nx.Graph, peers: int, protocol: Protocol = "push") -> Graph:
        """From a graph of peers 0 .. peers - 1 with an edge i -> j where i contacts j.

        push: j receives from i.  pull: i receives from j.  push_pull: both.  Equal for undirected graphs.

        >>> Graph.of(nx.DiGraph([(0, 1), (1, 2)]), 3).hears.toarray().tolist()
        [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
        """
        turns = nx.to_scipy_sparse_array(contacts, nodelist=range(peers), weight=None, dtype=np.float64, format="coo")
        away = turns.row != turns.col
        source, target = turns.row[away], turns.col[away]
        if protocol == "pull":
            source, target = target, source
        elif protocol == "push_pull":
            source, target = np.concatenate([source, target]), np.concatenate([target, source])
        hears = csr_array((np.ones(len(source)), (target, source)), shape=(peers, peers))
        hears.sum_duplicates()
        hears.data[:] = 1
        return cls(hears)

    @property
    def peers(self) -> int:
        return int(self.hears.shape[0])

    @lazy_property
    def degrees(self) -> Array:
        """int64[N]: number of peers that each peer receives from."""
        degrees: Array = np.diff(self.hears.indptr)
        return degrees

    @lazy_property
    def symmetric(self) -> bool:
        """Whether the graph is symmetric."""
        return bool((self.hears != self.hears.T).nnz == 0)

    @lazy_property
    def audience(self) -> Array:
        """int64[N]: number of peers that receive from each peer."""
        audience: Array = np.bincount(self.hears.indices, minlength=self.peers)
        return audience

    @property
    def sha256(self) -> str:
        """SHA-256 of the adjacency matrix."""
        pairs = (self.hears.indptr, self.hears.indices)
        return hashlib.sha256(b"".join(each.astype("<i8").tobytes() for each in pairs)).hexdigest()

    def inbox(self, peer: int) -> Array:
        """int64[k]: peers whose messages this peer receives, in order."""
        heard: Array = self.hears.indices[self.hears.indptr[peer] : self.hears.indptr[peer + 1]].astype(np.int64)
        return heard

    def parts(self) -> list[list[int]]:
        """The largest sets of peers that all reach one another, largest first."""
        count, label = connected_components(self.hears, directed=True, connection="strong")
        sets = [np.flatnonzero(label == part).tolist() for part in range(count)]
        return sorted(sets, key=lambda part: (-len(part), part))
