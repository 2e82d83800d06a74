"""The partitions of published experiments on embeddings: label skew of all clients, and domains with label skew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedgen.data.partition import Labels, Partition, Shards, fill
from fedgen.data.targets import TargetKind
from fedgen.errors import SettingError
from fedgen.registry import register

Shares = NDArray[np.float64]
Beta = Annotated[float, Field(gt=0, description="concentration; smaller is more skewed")]
Seed = Annotated[int | None, Field(ge=0, description="seed of the partition; default: experiment.seed")]


@register("partition", "label_skew")
@dataclass(frozen=True, kw_only=True)
class LabelSkew(Partition):
    """Label skew with one sample of every class at every client, the rest by Dirichlet(beta) shares.

    Class by class: shuffle, one sample to each of K clients, round(p_k n) of the n others to client k, where
    p ~ Dirichlet(beta, ..., beta); the last client takes what rounding leaves.

    A client that classes with fewer samples than clients leave empty takes one sample of the client with the most.

    >>> shards = LabelSkew(beta=0.1).split(np.arange(1000) % 10, 20, np.random.default_rng(0))
    >>> {len(set(shard % 10)) for shard in shards}, sum(map(len, shards))
    ({10}, 1000)

    Source: Y. Ma, W. Dai, W. Huang, J. Chen, arXiv 2503.06457 (2025), the partition of its experiments.
    """

    beta: Beta = 0.1
    seed: Seed = None
    takes: ClassVar[tuple[TargetKind, ...]] = ("classes",)

    def split(self, labels: Labels, clients: int, generator: np.random.Generator) -> Shards:
        generator = generator if self.seed is None else np.random.default_rng(self.seed)
        owner = np.empty(len(labels), np.int64)
        for label in np.unique(labels):
            own = generator.permutation(np.flatnonzero(labels == label))
            owner[own[:clients]] = np.arange(min(clients, len(own)))
            rest = own[clients:]
            counts = np.round(generator.dirichlet([self.beta] * clients) * len(rest)).astype(np.int64)
            owner[rest] = np.searchsorted(np.cumsum(counts)[:-1], np.arange(len(rest)), side="right")
        fill(owner, clients, 1, generator)
        return [np.flatnonzero(owner == client) for client in range(clients)]


@register("partition", "domains")
@dataclass(frozen=True, kw_only=True)
class Domains(Partition):
    """Every client holds samples of one domain, with label skew between the clients where `beta` is given.

    Client k, of domain k mod D, takes int(p_kc n_c) of the n_c samples of class c of its domain, in the data set's
    order, behind those of the domain's clients before it; p[K, C] = dirichlet([beta] * K, C).T.  What nobody takes
    stays unused.  Without beta each of the h clients of a domain takes int(n / h) of its samples, one after another.

    >>> labels, domain = np.arange(60) % 3, np.arange(60) % 2
    >>> [len(shard) for shard in Domains(beta=1.0).split(labels, 2, np.random.default_rng(0), domain)]
    [14, 13]

    Raises SettingError for a data set without domains, or with more domains than clients.
    Source: Y. Ma, W. Dai, W. Huang, J. Chen, arXiv 2503.06457 (2025), the partition Office-Home-LDS.
    """

    beta: Annotated[float | None, Field(gt=0, description="label skew between the clients; smaller is more")] = None
    seed: Seed = None

    def split(
        self, labels: Labels, clients: int, generator: np.random.Generator, domain: Labels | None = None
    ) -> Shards:
        if domain is None:
            raise SettingError("data.partition 'domains' needs a data set with domains, such as office_caltech10")
        if self.beta is not None and (labels.ndim > 1 or not np.issubdtype(labels.dtype, np.integer)):
            raise SettingError("data.partition 'domains': beta is skew of classes, which the data have none of")
        generator = generator if self.seed is None else np.random.default_rng(self.seed)
        domains = int(domain.max()) + 1
        if clients < domains:
            raise SettingError(
                f"data.partition 'domains': data.clients = {clients} is less than the {domains} domains; ask for at "
                f"least {domains}"
            )
        owner = np.full(len(labels), -1)
        classes = 0 if self.beta is None else int(labels.max()) + 1
        shares = None if self.beta is None else generator.dirichlet([self.beta] * clients, classes).T
        for each in range(domains):
            own = domain == each
            holders = np.arange(each, clients, domains)
            if shares is None:
                _deal(owner, np.flatnonzero(own), holders, np.full(len(holders), 1 / len(holders)))
                continue
            for label in range(classes):
                _deal(owner, np.flatnonzero(own & (labels == label)), holders, shares[holders, label])
        return [np.flatnonzero(owner == client) for client in range(clients)]


def _deal(owner: Labels, samples: Labels, holders: Labels, shares: Shares) -> None:
    """int(share * n) of the n samples to each of the holders, one after another; writes owner[s]."""
    counts = (shares * len(samples)).astype(np.int64)
    owner[samples[: counts.sum()]] = np.repeat(holders, counts)
