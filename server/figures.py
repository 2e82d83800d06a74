"""The report's pictures: numbers and printable names in, SVG text out. No files are read or written here.

Colours are written as fixed hexadecimal placeholders, one for each role. `standalone` leaves them, which gives a
picture for a light page; `inline` replaces them by CSS variables, so that inside the report a picture follows the
reader's light or dark setting.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = tuple[Sequence[float], Sequence[float]]
"""Rounds and the values at them, of equal length."""

# Okabe and Ito's palette for the series, Tol's muted one for classes; both are told apart by colour-blind readers.
COLOURS = {
    "paper": "#fefefe", "ink": "#20242b", "muted": "#69707c", "grid": "#e4e7eb",
    "blue": "#0072b2", "orange": "#e69f01", "red": "#d55e02", "green": "#009e73",
    "purple": "#b0609b", "grey": "#9aa1ab",
    "class0": "#332288", "class1": "#88ccee", "class2": "#44aa99", "class3": "#117733", "class4": "#999933",
    "class5": "#ddcc77", "class6": "#cc6677", "class7": "#882255", "class8": "#aa4499", "class9": "#b7bcc4",
}  # fmt: skip
SERIES_STYLES = {"test": ("blue", "-"), "validation": ("orange", (0, (5, 1.6))), "train": ("grey", (0, (1.2, 1.2)))}
OUTCOME_COLOURS = {"admitted": "blue", "late": "grey", "rejected": "orange", "failed": "red"}
PHASE_COLOURS = {"train": "blue", "aggregate": "green", "evaluate": "orange", "checkpoint": "purple"}
SPARE_COLOURS = ("red", "grey", "class2", "class5", "class6", "class9")

WIDTH, HEIGHT = 460, 270
MAX_POINTS, MAX_STEPS = 1000, 200
MAX_BAR_CLIENTS, MAX_BAR_CLASSES = 30, 10
MAX_SINGLE_CLIENTS, MAX_COLUMNS = 400, 240
FONT_STACK = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"


def curves(series: Mapping[str, Series], label: str, *, percent: bool = False) -> str:
    """A metric over the rounds, one line for each of test, validation and train that `series` holds."""
    with drawing() as figure:
        axes = plot_axes(figure, label)
        drawn = []
        for name, (rounds, values) in series.items():
            colour, dashes = SERIES_STYLES.get(name, ("green", "-"))
            x, y = thinned(rounds, values)
            y = 100 * y if percent else y
            axes.plot(x, y, color=COLOURS[colour], linestyle=dashes, linewidth=1.8, label=name,
                      marker="o" if len(x) <= 25 else "", markersize=3.4)  # fmt: skip
            drawn.append(y)
        every = np.concatenate(drawn) if drawn else np.zeros(0)
        if every.size and every.min() > 1e-12 and every.max() > 1000 * every.min():
            axes.set_yscale("log")
        legend(axes)
        return written(figure, f"curves {label}")


def stacked(rounds: Sequence[int], parts: Mapping[str, Sequence[float]], label: str, colours: Mapping[str, str]) -> str:
    """Per-round amounts stacked on each other; beyond 200 rounds each step is the mean of several."""
    with drawing() as figure:
        axes = plot_axes(figure, label)
        edges, groups = round_bins(rounds)
        floor = np.zeros(len(groups))
        for index, (name, colour) in enumerate(colours_for(list(parts), colours).items()):
            top = floor + np.array([np.mean(np.asarray(parts[name], float)[group]) for group in groups])
            # The first part is the ordinary one; it is drawn quietly, so that the others stand out.
            axes.stairs(top, edges, baseline=floor, fill=True, color=COLOURS[colour], alpha=1.0 if index else 0.55,
                        linewidth=0, label=name)  # fmt: skip
            floor = top
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, float(floor.max()) * 1.06 or 1.0)
        legend(axes)
        return written(figure, f"stacked {label}")


def traffic(rounds: Sequence[int], up: Sequence[float], down: Sequence[float]) -> str:
    """Bytes each way in every round; beyond 200 rounds each step is the mean of several."""
    size, unit = byte_unit(max([0.0, *up, *down]))
    with drawing() as figure:
        axes = plot_axes(figure, f"traffic a round ({unit})")
        edges, groups = round_bins(rounds)
        for name, values, colour, dashes in (
            ("up (from clients)", up, "blue", "-"),
            ("down (to clients)", down, "orange", (0, (5, 1.6))),
        ):
            steps = [np.mean(np.asarray(values, float)[group]) / size for group in groups]
            axes.stairs(steps, edges, baseline=None, color=COLOURS[colour], linestyle=dashes, linewidth=1.8, label=name)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(0, max([0.0, *up, *down]) / size * 1.1 or 1.0)
        legend(axes)
        return written(figure, "traffic")


def partition(counts: NDArray[np.int64], classes: Sequence[str], byzantine: Sequence[int] = ()) -> str:
    """Who holds what, from ``counts[clients, classes]``: bars for few clients, else a map with their sizes above it."""
    few = len(counts) <= MAX_BAR_CLIENTS and 1 <= len(classes) <= MAX_BAR_CLASSES
    with drawing(width=920, height=330) as figure:
        if few:
            partition_bars(figure, counts, classes, byzantine)
        else:
            partition_map(figure, counts, classes, byzantine)
        return written(figure, "partition")


def partition_is_sorted(clients: int) -> bool:
    """Whether the map shows groups of clients, sorted by main class: there are too many to show each by its number."""
    return clients > MAX_SINGLE_CLIENTS


def partition_bars(figure: Figure, counts: NDArray[np.int64], classes: Sequence[str], byzantine: Sequence[int]) -> None:
    axes = plot_axes(figure, "samples", x_label="client")
    floor = np.zeros(len(counts))
    for index, name in enumerate(classes):
        axes.bar(range(len(counts)), counts[:, index], bottom=floor, width=0.82, color=COLOURS[f"class{index}"],
                 label=short(name), linewidth=0)  # fmt: skip
        floor = floor + counts[:, index]
    axes.set_xlim(-0.7, max(len(counts), 1) - 0.3)
    axes.set_xticks(range(len(counts)))
    axes.set_ylim(0, float(floor.max(initial=0)) * 1.08 or 1.0)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(1.005, 1.02),
        frameon=False,
        title="class",
        handlelength=1,
        handleheight=1,
        alignment="left",
    )
    mark_byzantine(axes, byzantine, floor)


def partition_map(figure: Figure, counts: NDArray[np.int64], classes: Sequence[str], byzantine: Sequence[int]) -> None:
    sizes, map_ = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1, 2.4]})
    columns = client_columns(counts)
    held = np.array([counts[column].sum(axis=0) for column in columns], dtype=float)
    per_client = np.array([counts[column].sum(axis=1).mean() for column in columns])
    shares = held / np.maximum(held.sum(axis=1, keepdims=True), 1)
    plain(sizes, "samples")
    edges = np.arange(len(columns) + 1) - 0.5
    sizes.stairs(per_client, edges, fill=True, color=COLOURS["grey"], linewidth=0)
    sizes.set_ylim(0, float(per_client.max(initial=0)) * 1.15 or 1.0)
    if not partition_is_sorted(len(counts)):
        mark_byzantine(sizes, byzantine, per_client)
    show_shares(map_, shares.T)
    plain(
        map_,
        "class",
        x_label="clients, sorted by main class" if partition_is_sorted(len(counts)) else "client",
        grid=False,
    )
    label_classes(map_, classes)
    if partition_is_sorted(len(counts)):
        ticks = np.linspace(0, len(columns) - 1, 5).round().astype(int)
        starts = np.cumsum([0, *(len(column) for column in columns)])
        map_.set_xticks(ticks, [f"{starts[tick + 1] if tick else 1:,}" for tick in ticks])


def client_columns(counts: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The clients of each column of the map: one each, or groups of them sorted by main class and its share."""
    if not partition_is_sorted(len(counts)):
        return [np.array([client]) for client in range(len(counts))]
    main = counts.argmax(axis=1) if counts.shape[1] else np.zeros(len(counts), dtype=np.int64)
    share = counts.max(axis=1, initial=0) / np.maximum(counts.sum(axis=1), 1)
    return [column.astype(np.int64) for column in np.array_split(np.lexsort((-share, main)), MAX_COLUMNS)]


