"""What generated samples changed: pictures of counts, distances, shapes and samples, and the words about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedgen.server.augmentation_record import Augmentation
from fedgen.server.report_canvas import COLOURS, drawing, legend, plain, plot_axes, whole_numbers, written
from fedgen.server.report_partition import label_classes, short
from fedgen.server.words import counted, human_bytes, human_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLASS_COLOURS = [f"class{index}" for index in range(10)]
BLUE = np.array([0x2B, 0x8C, 0xD0], dtype=np.uint8)
MOST_TABLE_CLASSES = 20


def augmentation_sentence(found: Augmentation, gossip: bool) -> str:
    before, after = found.counts.sum(axis=(1, 2))
    times = found.dense_bytes / max(found.upload_bytes, 1)
    size = human_bytes(found.upload_bytes)
    sent = f"The statistics of every peer, {size}, were passed on from neighbour to neighbour until all had them"
    sentence = (
        f"{_whose(found)}{human_count(before)} samples became {human_count(after)}. "
        f"{sent if gossip else f'Every client sent {size} of statistics once'}, {times:.3g} times less than counts, "
        f"means and whole covariances in float64. "
        f"Half the sum of the differences between the class shares of a client and of all went from "
        f"{found.label_distance[0].mean():.2f} to {found.label_distance[1].mean():.2f} on average, the distance of its "
        f"mean embedding from everybody's from {found.embedding_distance[0].mean():.2f} to "
        f"{found.embedding_distance[1].mean():.2f} standard deviations."
    )
    if before == after:
        sentence += (
            " Nothing was generated: no class reached minimum_count at any client, or target asks for no more than is "
            "there."
        )
    if found.privacy is not None:
        epsilon, delta = found.privacy
        sentence += f" The pooled statistics are ({epsilon:g}, {delta:g})-differentially private for every sample."
    if found.left_out:
        listed = ", ".join(map(str, found.left_out[:20]))
        sentence += f" The statistics of {counted(len(found.left_out), 'client')} were left out of the pool: {listed}."
    return sentence


def _whose(found: Augmentation) -> str:
    shown = found.counts.shape[1]
    return f"Of the first {shown} of {human_count(found.clients)} clients, " if shown < found.clients else ""


def similarity_sentence(found: Augmentation) -> str:
    """Empty where no two clients hold enough samples of anything."""
    if not np.isfinite(found.same):
        return ""
    other = f", those of different classes by {found.different:.2f}" if np.isfinite(found.different) else ""
    where = "in different domains" if found.domains else "at different clients"
    return f"Shapes of one class {where} agree by {found.same:.2f} on average{other} (1: equal axes)."


def augmentation_rows(found: Augmentation, classes: list[str]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table: samples before and after, of every class where there are few classes."""
    before, after = found.counts
    shown = range(before.shape[1]) if before.shape[1] <= MOST_TABLE_CLASSES else range(0)
    heads = ["client", "all", *(classes[label] for label in shown), "label distance", "embedding distance"]
    rows = []
    for client in range(len(before)):
        cells = [_arrow(before[client].sum(), after[client].sum())]
        cells += [_arrow(before[client, label], after[client, label]) for label in shown]
        cells += [_decimals(found.label_distance[:, client]), _decimals(found.embedding_distance[:, client])]
        rows.append([str(client), *cells])
    return heads, rows


def _arrow(before: int, after: int) -> str:
    return f"{before:,} → {after:,}"


def _decimals(pair: NDArray[np.float64]) -> str:
    return f"{pair[0]:.2f} → {pair[1]:.2f}"


def draw_counts(found: Augmentation, classes: list[str]) -> str:
    """Samples of each class at each client, before and after, on one scale."""
    with drawing(width=920, height=270) as figure:
        top = max(int(found.counts.max()), 1)
        for axes, counts, title in zip(
            figure.subplots(1, 2, sharey=True), found.counts, ("before", "after"), strict=True
        ):
            _raster(axes, counts.T / top)
            plain(axes, "class", x_label=f"client ({title}; full colour: {top:,} samples)", grid=False)
            label_classes(axes, classes)
        return written(figure, "augmentation counts")


def draw_distances(found: Augmentation) -> str:
    with drawing() as figure:
        axes = plot_axes(figure, "distance from everybody's", x_label="client")
        edges = np.arange(found.counts.shape[1] + 1) - 0.5
        distances = {"labels": (found.label_distance, "blue"), "embeddings": (found.embedding_distance, "orange")}
        for name, ((before, after), colour) in distances.items():
            axes.stairs(before, edges, baseline=None, color=COLOURS[colour], linestyle=":", linewidth=1.8)
            axes.stairs(after, edges, baseline=None, color=COLOURS[colour], linewidth=1.8, label=name)
        axes.set_ylim(bottom=0)
        legend(axes)
        return written(figure, "augmentation distances")


def draw_similarity(found: Augmentation) -> str:
    with drawing() as figure:
        axes = figure.subplots()
        _raster(axes, np.nan_to_num(found.similarity))
        for row, values in enumerate(found.similarity):
            for column, value in enumerate(values):
                if np.isfinite(value):
                    axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8)
        if found.domains:
            names = [short(name) for name in found.domains[: len(found.similarity)]]
            plain(axes, "", grid=False)
            axes.set_xticks(range(len(names)), names)
            axes.set_yticks(range(len(names)), names)
        else:
            plain(axes, "client", x_label="client", grid=False)
            whole_numbers(axes.yaxis)
        return written(figure, "augmentation similarity")


def draw_samples(found: Augmentation, classes: list[str]) -> str:
    """The same clients' samples on the two directions along which the real ones vary most; colours repeat where there
    are more classes than colours, and then have no names."""
    with drawing(width=920, height=330) as figure:
        for axes, kind, title in zip(
            figure.subplots(1, 2, sharex=True, sharey=True), (False, True), ("real", "generated"), strict=True
        ):
            for colour, role in enumerate(CLASS_COLOURS[: len(classes)]):
                chosen = (found.generated == kind) & (found.labels % len(CLASS_COLOURS) == colour)
                axes.scatter(
                    *found.points[chosen].T, s=9, color=COLOURS[role], linewidths=0, label=short(classes[colour])
                )
            plain(axes, "second axis", x_label=f"first axis ({title})", grid=False)
        if len(classes) <= len(CLASS_COLOURS):
            axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1.02), frameon=False, title="class", handletextpad=0.1,
                        markerscale=1.8, alignment="left")  # fmt: skip
        return written(figure, "augmentation samples")


def _raster(axes: Axes, shares: NDArray[np.float64]) -> None:
    """``shares[rows, columns]`` in 0..1 as the opacity of a raster, so that it suits a light and a dark page."""
    raster = np.empty((*shares.shape, 4), dtype=np.uint8)
    raster[..., :3] = BLUE
    raster[..., 3] = np.round(255 * np.sqrt(np.clip(shares, 0, 1)))
    axes.imshow(raster, aspect="auto", interpolation="none", origin="lower")
