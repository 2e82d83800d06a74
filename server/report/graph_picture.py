"""A picture of a graph, with peers in one colour or coloured by a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from fedgen.server.report.canvas import COLOURS, drawing, standalone, written

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE = 460
SPRINGS = 500
"""Largest graph drawn with a spring layout; larger graphs are drawn as a circle."""
MOST_EDGES = 20_000

Positions = NDArray[np.float64]
Edges = NDArray[np.int64]
"""[e, 2]: pairs (receiver, sender)."""


def positions(edges: Edges, peers: int) -> Positions:
    """[N, 2]: a circle for rings, lines and dense graphs, else a spring layout."""
    degrees = np.bincount(edges.ravel(), minlength=peers)
    if peers > SPRINGS or degrees.max(initial=0) <= 2 or degrees.mean() > peers / 2:
        turn = 2 * np.pi * np.arange(peers) / max(1, peers)
        return np.stack([np.sin(turn), np.cos(turn)], axis=1)
    graph = nx.empty_graph(peers)
    graph.add_edges_from(edges.tolist())
    start = nx.kamada_kawai_layout(graph) if peers <= 100 and nx.is_connected(graph) else None
    placed = start or nx.spring_layout(graph, seed=0, iterations=100)
    return np.array([placed[peer] for peer in range(peers)])


def plot(
    figure: Figure,
    edges: Edges,
    peers: int,
    values: Sequence[float] | None = None,
    label: str = "",
    marked: Sequence[int] = (),
) -> None:
    """Draw peers and edges. values[N]: colours of the peers, with a colour bar. Marked peers get a cross."""
    from matplotlib.collections import LineCollection

    axes = figure.subplots()
    axes.set_axis_off()
    axes.set_aspect("equal")
    places = positions(edges, peers)
    if len(edges) <= MOST_EDGES:
        axes.add_collection(LineCollection(list(places[edges]), colors=COLOURS["edge"], linewidths=0.8, zorder=1))
    size = float(np.clip(9_000 / max(1, peers), 6, 120))
    colour: dict[str, Any] = {"color": COLOURS["blue"]} if values is None else {"c": list(values), "cmap": "viridis"}
    dots = axes.scatter(places[:, 0], places[:, 1], s=size, zorder=2, linewidths=0, **colour)
    if len(marked):
        crossed = places[list(marked)]
        axes.scatter(crossed[:, 0], crossed[:, 1], s=size, zorder=3, marker="x", color=COLOURS["red"], linewidths=1.4)
    if values is not None:
        bar = figure.colorbar(dots, ax=axes, shrink=0.7, label=label)
        bar.outline.set_visible(False)


def _save_svg(target: Path, edges: Edges, peers: int, title: str) -> None:
    with drawing(SIDE, SIDE) as figure:
        plot(figure, edges, peers)
        target.write_text(standalone(written(figure, title), title), "utf-8")


def _save_png(target: Path, edges: Edges, peers: int, title: str) -> None:
    with drawing(SIDE, SIDE) as figure:
        plot(figure, edges, peers)
        figure.savefig(target, format="png", dpi=150)


SAVERS: Mapping[str, Callable[[Path, Edges, int, str], None]] = {".svg": _save_svg, ".png": _save_png}
"""File suffix -> function that writes the picture in that format."""
