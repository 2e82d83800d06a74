"""Partitioners: which client holds which training sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedgen.data.targets import KINDS, TargetKind
from fedgen.errors import SettingError
from fedgen.parameters import Array
from fedgen.registry import register

Labels = NDArray[np.int64]
Numbers = NDArray[np.float32]
Shard = NDArray[np.int64]
Shards = list[Shard]


class Partition(ABC):
    """What is registered as a "partition"; takes: the kinds of targets that it is made for.

    `split` may have further arguments, and gets by their names: x[s, ...], the samples; numbers[s], which training
    samples of the data set they are, from 0 in the order of its file; domain[s] and client[s], numbers of the names in
    these columns, None where the data have none.
    """

    takes: ClassVar[tuple[TargetKind, ...]] = KINDS

    @abstractmethod
    def split(self, labels: Array, clients: int, generator: np.random.Generator) -> Shards:
        """One shard a client: whole numbers from 0 to s - 1, which count the samples of labels[s, ...].

        These are the training samples without those held back for validation.  Shards share no sample, and none is
        empty; samples that are in none stay unused.
        """


def sample_means(y: Array) -> Numbers:
    """float[s]: the number of every sample of y[s, ...], of vectors the mean."""
    means: Numbers = y.reshape(len(y), -1).mean(1)
    return means


@register("partition", "iid")
@dataclass(frozen=True, kw_only=True)
class Iid(Partition):
    """Every client holds a uniform random share, sizes equal up to one sample.

    >>> shards = Iid().split(np.zeros(10, int), 3, np.random.default_rng(0))
    >>> sorted(map(len, shards))
    [3, 3, 4]
    """

    def split(self, labels: Array, clients: int, generator: np.random.Generator) -> Shards:
        order = generator.permutation(len(labels))
        return [np.sort(part) for part in np.array_split(order, clients)]


@register("partition", "quantiles")
@dataclass(frozen=True, kw_only=True)
class Quantiles(Partition):
    """Regression with skew: every client holds some ranges of the target, of equal numbers of samples.

    The samples are sorted by target (of vectors, by their mean) and cut into clients * per_client pieces; each client
    gets `per_client` random ones. With 1 no two clients share a range, with many the division is close to iid.

    >>> shards = Quantiles().split(np.arange(12.0) % 6, 3, np.random.default_rng(0))
    >>> sorted(sorted(set((shard % 6).tolist())) for shard in shards)
    [[0, 1], [2, 3], [4, 5]]

    Source: H. B. McMahan et al., arXiv 1602.05629 (2017), section 3, shards of a list sorted by the target.
    """

    per_client: Annotated[int, Field(ge=1, description="ranges of a client; fewer are more skewed")] = 1
    takes: ClassVar[tuple[TargetKind, ...]] = ("numbers",)

    def split(self, labels: Array, clients: int, generator: np.random.Generator) -> Shards:
        pieces = clients * self.per_client
        if pieces > len(labels):
            raise SettingError(
                f"data.partition.per_client = {self.per_client} for {clients} clients is more than the {len(labels)} "
                "samples; lower it or data.clients"
            )
        shuffled = generator.permutation(len(labels))
        order = shuffled[np.argsort(sample_means(labels)[shuffled], kind="stable")]
        ranges = np.array_split(order, pieces)
        dealt = generator.permutation(pieces).reshape(clients, -1)
        return [np.sort(np.concatenate([ranges[each] for each in own])) for own in dealt]


@register("partition", "natural")
@dataclass(frozen=True, kw_only=True)
class Natural(Partition):
    """Every client holds the samples that are its own, as the data set's column `client` says.

    >>> shards = Natural().split(np.zeros(5), 2, np.random.default_rng(0), client=np.array([1, 0, 1, 1, 0]))
    >>> [shard.tolist() for shard in shards]
    [[1, 4], [0, 2, 3]]

    Raises SettingError for a data set without that column, or with another number of clients.
    """

    def split(
        self, labels: Array, clients: int, generator: np.random.Generator, client: Labels | None = None
    ) -> Shards:
        if client is None:
            raise SettingError("data.partition 'natural' needs a data set that says whose its samples are (client)")
        known = int(client.max()) + 1
        if known != clients:
            raise SettingError(
                f"data.partition 'natural': the samples are of {known} clients; set data.clients = {known}"
            )
        return [np.flatnonzero(client == each) for each in range(clients)]


@register("partition", "dirichlet")
@dataclass(frozen=True, kw_only=True)
class Dirichlet(Partition):
    """Label skew: every class is divided by shares p ~ Dirichlet(alpha, ..., alpha) over the clients.

    alpha: 0 exclusive .. infinity; .1 gives most clients one or two classes, 100 is close to iid.  A client left with
    fewer than `minimum` samples takes random ones from the client with the most (the paper leaves it empty).

    >>> shards = Dirichlet(alpha=0.1).split(np.arange(1000) % 10, 20, np.random.default_rng(0))
    >>> sum(map(len, shards)), min(map(len, shards)) >= 1
    (1000, True)

    Source: T. Hsu, H. Qi, M. Brown, arXiv 1909.06335 (2019), section 3, dividing classes instead of filling clients.
    """

    alpha: Annotated[float, Field(gt=0, description="concentration; smaller is more skewed")] = 0.3
    minimum: Annotated[int, Field(ge=1, description="fewest samples of a client")] = 1
    takes: ClassVar[tuple[TargetKind, ...]] = ("classes",)

    def split(self, labels: Array, clients: int, generator: np.random.Generator) -> Shards:
        if self.minimum > 1 and self.minimum * clients > len(labels):
            raise SettingError(
                f"data.partition.minimum = {self.minimum} for {clients} clients is more than the {len(labels)} "
                "samples; lower it or data.clients"
            )
        owner = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            own = generator.permutation(np.flatnonzero(labels == label))
            shares = self._shares(clients, generator)
            owner[own] = np.searchsorted(np.cumsum(shares)[:-1], (np.arange(len(own)) + 0.5) / len(own))
        fill(owner, clients, self.minimum, generator)
        return [np.flatnonzero(owner == client) for client in range(clients)]

    def _shares(self, clients: int, generator: np.random.Generator) -> NDArray[np.float64]:
        if np.isinf(self.alpha):
            return np.full(clients, 1 / clients)
        return generator.dirichlet([self.alpha] * clients)


@register("partition", "classes")
@dataclass(frozen=True, kw_only=True)
class ClassesPerClient(Partition):
    """Every client holds samples of a fixed number of classes; each class is divided evenly among its holders.

    Classes are dealt so that all have the same number of holders, up to one.

    >>> shards = ClassesPerClient(per_client=2).split(np.arange(1000) % 10, 20, np.random.default_rng(0))
    >>> {len(set(shard % 10)) for shard in shards}, {len(shard) for shard in shards}
    ({2}, {50})

    Raises SettingError where clients x per_client does not cover the classes.
    Source: H. B. McMahan et al., arXiv 1602.05629 (2017), section 3, dealing classes instead of shards of a sorted
    list, where a client may get one class twice.
    """

    per_client: Annotated[int, Field(ge=1, description="classes of a client")] = 2
    takes: ClassVar[tuple[TargetKind, ...]] = ("classes",)

    def split(self, labels: Array, clients: int, generator: np.random.Generator) -> Shards:
        classes = np.unique(labels)
        per_client = min(self.per_client, len(classes))
        if clients * per_client < len(classes):
            raise SettingError(
                f"data.partition 'classes': {clients} clients with {per_client} classes each cannot hold all "
                f"{len(classes)} classes; raise per_client or data.clients"
            )
        owner = np.empty(len(labels), np.int64)
        holders = self._deal(len(classes), clients, per_client, generator)
        for label, theirs in zip(classes, holders, strict=True):
            own = generator.permutation(np.flatnonzero(labels == label))
            for client, part in zip(theirs, np.array_split(own, len(theirs)), strict=True):
                owner[part] = client
        fill(owner, clients, 1, generator)
        return [np.flatnonzero(owner == client) for client in range(clients)]

    @staticmethod
    def _deal(classes: int, clients: int, per_client: int, generator: np.random.Generator) -> list[list[int]]:
        """The holders of every class: each client takes the classes that fewest hold, at random among equals."""
        holders: list[list[int]] = [[] for _ in range(classes)]
        for client in generator.permutation(clients).tolist():
            most_wanted = np.lexsort((generator.random(classes), np.array([len(each) for each in holders])))
            for each in most_wanted[:per_client]:
                holders[each].append(client)
        return holders


def fill(owner: Labels, clients: int, minimum: int, generator: np.random.Generator) -> None:
    """Give clients with fewer than `minimum` samples random ones of the client with the most; writes owner[s]."""
    counts = np.bincount(owner, minlength=clients)
    for client in np.flatnonzero(counts < minimum):
        while counts[client] < minimum:
            richest = int(counts.argmax())
            owner[generator.choice(np.flatnonzero(owner == richest))] = client
            counts[richest] -= 1
            counts[client] += 1
