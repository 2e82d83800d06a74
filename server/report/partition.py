"""The picture of the data partition, samples of each client by class, label or target, with its sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedgen.server.report.canvas import COLOURS, drawing, plain, plot_axes, written
from fedgen.server.report.phrases import spread
from fedgen.server.report.run_record import Partition
from fedgen.server.words import counted, human_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_BAR_CLIENTS, MAX_BAR_CLASSES = 30, 10
MAX_SINGLE_CLIENTS, MAX_COLUMNS = 400, 240
NOUNS = {"classes": ("class", "classes"), "labels": ("label", "labels"), "numbers": ("target", "ranges of the target")}
"""Kind of targets -> name of a row of the map, singular and plural; tokens have no rows."""


def draw_partition(partition: Partition, members: str = "clients") -> str:
    """The picture as SVG text: bars for few clients or peers, else a map with their sizes above it."""
    with drawing(width=920, height=330) as figure:
        if _has_bars(partition):
            _bars(figure, partition, members[:-1])
        elif not partition.classes:
            _sizes(figure, partition, members[:-1])
        else:
            _map(figure, partition, members)
        return written(figure, "partition")


def partition_sentence(partition: Partition, members: str = "clients") -> str:
    counts, samples = partition.counts, partition.samples
    whole = f"{counted(len(counts), members[:-1])} with {human_count(samples.sum())} samples in all"
    sizes = f"{spread(samples.tolist())} samples each"
    if not partition.classes:
        return f"{whole}: {sizes}."
    present = (counts > 0).sum(axis=1)
    return f"{whole}: {sizes}, from {spread(present.tolist())} of {counted(counts.shape[1], *_nouns(partition))}."


def partition_key(partition: Partition, members: str = "clients") -> str:
    """How to read the picture."""
    clients = len(partition.counts)
    member = members[:-1]
    noun = _nouns(partition)[0]
    what = "the histogram of the targets" if partition.targets == "numbers" else f"the share of each {noun} in them"
    shares = f"below, {what}, the fuller the colour the larger."
    if _has_bars(partition):
        text = f"Each bar is one {member}, its colours the classes of its samples."
    elif not partition.classes:
        text = f"Each column is one {member}, or the mean of several, as high as its number of samples."
    elif _is_sorted(clients):
        group = f"about {round(clients / MAX_COLUMNS)} {members}, sorted by their main {noun}"
        text = f"Each column stands for {group}: above, their mean number of samples; {shares}"
    else:
        text = f"Each column is one {member}: above, its number of samples; {shares}"
    if partition.byzantine and not _is_sorted(clients):
        text += f" Triangles mark Byzantine {members}."
    return text


def client_columns(counts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The clients of each column of the map: one client, or a group, sorted by main class and its share."""
    if not _is_sorted(len(counts)):
        return [np.array([client]) for client in range(len(counts))]
    main = counts.argmax(axis=1) if counts.shape[1] else np.zeros(len(counts), dtype=np.int64)
    share = counts.max(axis=1, initial=0) / np.maximum(counts.sum(axis=1), 1)
    return [column.astype(np.int64) for column in np.array_split(np.lexsort((-share, main)), MAX_COLUMNS)]


def _has_bars(partition: Partition) -> bool:
    few = len(partition.counts) <= MAX_BAR_CLIENTS and len(partition.classes) <= MAX_BAR_CLASSES
    return few and partition.targets == "classes"


def _nouns(partition: Partition) -> tuple[str, str]:
    return NOUNS.get(partition.targets, NOUNS["classes"])


def _is_sorted(clients: int) -> bool:
    """Whether there are too many clients for a column each, so that columns are sorted groups."""
    return clients > MAX_SINGLE_CLIENTS


