"""Partitioners: which client holds which training sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from fedgen.registry import register

Labels = np.ndarray[Any, np.dtype[np.int64]]
Shards = list[np.ndarray[Any, np.dtype[np.int64]]]


class Partition(Protocol):
    """What is registered as a "partition": disjoint, non-empty, sorted shards that together hold every sample."""

    def split(self, labels: Labels, clients: int, generator: np.random.Generator) -> Shards: ...


@register("partition", "iid")
@dataclass(frozen=True, kw_only=True)
class Iid:
    """Every client holds a uniform random share, sizes equal up to one sample.

    >>> shards = Iid().split(np.zeros(10, int), 3, np.random.default_rng(0))
    >>> sorted(map(len, shards))
    [3, 3, 4]
    """

    def split(self, labels: Labels, clients: int, generator: np.random.Generator) -> Shards:
        order = generator.permutation(len(labels))
        return [np.sort(part) for part in np.array_split(order, clients)]


@register("partition", "dirichlet")
@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    """Label skew: every class is divided by shares p ~ Dirichlet(alpha, ..., alpha) over the clients.

    alpha: 0 exclusive .. infinity; .1 gives most clients one or two classes, 100 is close to iid.  A client left with
    fewer than `minimum` samples takes random ones from whoever holds most (the paper leaves it empty).

    >>> shards = Dirichlet(alpha=0.1).split(np.arange(1000) % 10, 20, np.random.default_rng(0))
    >>> sum(map(len, shards)), min(map(len, shards)) >= 1
    (1000, True)

    Source: T. Hsu, H. Qi, M. Brown, arXiv 1909.06335 (2019), section 3, dividing classes instead of filling clients.
    """

    alpha: Annotated[float, Field(gt=0, description="concentration; smaller is more skewed")] = 0.3
    minimum: Annotated[int, Field(ge=1, description="fewest samples of a client")] = 1

    def split(self, labels: Labels, clients: int, generator: np.random.Generator) -> Shards:
        owner = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            own = generator.permutation(np.flatnonzero(labels == label))
            shares = self._shares(clients, generator)
            owner[own] = np.searchsorted(np.cumsum(shares)[:-1], (np.arange(len(own)) + 0.5) / len(own))
        _fill(owner, clients, min(self.minimum, len(labels) // clients), generator)
        return [np.flatnonzero(owner == client) for client in range(clients)]

    def _shares(self, clients: int, generator: np.random.Generator) -> np.ndarray[Any, np.dtype[np.float64]]:
        if np.isinf(self.alpha):
            return np.full(clients, 1 / clients)
        return generator.dirichlet([self.alpha] * clients)


def _fill(owner: Labels, clients: int, minimum: int, generator: np.random.Generator) -> None:
    counts = np.bincount(owner, minlength=clients)
    for client in np.flatnonzero(counts < minimum):
        while counts[client] < minimum:
            richest = int(counts.argmax())
            owner[generator.choice(np.flatnonzero(owner == richest))] = client
            counts[richest] -= 1
            counts[client] += 1
