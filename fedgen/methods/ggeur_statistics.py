"""The exchange of statistics before GGEUR's training: what a participant sends, and what the server makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedgen.contracts import Block, Broadcast, Inbox, Samples
from fedgen.device import on_host
from fedgen.errors import FedgenError
from fedgen.geometry.pooling import Pooled, robust_pooled
from fedgen.geometry.statistics import Statistics, pooled, statistics_of
from fedgen.geometry.uploads import Upload
from fedgen.privacy.noisy_sums import NoisySums

PHASE = "ggeur.statistics"


@dataclass(frozen=True)
class Pool:
    """The pooled statistics, who is in them, and the means[k, C, d] of each, NaN for classes it sent nothing of."""

    statistics: Statistics
    clients: Tensor
    means: Tensor


@dataclass(frozen=True)
class StatisticsExchange:
    """What is sent, and how it is pooled.

    encoding: how statistics become a row.  minimum_count: fewest samples of a class that is sent.  bound: of a robust
    pool, None for the plain one.  apart: rows are needed one by one.  noise: what makes the sum private.
    """

    encoding: Upload
    classes: int
    minimum_count: int
    bound: float | None
    apart: bool
    noise: NoisySums | None

    @property
    def summed(self) -> bool:
        """Whether the pool is all that is needed, so that rows may be added up on their way."""
        return self.encoding.additive and self.bound is None and not self.apart

    def broadcast(self, model: Tensor) -> Broadcast:
        reduce: Literal["sum", "gather"] = "sum" if self.summed else "gather"
        return Broadcast(model, self.encoding.layout, phase=PHASE, reduce=reduce, everyone=True)

    def rows(self, held: Sequence[tuple[Tensor, Tensor]], block: Block) -> Tensor:
        """[n, size] of the samples x[s, d], y[s] of each of the block's participants."""
        rows = torch.stack([self.encoding.encode(self.statistics(x, y)) for x, y in held])
        if self.noise is None:
            return rows
        return self.noise.with_noise(rows, on_host(block.normal("ggeur.privacy", rows.shape[1])).double())

    def statistics(self, x: Tensor, y: Tensor) -> Statistics:
        """What a participant is willing to send: no class of which it holds fewer than `minimum_count` samples.

        With noise nothing is withheld, as that would tell how many there are.
        """
        if self.noise is not None:
            return statistics_of(self.noise.clipped(x), y, self.classes)
        whole = statistics_of(x, y, self.classes)
        return whole.only(whole.counts >= self.minimum_count)

    def pool(self, inbox: Inbox) -> Pool:
        """Raises FedgenError where a robust pool accepts no participant."""
        if self.summed:
            return Pool(self._mended(self.encoding.decode(on_host(inbox.aggregate))), inbox.clients, torch.empty(0))
        assert inbox.rows is not None
        believed = self._believed([self.encoding.decode(row) for row in on_host(inbox.rows.collect())])
        means = [torch.where((each.counts > 0)[:, None], each.means, torch.nan) for each in believed.parts.values()]
        return Pool(believed.statistics, inbox.clients[list(believed.parts)], torch.stack(means).float())

    def _believed(self, parts: Sequence[Statistics]) -> Pooled:
        if self.bound is None:
            return Pooled(pooled(parts), dict(enumerate(parts)), {})
        try:
            return robust_pooled(parts, self.bound, self.bound)
        except ValueError as error:
            raise FedgenError(f"training.wrappers 'ggeur': {error}") from error

    def _mended(self, statistics: Statistics) -> Statistics:
        """With noise: without classes that it leaves less than one sample of."""
        return statistics if self.noise is None else statistics.only(statistics.counts >= 1)


def taken(samples: Samples, places: Tensor) -> tuple[Tensor, Tensor]:
    """(x, y) at these places, on the host: what is made of geometry is computed and drawn there."""
    x, y = samples.take(places)
    return on_host(x), on_host(y)


def places_of(block: Block) -> list[Tensor]:
    """The places of every client's samples."""
    return [places[:count] for places, count in zip(block.samples.index, block.counts.tolist(), strict=True)]