def show_shares(axes: Axes, shares: NDArray[np.float64]) -> None:
    """``shares[classes, columns]`` in 0..1 as the opacity of a raster, so that it suits a light and a dark page."""
    blue = np.array([0x2B, 0x8C, 0xD0], dtype=np.uint8)
    raster = np.empty((*shares.shape, 4), dtype=np.uint8)
    raster[..., :3] = blue
    # The square root keeps small shares visible.
    raster[..., 3] = np.round(255 * np.sqrt(np.clip(shares, 0, 1)))
    if raster.size:
        axes.imshow(raster, aspect="auto", interpolation="none", origin="lower",
                    extent=(-0.5, shares.shape[1] - 0.5, -0.5, shares.shape[0] - 0.5))  # fmt: skip


def label_classes(axes: Axes, classes: Sequence[str]) -> None:
    step = max(1, -(-len(classes) // 12))
    axes.set_yticks(range(0, len(classes), step), [short(name) for name in classes[::step]])


def mark_byzantine(axes: Axes, byzantine: Sequence[int], tops: NDArray[np.float64]) -> None:
    marked = [client for client in byzantine if 0 <= client < len(tops)]
    if marked:
        low, high = axes.get_ylim()
        height = [float(tops[client]) + 0.035 * (high - low) for client in marked]
        axes.plot(marked, height, linestyle="", marker="v", markersize=4.5, color=COLOURS["red"], clip_on=False)


def thinned(rounds: Sequence[float], values: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most about 1,000 of the points, evenly spaced, the last always among them."""
    x, y = np.asarray(rounds, float), np.asarray(values, float)
    step = max(1, -(-len(x) // MAX_POINTS))
    keep = np.arange(len(x))[::-1][::step][::-1]
    return x[keep], y[keep]


def round_bins(rounds: Sequence[int]) -> tuple[NDArray[np.float64], list[NDArray[np.int64]]]:
    """Edges[k + 1] of k <= 200 steps on the axis of rounds, and the positions in `rounds` that each step covers."""
    groups = [group for group in np.array_split(np.arange(len(rounds)), min(len(rounds), MAX_STEPS) or 1) if len(group)]
    if not groups:
        return np.array([0.0, 1.0]), [np.zeros(0, dtype=np.int64)]
    starts = [rounds[int(group[0])] - 0.5 for group in groups]
    return np.array([*starts, rounds[-1] + 0.5]), groups


def colours_for(names: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """A colour for every name: its own where it is known, else the next spare one."""
    unknown = [name for name in names if name not in known]
    spare = {name: SPARE_COLOURS[index % len(SPARE_COLOURS)] for index, name in enumerate(unknown)}
    return {name: known.get(name) or spare[name] for name in names}


def byte_unit(largest: float) -> tuple[float, str]:
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= size:
            return size, unit
    return 1.0, "bytes"


def short(name: str, length: int = 14) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


@contextmanager
def drawing(width: int = WIDTH, height: int = HEIGHT) -> Iterator[Figure]:
    """A figure of `width` x `height` SVG units with the report's fonts and colours; the process's own settings stay."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none", "text.parse_math": False, "font.family": "DejaVu Sans", "font.size": 11.5,
        "figure.facecolor": COLOURS["paper"], "axes.facecolor": "none", "axes.edgecolor": COLOURS["grid"],
        "axes.labelcolor": COLOURS["muted"], "xtick.color": COLOURS["grid"], "ytick.color": COLOURS["grid"],
        "xtick.labelcolor": COLOURS["muted"], "ytick.labelcolor": COLOURS["muted"], "text.color": COLOURS["ink"],
        "grid.color": COLOURS["grid"], "axes.axisbelow": True, "axes.unicode_minus": True,
        "legend.fontsize": 11, "legend.title_fontsize": 11,
    }  # fmt: skip
    # A person's own matplotlibrc must not change the report. The backend is the process's, and not used here.
    defaults: Any = {
        name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")
    }
    with matplotlib.rc_context({**defaults, **settings}), warnings.catch_warnings():
        # Text stays text in the SVG: the reader's fonts draw it, whatever matplotlib's own can.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield Figure(figsize=(width / 72, height / 72), layout="constrained")


def plot_axes(figure: Figure, label: str, x_label: str = "round") -> Axes:
    axes: Axes = figure.subplots()
    plain(axes, label, x_label)
    return axes


def plain(axes: Axes, label: str, x_label: str = "", *, grid: bool = True) -> None:
    """Axes without a box: whole numbers below, a light grid across."""
    from matplotlib.ticker import MaxNLocator

    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, pad=5)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    if grid:
        axes.grid(axis="y", linewidth=0.8)
    axes.set_ylabel(label, labelpad=6)
    if x_label:
        axes.set_xlabel(x_label, labelpad=4)


def legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=min(4, len(labels)),
                    frameon=False, handlelength=1.6, columnspacing=1.3, borderaxespad=0.2)  # fmt: skip


