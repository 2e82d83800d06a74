"""Pictures of exhibits as SVG text, one function per kind."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from fedgen.exhibits import Curves, Exhibit, Heatmap, Images, Numbers, Pixels, Points
from fedgen.server.report.canvas import (
    COLOURS,
    HEIGHT,
    WIDTH,
    drawing,
    legend,
    logarithmic,
    plain,
    plot_axes,
    whole_numbers,
    written,
)
from fedgen.server.report.figures import thinned
from fedgen.server.report.partition import label_classes, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, TALL = 920, 330
CURVE_COLOURS = ("blue", "orange", "green", "red", "purple", "class0", "class5", "class8", "grey")
CLASS_COLOURS = tuple(f"class{index}" for index in range(10))
POSITIVE, NEGATIVE = np.array([0x2B, 0x8C, 0xD0], np.uint8), np.array([0xE0, 0x7B, 0x1E], np.uint8)
MOST_POINTS, MOST_NAMES, MOST_WRITTEN = 5_000, 12, 400
GAP, TILE, CAPTION = 0.08, 176, 18
"""Grid of images: space between images in image widths; largest image width and height of text in SVG units."""


def draw_exhibit(exhibit: Exhibit) -> str:
    """The picture of an exhibit; empty for a kind without a picture, such as a table."""
    draw = _DRAWN.get(type(exhibit))
    return draw(exhibit) if draw else ""


def is_wide(exhibit: Exhibit) -> bool:
    """Whether the picture takes the width of the page, and scrolls on a narrow one."""
    if isinstance(exhibit, Heatmap | Points):
        return len(exhibit.panels) > 1
    return isinstance(exhibit, Images) and _columns(exhibit) > 5


def _draw_curves(exhibit: Exhibit) -> str:
    assert isinstance(exhibit, Curves)
    names = dict.fromkeys(curve.name for curve in exhibit.curves)
    colours = dict(zip(names, cycle(CURVE_COLOURS), strict=False))
    with drawing() as figure:
        axes = plot_axes(figure, exhibit.y_label, x_label=exhibit.x_label)
        for curve in exhibit.curves:
            label = None if curve.dotted else curve.name or None
            line = ":" if curve.dotted else "-"
            if exhibit.steps:
                axes.stairs(
                    curve.y, _edges(curve.x), baseline=None, color=COLOURS[colours[curve.name]], linestyle=line,
                    linewidth=1.8, label=label,
                )  # fmt: skip
                continue
            x, y = thinned(curve.x.tolist(), curve.y.tolist())
            axes.plot(x, y, color=COLOURS[colours[curve.name]], linestyle=line, linewidth=1.8, label=label,
                      marker="o" if len(x) <= 25 and not curve.dotted else "", markersize=3.4)  # fmt: skip
        every = np.concatenate([curve.y for curve in exhibit.curves])
        if exhibit.log and bool((every[np.isfinite(every)] > 0).all()):
            logarithmic(axes)
        elif exhibit.steps and not bool((every < 0).any()):
            axes.set_ylim(bottom=0)
        legend(axes)
        return written(figure, f"exhibit {exhibit.name}")


def _edges(x: Numbers) -> Numbers:
    """[n + 1]: cell edges, half way between centres, and as far beyond the first and the last."""
    if len(x) == 1:
        return np.array([x[0] - 0.5, x[0] + 0.5])
    middles = (x[:-1] + x[1:]) / 2
    return np.array([2 * x[0] - middles[0], *middles, 2 * x[-1] - middles[-1]])


def _draw_heatmap(exhibit: Exhibit) -> str:
    assert isinstance(exhibit, Heatmap)
    panels = exhibit.panels
    largest = max(float(np.nanmax(np.abs(values), initial=0)) for values in panels.values())
    top = (largest if exhibit.most is None else exhibit.most) or 1.0
    with drawing(width=WIDE if is_wide(exhibit) else WIDTH, height=HEIGHT) as figure:
        several = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (name, values) in zip(several, panels.items(), strict=True):
            _raster(axes, values / top)
            if exhibit.written and values.size <= MOST_WRITTEN:
                _write_values(axes, values)
            parts = [name] * bool(name) + [_full_colour(top, exhibit.unit)] * bool(exhibit.unit)
            x_label = f"{exhibit.x_label} ({'; '.join(parts)})".strip() if parts else exhibit.x_label
            plain(axes, exhibit.y_label, x_label=x_label, grid=False)
            if exhibit.row_names:
                label_classes(axes, exhibit.row_names)
            else:
                whole_numbers(axes.yaxis)
            if exhibit.column_names:
                step = max(1, -(-len(exhibit.column_names) // MOST_NAMES))
                names = [short(column) for column in exhibit.column_names[::step]]
                axes.set_xticks(range(0, len(exhibit.column_names), step), names)
        return written(figure, f"exhibit {exhibit.name}")


def _full_colour(top: float, unit: str) -> str:
    return f"full colour: {top:,.0f} {unit}" if top % 1 == 0 else f"full colour: {top:.3g} {unit}"


def _raster(axes: Axes, shares: Numbers) -> None:
    """Draw shares[rows, columns] in -1..1 as opacity, which suits light and dark pages."""
    raster = np.empty((*shares.shape, 4), dtype=np.uint8)
    raster[..., :3] = np.where((shares < 0)[..., None], NEGATIVE, POSITIVE)
    # The square root keeps small shares visible.
    raster[..., 3] = np.round(255 * np.sqrt(np.clip(np.abs(np.nan_to_num(shares)), 0, 1)))
    axes.imshow(raster, aspect="auto", interpolation="none", origin="lower")


def _write_values(axes: Axes, values: Numbers) -> None:
    whole = bool((np.nan_to_num(values) % 1 == 0).all()) and bool((values > 1).any())
    for row, column in np.argwhere(np.isfinite(values)):
        text = f"{values[row, column]:,.0f}" if whole else f"{values[row, column]:.2f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8)


def _draw_points(exhibit: Exhibit) -> str:
    """Draw groups of points; with more groups than colours, colours repeat and there is no legend."""
    assert isinstance(exhibit, Points)
    size = (WIDE, TALL) if is_wide(exhibit) else (WIDTH, HEIGHT)
    colours = CLASS_COLOURS[: len(exhibit.names)]
    with drawing(*size) as figure:
        several = figure.subplots(1, len(exhibit.panels), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (name, points) in zip(several, exhibit.panels.items(), strict=True):
            step = max(1, ceil(len(points) / MOST_POINTS))
            points, labels = points[::step], exhibit.labels[name][::step]
            for place, role in enumerate(colours):
                chosen = labels % len(CLASS_COLOURS) == place
                axes.scatter(
                    *points[chosen].T, s=9, color=COLOURS[role], linewidths=0, label=short(exhibit.names[place])
                )
            x_label = f"{exhibit.x_label} ({name})".strip() if name else exhibit.x_label
            plain(axes, exhibit.y_label, x_label=x_label, grid=False)
        if len(exhibit.names) <= len(CLASS_COLOURS) and any(exhibit.names):
            axes.legend(loc="upper left", bbox_to_anchor=(1.005, 1.02), frameon=False, title=exhibit.groups or None,
                        handletextpad=0.1, markerscale=1.8, alignment="left")  # fmt: skip
        return written(figure, f"exhibit {exhibit.name}")


def _columns(exhibit: Images) -> int:
    return min(exhibit.columns, len(exhibit.images))


def _draw_images(exhibit: Exhibit) -> str:
    assert isinstance(exhibit, Images)
    columns = _columns(exhibit)
    width = WIDE if is_wide(exhibit) else WIDTH
    ratio = exhibit.images.shape[1] / exhibit.images.shape[2]
    rows = ceil(len(exhibit.images) / columns)
    tile = min(TILE, width / (columns * (1 + GAP)))
    pitch = ratio + GAP + (CAPTION / tile if exhibit.names else 0.0)
    with drawing(width=width, height=max(1, round(tile * rows * pitch))) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        for place, image in enumerate(exhibit.images):
            left, top = place % columns * (1 + GAP), place // columns * pitch
            _draw_image(axes, image, (left, left + 1, top + ratio, top))
            if exhibit.names:
                name = short(exhibit.names[place], max(3, int(tile / 7)))
                axes.text(left + 0.5, top + ratio + GAP / 2, name, ha="center", va="top", fontsize=10)
        axes.set_xlim(0, width / tile)
        axes.set_ylim(rows * pitch, 0)
        axes.set_axis_off()
        return written(figure, f"exhibit {exhibit.name}")


def _draw_image(axes: Axes, image: Pixels, extent: tuple[float, float, float, float]) -> None:
    """Draw an image as RGB, also a grey one, which would otherwise get a colour map."""
    coloured = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    axes.imshow(coloured, extent=extent, interpolation="none", aspect="auto")


_DRAWN: dict[type[Exhibit], Callable[[Exhibit], str]] = {
    Curves: _draw_curves,
    Heatmap: _draw_heatmap,
    Points: _draw_points,
    Images: _draw_images,
}
