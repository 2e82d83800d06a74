"""Epidemic: every round each peer contacts a few random peers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import networkx as nx
import numpy as np
from pydantic import Field

from fedgen.errors import SettingError
from fedgen.registry import register
from fedgen.topology.base import Topology


@register("topology", "epidemic")
@dataclass(frozen=True, kw_only=True)
class Epidemic(Topology):
    """Every round each peer contacts `fanout` random others: it sends to them or pulls from them (gossip.protocol).

    Source: M. de Vos et al., Epidemic learning, arXiv 2310.01972 (2023), EL-Local.
    """

    redraw: ClassVar[int] = 1
    fanout: Annotated[int, Field(ge=1, description="peers that each turns to in a round")] = 4

    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        if self.fanout >= peers:
            raise SettingError(
                f"gossip.topology.fanout = {self.fanout}: there are only {peers - 1} others among data.clients = "
                f"{peers}; lower it"
            )
        graph = nx.empty_graph(peers, create_using=nx.DiGraph)
        for peer in range(peers):
            others = generator.choice(peers - 1, self.fanout, replace=False)
            graph.add_edges_from((peer, int(other + (other >= peer))) for other in others)
        return graph