def _bars(figure: Figure, partition: Partition, member: str) -> None:
    counts = partition.counts
    axes = plot_axes(figure, "samples", x_label=member)
    floor = np.zeros(len(counts))
    for index, name in enumerate(partition.classes):
        axes.bar(range(len(counts)), counts[:, index], bottom=floor, width=0.82, color=COLOURS[f"class{index}"],
                 label=short(name), linewidth=0)  # fmt: skip
        floor = floor + counts[:, index]
    axes.set_xlim(-0.7, max(len(counts), 1) - 0.3)
    axes.set_xticks(range(len(counts)))
    axes.set_ylim(0, float(floor.max(initial=0)) * 1.08 or 1.0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1.02), frameon=False, title="class", handlelength=1,
                handleheight=1, alignment="left")  # fmt: skip
    _mark_byzantine(axes, partition.byzantine, floor)


def _sizes(figure: Figure, partition: Partition, member: str) -> None:
    """Number of samples of each client, for targets without classes."""
    axes = figure.subplots()
    _draw_sizes(axes, partition, client_columns(partition.counts))
    axes.set_xlabel(member)


def _map(figure: Figure, partition: Partition, members: str) -> None:
    noun = _nouns(partition)[0]
    sizes, shares = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1, 2.4]})
    columns = client_columns(partition.counts)
    _draw_sizes(sizes, partition, columns)
    held = np.array([partition.counts[column].sum(axis=0) for column in columns], dtype=float)
    _draw_shares(shares, (held / np.maximum(held.sum(axis=1, keepdims=True), 1)).T)
    label_classes(shares, partition.classes)
    if _is_sorted(len(partition.counts)):
        plain(shares, noun, x_label=f"{members}, sorted by main {noun}", grid=False)
        ticks = np.linspace(0, len(columns) - 1, 5).round().astype(int)
        starts = np.cumsum([0, *(len(column) for column in columns)])
        shares.set_xticks(ticks, [f"{starts[tick + 1] if tick else 1:,}" for tick in ticks])
    else:
        plain(shares, noun, x_label=members[:-1], grid=False)


def _draw_sizes(axes: Axes, partition: Partition, columns: Sequence[NDArray[np.int64]]) -> None:
    """Draw the number of samples per client, or the mean of a group."""
    sizes = np.array([partition.samples[column].mean() for column in columns])
    plain(axes, "samples")
    axes.stairs(sizes, np.arange(len(columns) + 1) - 0.5, fill=True, color=COLOURS["grey"], linewidth=0)
    axes.set_ylim(0, float(sizes.max(initial=0)) * 1.15 or 1.0)
    if not _is_sorted(len(partition.counts)):
        _mark_byzantine(axes, partition.byzantine, sizes)


def _draw_shares(axes: Axes, shares: NDArray[np.float64]) -> None:
    """Draw shares[classes, columns] in 0..1 as opacity, which suits light and dark pages."""
    blue = np.array([0x2B, 0x8C, 0xD0], dtype=np.uint8)
    raster = np.empty((*shares.shape, 4), dtype=np.uint8)
    raster[..., :3] = blue
    # The square root keeps small shares visible.
    raster[..., 3] = np.round(255 * np.sqrt(np.clip(shares, 0, 1)))
    if raster.size:
        axes.imshow(raster, aspect="auto", interpolation="none", origin="lower",
                    extent=(-0.5, shares.shape[1] - 0.5, -0.5, shares.shape[0] - 0.5))  # fmt: skip


def label_classes(axes: Axes, classes: Sequence[str]) -> None:
    """Names of at most twelve classes beside the rows of a raster."""
    step = max(1, -(-len(classes) // 12))
    axes.set_yticks(range(0, len(classes), step), [short(name) for name in classes[::step]])


def _mark_byzantine(axes: Axes, byzantine: Sequence[int], tops: NDArray[np.float64]) -> None:
    marked = [client for client in byzantine if 0 <= client < len(tops)]
    if marked:
        low, high = axes.get_ylim()
        height = [float(tops[client]) + 0.035 * (high - low) for client in marked]
        axes.plot(marked, height, linestyle="", marker="v", markersize=4.5, color=COLOURS["red"], clip_on=False)


def short(name: str, length: int = 14) -> str:
    """A name that fits beside a picture."""
    return name if len(name) <= length else name[: length - 1] + "…"
