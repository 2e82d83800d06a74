"""Pictures of numbers over the rounds as SVG text; no files are read or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from fedgen.server.report.canvas import COLOURS, drawing, legend, logarithmic, plot_axes, whole_numbers, written

Series = tuple[Sequence[float], Sequence[float]]
"""Rounds and the values at them, of equal length."""

SERIES_STYLES = {
    "test": ("blue", "-"),
    "validation": ("orange", (0, (5, 1.6))),
    "train": ("grey", (0, (1.2, 1.2))),
    "honest": ("blue", "-"),
    "byzantine": ("red", (0, (5, 1.6))),
    "10th percentile": ("blue", (0, (1.2, 1.2))),
    "worst peer": ("red", (0, (1.2, 1.2))),
}
OUTCOME_COLOURS = {"admitted": "blue", "late": "grey", "rejected": "orange", "failed": "red"}
PHASE_COLOURS = {"train": "blue", "aggregate": "green", "evaluate": "orange", "checkpoint": "purple"}
CURVE_COLOURS = ("green", "class0", "class6", "class5", "class1", "class8", "class3")
SPARE_COLOURS = ("red", "grey", "class2", "class5", "class6", "class9")

MAX_POINTS, MAX_STEPS = 1000, 200


def curves(series: Mapping[str, Series], label: str, *, percent: bool = False, log: bool = False) -> str:
    """Numbers over the rounds, one line per series."""
    with drawing() as figure:
        axes = plot_axes(figure, label)
        drawn = []
        colours = dict(zip([name for name in series if name not in SERIES_STYLES], cycle(CURVE_COLOURS), strict=False))
        for name, (rounds, values) in series.items():
            colour, dashes = SERIES_STYLES[name] if name in SERIES_STYLES else (colours[name], "-")
            x, y = thinned(rounds, values)
            y = 100 * y if percent else y
            axes.plot(x, y, color=COLOURS[colour], linestyle=dashes, linewidth=1.8, label=name,
                      marker="o" if len(x) <= 25 else "", markersize=3.4)  # fmt: skip
            drawn.append(y)
        every = np.concatenate(drawn) if drawn else np.zeros(0)
        if every.size and every.min() > 1e-12 and (log or every.max() > 1000 * every.min()):
            logarithmic(axes)
        legend(axes)
        return written(figure, f"curves {label}")


def stacked(
    rounds: Sequence[int],
    parts: Mapping[str, Sequence[float]],
    label: str,
    colours: Mapping[str, str],
    *,
    whole: bool = False,
) -> str:
    """Amounts per round, stacked; beyond 200 rounds each step is the mean of several rounds.

    whole: the amounts are counts, so the axis has whole numbers only.
    """
    with drawing() as figure:
        axes = plot_axes(figure, label)
        if whole:
            whole_numbers(axes.yaxis)
        edges, groups = round_bins(rounds)
        floor = np.zeros(len(groups))
        for index, (name, colour) in enumerate(colours_for(list(parts), colours).items()):
            top = floor + np.array([np.mean(np.asarray(parts[name], float)[group]) for group in groups])
            # The first part is the normal case; a pale colour makes the others stand out.
            axes.stairs(top, edges, baseline=floor, fill=True, color=COLOURS[colour], alpha=1.0 if index else 0.55,
                        linewidth=0, label=name)  # fmt: skip
            floor = top
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, float(floor.max()) * 1.06 or 1.0)
        legend(axes)
        return written(figure, f"stacked {label}")


def traffic(rounds: Sequence[int], up: Sequence[float], down: Sequence[float], members: str = "clients") -> str:
    """Bytes up and down per round; beyond 200 rounds each step is the mean of several rounds."""
    size, unit = byte_unit(max([0.0, *up, *down]))
    with drawing() as figure:
        axes = plot_axes(figure, f"traffic a round ({unit})")
        edges, groups = round_bins(rounds)
        for name, values, colour, dashes in (
            (f"up (from {members})", up, "blue", "-"),
            (f"down (to {members})", down, "orange", (0, (5, 1.6))),
        ):
            steps = [np.mean(np.asarray(values, float)[group]) / size for group in groups]
            axes.stairs(steps, edges, baseline=None, color=COLOURS[colour], linestyle=dashes, linewidth=1.8, label=name)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, max([0.0, *up, *down]) / size * 1.1 or 1.0)
        legend(axes)
        return written(figure, "traffic")


def thinned(rounds: Sequence[float], values: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """About 1,000 evenly spaced points at most, always including the last."""
    x, y = np.asarray(rounds, float), np.asarray(values, float)
    step = max(1, -(-len(x) // MAX_POINTS))
    keep = np.arange(len(x))[::-1][::step][::-1]
    return x[keep], y[keep]


def round_bins(rounds: Sequence[int]) -> tuple[NDArray[np.float64], list[NDArray[np.int64]]]:
    """(edges[k + 1] of k <= 200 steps on the axis of rounds, positions in `rounds` that each step covers)."""
    groups = [group for group in np.array_split(np.arange(len(rounds)), min(len(rounds), MAX_STEPS) or 1) if len(group)]
    if not groups:
        return np.array([0.0, 1.0]), [np.zeros(0, dtype=np.int64)]
    starts = [rounds[int(group[0])] - 0.5 for group in groups]
    return np.array([*starts, rounds[-1] + 0.5]), groups


def colours_for(names: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """A colour for every name: the known one, else the next unused one."""
    unknown = [name for name in names if name not in known]
    spare = {name: SPARE_COLOURS[index % len(SPARE_COLOURS)] for index, name in enumerate(unknown)}
    return {name: known.get(name) or spare[name] for name in names}


def byte_unit(largest: float) -> tuple[float, str]:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= size:
            return size, unit
    return 1.0, "bytes"
