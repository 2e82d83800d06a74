"""A graph from a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import networkx as nx
import numpy as np
from pydantic import Field

from fedgen.data.graph_file import read_graph
from fedgen.errors import SettingError
from fedgen.registry import register
from fedgen.topology.base import Topology


@register("topology", "file")
@dataclass(frozen=True, kw_only=True)
class File(Topology):
    """The graph of a file: an edge list ("0 1" a line, # begins a comment), or GraphML by the ending .graphml.

    Peers are the file's nodes in the order of their names, numbers by value.  An edge i -> j of a directed GraphML
    means that peer i contacts peer j (see gossip.protocol).

    Raises SettingError where the file holds no graph, or not one of data.clients nodes.
    """

    path: Annotated[str, Field(min_length=1, description="the file; relative to the working directory")] = "graph.txt"

    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        graph = read_graph(self.path)
        if len(graph) != peers:
            raise SettingError(
                f"gossip.topology.path {self.path!r} holds {len(graph)} peers and data.clients is {peers}; set "
                f"data.clients = {len(graph)}"
            )
        return graph
