"""Base classes of topologies."""

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
        """Rounds until the graph is drawn anew; 0: never."""
        return 0

    @abstractmethod
    def contacts(self, peers: int, drawing: int, generator: np.random.Generator) -> nx.Graph:
        """A graph with nodes 0 .. peers - 1 and an edge i -> j where peer i contacts peer j; drawing counts from 0.

        Raises SettingError where there is no such graph of so many peers.
        """


@dataclass(frozen=True, kw_only=True)
class RandomTopology(Topology):
    """A random topology: drawn once, until a connected graph is found, or redrawn every few rounds."""

    redraw: Redraw = 0
