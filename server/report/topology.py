"""`fedgen topology`: a graph as a picture and as numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedgen.errors import SettingError
from fedgen.server.report import graph_picture
from fedgen.topology.graph import Graph
from fedgen.topology.network import Network
from fedgen.topology.spectrum import effective_neighbours, second_eigenvalue
from fedgen.tracking.record import Json


def draw_topology(network: Network, target: Path) -> str:
    """Draw the graph of round 0 into the file `target`; returns a description of the graph.

    Raises SettingError if the graph is invalid or the picture cannot be written.
    """
    save = graph_picture.SAVERS.get(target.suffix.lower())
    if save is None:
        raise SettingError(f"--out {str(target)!r}: a picture ends in {' or '.join(graph_picture.SAVERS)}")
    graph = network.graph(0)
    facts = describe(network)
    try:
        save(target, edges_of(graph), network.peers, f"{network.name}, {network.peers} peers")
    except OSError as error:
        raise SettingError(f"--out {str(target)!r} cannot be written: {error.strerror}") from error
    lines = [f"{name:<24}{_text(value)}" for name, value in facts.items()]
    return "\n".join([*lines, f"{'picture':<24}{target}"])


def network_record(network: Network) -> dict[str, Json]:
    """The contents of network.json: properties of the graph of round 0, and its edges if they can be drawn."""
    edges = edges_of(network.graph(0))
    return {
        "peers": network.peers,
        "edges": edges.tolist() if len(edges) <= graph_picture.MOST_EDGES else [],
        "facts": {name: _text(value) for name, value in describe(network).items()},
        "sha256": network.graph(0).sha256,
    }


def describe(network: Network) -> dict[str, Json]:
    """Properties of a network; of round 0 if it changes."""
    graph = network.graph(0)
    mixing = network.matrix(0)
    facts: dict[str, Json] = {
        "topology": network.name + ("" if network.static else ", another graph every few rounds: this is round 0"),
        "peers": graph.peers,
        "edges": graph.hears.nnz // 2 if graph.symmetric else graph.hears.nnz,
        "degree": degree_words(graph),
    }
    try:
        second = second_eigenvalue(mixing)
        facts |= {"|lambda_2|": second, "spectral gap": 1 - second}
    except ArithmeticError as error:
        facts |= {"spectral gap": f"not known ({error})"}
    return {**facts, "effective neighbours": effective_neighbours(mixing)}


def edges_of(graph: Graph) -> graph_picture.Edges:
    """int64[e, 2]: pairs (receiver, sender), one per pair if both receive from each other."""
    pairs = graph.hears.tocoo()
    both = np.stack([pairs.row, pairs.col], axis=1).astype(np.int64)
    return np.unique(np.sort(both, axis=1), axis=0)


def degree_words(graph: Graph) -> str:
    least, most = int(graph.degrees.min()), int(graph.degrees.max())
    return str(least) if least == most else f"{least} .. {most}, mean {graph.degrees.mean():.3g}"


def _text(value: Json) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
