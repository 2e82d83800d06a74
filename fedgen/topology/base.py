"""What topologies have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import networkx as nx
import numpy as np
from pydantic import Field

Redraw = Annotated[int, Field(ge=0, description="rounds after which the graph is drawn anew; 0: never")]


class Topology(ABC):
    """What is registered as a "topology"."""

    @property
    def redraw(self) -> int:
        """Rounds that one drawing serves; 0: all of them."""
        return 0

    @abstractmethod
    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        """Nodes 0 .. peers - 1, with an edge i -> j where i turns to j; drawing counts from 0.

        Raises SettingError where there is no such graph of so many peers.
        """


@dataclass(frozen=True, kw_only=True)
class RandomTopology(Topology):
    """A topology that is drawn: once, in the first of some drawings that connects everybody, or again and again."""

    redraw: Redraw = 0
