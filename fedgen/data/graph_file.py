"""Graphs on disk."""

from __future__ import annotations

from pathlib import Path

import networkx as nx

from fedgen.errors import SettingError


def read_graph(path: str | Path) -> nx.Graph:
    """The graph of an edge list or a GraphML file, its nodes numbered 0, 1, ... in the order of their names.

    Raises SettingError where there is no such file, or no graph in it.
    """
    reader = nx.read_graphml if Path(path).suffix.lower() == ".graphml" else _read_edges
    try:
        graph = reader(path)
    except Exception as error:
        raise SettingError(f"no graph can be read from {str(path)!r} ({type(error).__name__}: {error})") from error
    if len(graph) == 0:
        raise SettingError(f"{str(path)!r} holds no edge; write one a line, such as `0 1`")
    names = sorted(graph, key=_order)
    return nx.relabel_nodes(graph, {name: number for number, name in enumerate(names)})


def _read_edges(path: str | Path) -> nx.Graph:
    return nx.read_edgelist(path, data=False)


def _order(name: object) -> tuple[bool, int, str]:
    """Numbers by value, then other names."""
    text = str(name)
    return (False, int(text), "") if text.isdecimal() else (True, 0, text)
