"""New samples: drawn around a participant's own, around other domains' prototypes, or around the pooled mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fedgen.geometry.shapes import Geometry
from fedgen.geometry.statistics import checked_samples
from fedgen.parameters import canonical

Centre = Literal["sample", "mean"]

DRAWN_TOGETHER = 1_024
"""Samples whose noise is in memory at a time."""

COLUMNS = 128
"""Features that are made together: of a triangular root they need the rows above its diagonal only."""


@dataclass(frozen=True)
class Augmented:
    """x float32[s + g, d], y int64[s + g]: the real samples first, then those that were generated."""

    x: Tensor
    y: Tensor
    real: int


def augment(
    x: ArrayLike | Tensor,
    y: ArrayLike | Tensor,
    geometry: Geometry,
    *,
    target: int | Sequence[int],
    centre: Centre = "mean",
    prototypes: Tensor | None = None,
    per_prototype: int = 0,
    seed: int = 0,
) -> Augmented:
    """Real samples x[s, d], y[s], and what brings every class to its target.

    target: samples of every class, or of each class.  centre: new samples lie around the participant's own, one after
    another, which fills the classes that it holds; or around the pooled means, which fills all of them.
    prototypes[D, C, d]: means of the classes in other domains, NaN where there are none; each is the centre of
    `per_prototype` further samples.  seed: of every class and centre; equal seeds make equal samples.

    Raises ValueError where samples, labels, geometry and target do not fit together.

    >>> from fedgen.geometry.shapes import geometry_of
    >>> from fedgen.geometry.statistics import statistics_of
    >>> x, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    >>> geometry = geometry_of(statistics_of(x, y, classes=2))
    >>> augmented = augment(x[:5], y[:5], geometry, target=100)
    >>> augmented.x.shape, torch.bincount(augmented.y).tolist(), augmented.real
    (torch.Size([200, 3]), [100, 100], 5)

    Source: Y. Ma et al., arXiv 2503.06457 (2025), algorithms 1 and 2; around the pooled mean as M. Luo et al., arXiv
    2106.05001 (2021), sample at the server.
    """
    classes, features = geometry.means.shape
    x, y = checked_samples(x, y, classes)
    if x.shape[1] != features:
        raise ValueError(f"x has {x.shape[1]} features, the geometry {features}")
    x = x.float()
    held = torch.bincount(y, minlength=classes).tolist()
    fill = to_draw(held, geometry, target, centre)
    around = prototypes if prototypes is not None and per_prototype else torch.full((0, classes, features), torch.nan)
    known = (~around[..., 0].isnan()) & (geometry.counts > 0)
    total = len(y) + sum(fill) + int(known.sum()) * per_prototype
    out_x, out_y = torch.empty(total, features), torch.empty(total, dtype=torch.int64)
    out_x[: len(y)], out_y[: len(y)] = x, y
    seeds = np.random.SeedSequence(seed).generate_state(classes * (len(around) + 1), np.uint64)
    end = len(y)
    for label in range(classes):
        own = geometry.means[label, None] if centre == "mean" else x[y == label]
        centres = [(own, fill[label]), *((each[None], per_prototype) for each in around[:, label])]
        wanted = [True, *known[:, label].tolist()]
        for place, (points, number) in enumerate(centres):
            if wanted[place] and number:
                generator = torch.Generator().manual_seed(int(seeds[label * len(centres) + place] >> np.uint64(1)))
                draw(out_x[end : end + number], points, *geometry.root(label), generator)
                out_y[end : end + number] = label
                end += number
    return Augmented(out_x, out_y, len(y))


def to_draw(held: Sequence[int], geometry: Geometry, target: int | Sequence[int], centre: Centre) -> list[int]:
    """How many samples each class lacks: none where nothing is known of it, or there is no centre."""
    targets = [target] * len(held) if isinstance(target, int) else list(target)
    if len(targets) != len(held):
        raise ValueError(f"target: {len(targets)} numbers for {len(held)} classes; give one, or one for every class")
    known = (geometry.counts > 0).tolist()
    return [
        max(0, want - have) if knows and (have or centre == "mean") else 0
        for want, have, knows in zip(targets, held, known, strict=True)
    ]


def draw(out: Tensor, centres: Tensor, root: Tensor, remainder: float, generator: torch.Generator) -> None:
    """Write centres[h mod k] + noise of covariance root^T root + remainder^2 I into out[m, d], row by row h.

    Nothing is drawn that is not kept, and little more than `out` is in memory.
    """
    out.copy_(centres[torch.arange(len(out)) % len(centres)])
    root = root[: _last_row(root)]
    blocks = [slice(first, first + COLUMNS) for first in range(0, out.shape[1], COLUMNS)]
    parts = [(columns, canonical(root[: _last_row(root[:, columns]), columns])) for columns in blocks]
    for first in range(0, len(out), DRAWN_TOGETHER):
        rows = out[first : first + DRAWN_TOGETHER]
        noise = torch.empty(len(rows), len(root)).normal_(generator=generator)
        for columns, part in parts:
            rows[:, columns] += noise[:, : len(part)] @ part
        if remainder:
            rows += remainder * torch.empty_like(rows).normal_(generator=generator)


def _last_row(root: Tensor) -> int:
    """How many rows there are up to the last that is not zero."""
    used = root.any(1).nonzero()
    return int(used[-1]) + 1 if len(used) else 0
