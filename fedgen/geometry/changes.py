"""Effects of generated samples: counts, distances to all samples, shapes side by side, points of a picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.geometry.sampler import Augmented
from fedgen.geometry.shapes import Shape, shape_of, similarity
from fedgen.geometry.statistics import Statistics, merge, statistics_of

AXES = 5
"""Axes of two shapes that are compared."""

DRAWN_CLIENTS, DRAWN_SAMPLES = 12, 40
"""Clients of the pictures, and samples of each, real and generated."""


@dataclass(frozen=True)
class Changes:
    """Before and after augmentation, for N clients and C classes.

    counts int64[2, N, C]; label_distance, embedding_distance float64[2, N] from the samples of all clients: half the
    sum of the absolute differences of the classes' shares, and the distance of the means in units of the root mean
    square distance of all samples from their mean.  similarity float64[K, K] of the shapes of K domains, or of the
    first K clients where there are no domains, averaged over the classes that both hold enough samples of, NaN where
    there are none, as a share of the axes; same, different: its mean over different ones of these, for the same class
    and for different classes.
    points float64[p, 2] of some samples on the first two principal axes, their labels and whether they were generated.
    """

    counts: Tensor
    label_distance: Tensor
    embedding_distance: Tensor
    similarity: Tensor
    same: float
    different: float
    points: Tensor
    labels: Tensor
    generated: Tensor


def changes_of(clients: Iterable[tuple[Augmented, Tensor | None]], classes: int) -> Changes:
    """Of clients one after another, so that no two need be in memory, with the domains of their real samples."""
    counts, means, squares, shown = [], [], [], []
    holders: dict[int, Statistics] = {}
    for number, (client, domain) in enumerate(clients):
        real = client.x[: client.real].double()
        before_and_after = (client.y[: client.real], client.y)
        counts.append(torch.stack([torch.bincount(y, minlength=classes) for y in before_and_after]))
        means.append(torch.stack([real.mean(0), client.x.mean(0, dtype=torch.float64)]))
        squares.append(real.square().sum())
        if number < DRAWN_CLIENTS:
            shown.append(_some(client))
        if domain is not None or number < DRAWN_CLIENTS:
            holder = torch.full((client.real,), number) if domain is None else domain
            _gather(holders, holder, real, client.y[: client.real], classes)
    held, mean = torch.stack(counts, 1), torch.stack(means, 1)
    sizes = held[0].sum(1).double()
    centre = (sizes @ mean[0]) / sizes.sum()
    spread = (torch.stack(squares).sum() / sizes.sum() - centre.square().sum()).clamp_min(1e-300).sqrt()
    shares = held / held.sum(2, keepdim=True).clamp_min(1)
    pooled = held[0].sum(0) / sizes.sum()
    points, labels, generated = (torch.cat(parts) for parts in zip(*shown, strict=True))
    alike, same, different = _compared([_shapes(holders.get(holder)) for holder in range(max(holders) + 1)])
    return Changes(
        counts=held,
        label_distance=(shares - pooled).abs().sum(2) / 2,
        embedding_distance=(mean - centre).norm(dim=2) / spread,
        similarity=alike,
        same=same,
        different=different,
        points=_projected(points, generated),
        labels=labels,
        generated=generated,
    )


def _gather(holders: dict[int, Statistics], holder: Tensor, x: Tensor, y: Tensor, classes: int) -> None:
    """Add the samples x[s, d], y[s] to the statistics of their holders holder[s]."""
    for each in holder.unique().tolist():
        own = statistics_of(x[holder == each], y[holder == each], classes)
        holders[each] = merge(holders[each], own) if each in holders else own


def _shapes(statistics: Statistics | None) -> dict[int, Shape]:
    if statistics is None:
        return {}
    each = {label: shape_of(statistics.scatter(label), count) for label, count in enumerate(statistics.counts.tolist())}
    return {label: shape for label, shape in each.items() if len(shape.values) >= AXES}


def _compared(shapes: list[dict[int, Shape]]) -> tuple[Tensor, float, float]:
    alike = torch.full((len(shapes), len(shapes)), torch.nan, dtype=torch.float64)
    same: list[float] = []
    different: list[float] = []
    for one, its in enumerate(shapes):
        for other, theirs in enumerate(shapes):
            pairs = [(similarity(a, b, AXES) / AXES, i == j) for i, a in its.items() for j, b in theirs.items()]
            equal = [value for value, is_same in pairs if is_same]
            if equal:
                alike[one, other] = sum(equal) / len(equal)
            if one != other:
                same += equal
                different += [value for value, is_same in pairs if not is_same]
    return alike, _mean(same), _mean(different)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _some(client: Augmented) -> tuple[Tensor, Tensor, Tensor]:
    """Samples at even distances, real ones first, their labels, and which of them were generated."""
    parts = (torch.arange(client.real), torch.arange(client.real, len(client.y)))
    chosen = [part[:: max(1, -(-len(part) // DRAWN_SAMPLES))] for part in parts]
    places = torch.cat(chosen)
    return client.x[places].double(), client.y[places], places >= client.real


def _projected(points: Tensor, generated: Tensor) -> Tensor:
    """On the two directions along which the real ones vary most."""
    real = points[~generated]
    centred = points - real.mean(0)
    _, _, axes = torch.linalg.svd(centred[~generated], full_matrices=False)
    flat: Tensor = centred @ axes[:2].mT
    return torch.nn.functional.pad(flat, (0, 2 - flat.shape[1]))
