"""Who holds what: the samples of each client by class, by label, or by ranges of the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fedgen.data.dataset import Dataset
from fedgen.data.partition import sample_means
from fedgen.data.targets import TargetKind

BINS = 12
"""Ranges of equal width that numbers are counted in."""


@dataclass(frozen=True)
class Holdings:
    """counts int64[N, columns]: how many samples of each client have what the column names; samples int64[N]: how many
    it holds.  Of tokens there are no columns."""

    kind: TargetKind
    columns: tuple[str, ...]
    counts: Tensor
    samples: Tensor

    @classmethod
    def of(cls, dataset: Dataset, shards: Sequence[Tensor]) -> Holdings:
        kind, y, names = dataset.kind, dataset.y, dataset.classes
        if kind == "numbers":
            y, names = _ranges(torch.cat(list(shards)), y)
        samples = torch.tensor([len(shard) for shard in shards])
        if kind == "tokens":
            return cls(kind, (), torch.zeros(len(shards), 0, dtype=torch.int64), samples)
        counted = [_labels(y[shard]) if kind == "labels" else _classes(y[shard], len(names)) for shard in shards]
        return cls(kind, names, torch.stack(counted), samples)


def _classes(y: Tensor, classes: int) -> Tensor:
    return torch.bincount(y, minlength=classes)


def _labels(y: Tensor) -> Tensor:
    return y.sum(0).long()


def _ranges(held: Tensor, y: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """The number of the range that each sample's target is in, and the ranges' names; of vectors, their means'."""
    values = sample_means(y.numpy())
    edges = np.histogram_bin_edges(values[held.numpy()], BINS)
    names = tuple(f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges))
    return torch.from_numpy(np.digitize(values, edges[1:-1])), names
