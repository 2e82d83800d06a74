"""The style of the report's pictures: fonts, colours, axes, and output as SVG text.

Colours are written as fixed hexadecimal placeholders, one per role. `standalone` keeps them, for a light page;
`inline` replaces them by CSS variables, so that a picture in the report follows the reader's light or dark setting.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's palette for series, Tol's muted palette for classes; both are safe for colour-blind readers.
COLOURS = {
    "paper": "#fefefe", "ink": "#20242b", "muted": "#69707c", "grid": "#e4e7eb",
    "blue": "#0072b2", "orange": "#e69f01", "red": "#d55e02", "green": "#009e73",
    "purple": "#b0609b", "grey": "#9aa1ab", "edge": "#838b97",
    "class0": "#332288", "class1": "#88ccee", "class2": "#44aa99", "class3": "#117733", "class4": "#999933",
    "class5": "#ddcc77", "class6": "#cc6677", "class7": "#882255", "class8": "#aa4499", "class9": "#b7bcc4",
}  # fmt: skip
FONT_STACK = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
WIDTH, HEIGHT = 460, 270


@contextmanager
def drawing(width: int = WIDTH, height: int = HEIGHT) -> Iterator[Figure]:
    """A figure of `width` x `height` SVG units with the report's style; the process's matplotlib settings are kept."""
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
    # A user's matplotlibrc must not change the report. The backend stays, as it is not used here.
    defaults: Any = {
        name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")
    }
    with matplotlib.rc_context({**defaults, **settings}), warnings.catch_warnings():
        # Text stays text in the SVG and is drawn in the reader's fonts, so missing glyphs here do not matter.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield Figure(figsize=(width / 72, height / 72), layout="constrained")


def plot_axes(figure: Figure, label: str, x_label: str = "round") -> Axes:
    axes: Axes = figure.subplots()
    plain(axes, label, x_label)
    return axes


def plain(axes: Axes, label: str, x_label: str = "", *, grid: bool = True) -> None:
    """Axes without a box, with whole numbers on the x axis and a light horizontal grid."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0, pad=5)
    whole_numbers(axes.xaxis)
    if x_label == "round":
        axes.xaxis.set_major_formatter(_round_tick)
    if grid:
        axes.grid(axis="y", linewidth=0.8)
    axes.set_ylabel(label, labelpad=6)
    if x_label:
        axes.set_xlabel(x_label, labelpad=4)


def _round_tick(round: float, position: float) -> str:
    return "before" if round < 0 else f"{round:g}"


def whole_numbers(axis: Axis) -> None:
    """At most seven ticks, all at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))


def logarithmic(axes: Axes) -> None:
    """A logarithmic y axis with plain numbers, because the SVG would show formulas as source text."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}".replace("-", "\N{MINUS SIGN}") if super().__call__(x, pos) else ""

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(Plain())
    axes.yaxis.set_minor_formatter(Plain(minor_thresholds=(1, 0.4)))


def legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=min(4, len(labels)),
                    frameon=False, handlelength=1.6, columnspacing=1.3, borderaxespad=0.2)  # fmt: skip


def written(figure: Figure, salt: str) -> str:
    """The figure as SVG text. Equal numbers give equal text: no date, and identifiers hashed with a fixed salt."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": f"fedgen {salt}"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = re.sub(r"font-family: [^;\"<>]*", f"font-family: {FONT_STACK}", buffer.getvalue())
    return re.sub(r"\n\s+", "\n", svg)


def standalone(svg: str, title: str) -> str:
    """The picture as a separate file for a light page, with `title` for screen readers."""
    return re.sub(r"(<svg [^>]*>)", lambda found: f"{found[1]}\n<title>{escape(title)}</title>", svg, count=1)


def inline(svg: str, name: str, title: str) -> str:
    """The picture as part of an HTML page: CSS variables for colours, unique identifiers, no XML prologue."""
    body = svg[svg.index("<svg ") :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    view_box = re.search(r'viewBox="([^"]*)"', body)
    head = f'<svg viewBox="{view_box[1] if view_box else ""}" role="img" aria-label="{escape(title)}">'
    body = head + body[body.index(">") + 1 :]
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href=", "href=")
    body = re.sub(r'id="([^"]*)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", body)
    # A transparent background lets the shade at the edge of a scrollable area show through.
    body = body.replace(f"fill: {COLOURS['paper']}", "fill: none", 1)
    for role, colour in COLOURS.items():
        body = re.sub(rf"(: ){colour}(?=[;\"])", rf"\1var(--{role})", body)
    return body