def written(figure: Figure, salt: str) -> str:
    """The figure as SVG text, the same for the same numbers: no date, and identifiers hashed with a fixed salt."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"fedgen {salt}"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = re.sub(r"font-family: [^;\"<>]*", f"font-family: {FONT_STACK}", buffer.getvalue())
    return re.sub(r"\n\s+", "\n", svg)


def standalone(svg: str, title: str) -> str:
    """A file of its own, for a light page, with `title` for those who cannot see it."""
    return re.sub(r"(<svg [^>]*>)", lambda found: f"{found[1]}\n<title>{escaped(title)}</title>", svg, count=1)


def inline(svg: str, name: str, title: str) -> str:
    """The picture as part of an HTML page: theme variables for colours, identifiers of its own, no XML prologue."""
    body = svg[svg.index("<svg ") :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    view_box = re.search(r'viewBox="([^"]*)"', body)
    head = f'<svg viewBox="{view_box[1] if view_box else ""}" role="img" aria-label="{escaped(title)}">'
    body = head + body[body.index(">") + 1 :]
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href=", "href=")
    body = re.sub(r'id="([^"]*)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", body)
    for role, colour in COLOURS.items():
        body = re.sub(rf"(: ){colour}(?=[;\"])", rf"\1var(--{role})", body)
    return body


def escaped(text: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return text
