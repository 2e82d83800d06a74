"""What there is to see of generated samples: counts, distances, shapes and some samples, and the words about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from fedgen.amounts import counted, human_bytes, human_count
from fedgen.contracts import Occasion
from fedgen.exhibits import Curve, Curves, Exhibit, Heatmap, Points, Table, Text
from fedgen.geometry.changes import Changes

SECTION = "Generated samples"
MOST_CLIENTS = 100
"""Clients that are looked at: their samples are generated for it."""
MOST_TABLE_CLASSES, MOST_COLOURS = 20, 10


@dataclass(frozen=True)
class Uploads:
    """What all clients sent: bytes of one, bytes of dense float64 statistics, who was left out, (epsilon, delta)."""

    clients: int
    size_bytes: int
    dense_bytes: int
    left_out: Sequence[int]
    privacy: tuple[float, float] | None


def exhibits_of(changes: Changes, uploads: Uploads, occasion: Occasion) -> list[Exhibit]:
    """In the order of the report; shapes only where some could be compared."""
    return [
        Text("augmentation-words", "Generated samples", _sentence(changes, uploads, occasion), section=SECTION),
        _counts(changes, occasion),
        _distances(changes),
        *_shapes(changes, occasion),
        _samples(changes, occasion),
        _table(changes, occasion),
    ]


def _counts(changes: Changes, occasion: Occasion) -> Heatmap:
    return Heatmap(
        "augmentation",
        "Samples of every class at every client, before and after",
        {name: counts.mT.double().numpy() for name, counts in zip(("before", "after"), changes.counts, strict=True)},
        x_label="client",
        y_label="class",
        row_names=occasion.dataset.classes,
        unit="samples",
        section=SECTION,
    )


def _distances(changes: Changes) -> Curves:
    pairs = {"labels": changes.label_distance, "embeddings": changes.embedding_distance}
    clients = torch.arange(changes.counts.shape[1]).double().numpy()
    return Curves(
        "augmentation-distance",
        "How far clients are from everybody (dotted: before)",
        tuple(
            Curve(name, clients, distances.numpy(), dotted)
            for name, pair in pairs.items()
            for distances, dotted in zip(pair, (True, False), strict=True)
        ),
        x_label="client",
        y_label="distance from everybody's",
        steps=True,
        section=SECTION,
    )


def _shapes(changes: Changes, occasion: Occasion) -> list[Exhibit]:
    """Nothing where no two clients, or domains, hold enough samples of one class."""
    if not isfinite(changes.same):
        return []
    names = occasion.dataset.domains[: len(changes.similarity)]
    other = f", those of different classes by {changes.different:.2f}" if isfinite(changes.different) else ""
    where = "in different domains" if names else "at different clients"
    picture = Heatmap(
        "augmentation-shapes",
        f"How alike the shapes of a class are {'in two domains' if names else 'at two clients'}",
        {"": changes.similarity.numpy()},
        x_label="" if names else "client",
        y_label="" if names else "client",
        row_names=names,
        column_names=names,
        most=1.0,
        written=True,
        section=SECTION,
    )
    words = f"Shapes of one class {where} agree by {changes.same:.2f} on average{other} (1: equal axes)."
    return [picture, Text("augmentation-shapes-words", "Shapes", words, section=SECTION)]


def _samples(changes: Changes, occasion: Occasion) -> Points:
    classes = occasion.dataset.classes
    repeated = " (ten colours in turn)" if len(classes) > MOST_COLOURS else ""
    kinds = {"real": ~changes.generated, "generated": changes.generated}
    return Points(
        "augmentation-samples",
        f"Real and generated samples of the first clients, coloured by class{repeated}",
        {name: changes.points[chosen].numpy() for name, chosen in kinds.items()},
        {name: changes.labels[chosen].numpy() for name, chosen in kinds.items()},
        names=classes,
        groups="class",
        x_label="first axis",
        y_label="second axis",
        section=SECTION,
    )


def _table(changes: Changes, occasion: Occasion) -> Table:
    """Samples before and after, of every class where there are few classes."""
    before, after = changes.counts
    shown = range(before.shape[1]) if before.shape[1] <= MOST_TABLE_CLASSES else range(0)
    names = [occasion.dataset.classes[label] for label in shown]
    rows = []
    for client in range(len(before)):
        amounts = [_arrow(before[client].sum(), after[client].sum())]
        amounts += [_arrow(before[client, label], after[client, label]) for label in shown]
        distances = [_decimals(pair[:, client]) for pair in (changes.label_distance, changes.embedding_distance)]
        rows.append((str(client), *amounts, *distances))
    member = occasion.members[:-1]
    return Table(
        "augmentation-table",
        f"Samples and distances, {member} by {member}",
        ("client", "all", *names, "label distance", "embedding distance"),
        tuple(rows),
        folded=True,
        section=SECTION,
    )


def _arrow(before: Tensor, after: Tensor) -> str:
    return f"{int(before):,} → {int(after):,}"


def _decimals(pair: Tensor) -> str:
    return f"{float(pair[0]):.2f} → {float(pair[1]):.2f}"


def _sentence(changes: Changes, uploads: Uploads, occasion: Occasion) -> str:
    before, after = changes.counts.sum((1, 2)).tolist()
    times = uploads.dense_bytes / max(uploads.size_bytes, 1)
    size = human_bytes(uploads.size_bytes)
    shown = changes.counts.shape[1]
    some = f"Of the first {shown} of {human_count(uploads.clients)} clients, " if shown < uploads.clients else ""
    flooded = f"The statistics of every peer, {size}, were passed on from neighbour to neighbour until all had them"
    sent = f"Every client sent {size} of statistics once" if occasion.members == "clients" else flooded
    labels = changes.label_distance.mean(1).tolist()
    embeddings = changes.embedding_distance.mean(1).tolist()
    sentence = (
        f"{some}{human_count(before)} samples became {human_count(after)}. {sent}, {times:.3g} times less than counts, "
        "means and whole covariances in float64. Half the sum of the differences between the class shares of a client "
        f"and of all went from {labels[0]:.2f} to {labels[1]:.2f} on average, the distance of its mean embedding from "
        f"everybody's from {embeddings[0]:.2f} to {embeddings[1]:.2f} standard deviations."
    )
    if before == after:
        sentence += (
            " Nothing was generated: no class reached minimum_count at any client, or target asks for no more than is "
            "there."
        )
    if uploads.privacy is not None:
        epsilon, delta = uploads.privacy
        sentence += f" The pooled statistics are ({epsilon:g}, {delta:g})-differentially private for every sample."
    if uploads.left_out:
        listed = ", ".join(map(str, uploads.left_out[:20]))
        sentence += (
            f" The statistics of {counted(len(uploads.left_out), 'client')} were left out of the pool: {listed}."
        )
    return sentence
