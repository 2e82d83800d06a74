"""Exhibits: what a part shows of itself in the report, as data.  `Method.exhibits` and its kin hand them out.

A part says what there is to see, the report how it is drawn.  Nothing here needs torch, so that a report is drawn from
the run folder alone; where numbers are expected, a tensor on the CPU or nested lists will do.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
Labels = NDArray[np.int64]
Pixels = NDArray[np.uint8]
Json = Mapping[str, Any]

MOST_PIXELS = 1 << 24
"""Bytes that the images of one exhibit may have."""


@dataclass(frozen=True, eq=False)
class Exhibit(ABC):
    """One thing to see.

    name: what tells it from the part's other exhibits; of one name the report shows the newest.  title: what stands
    above it.  caption: how to read it.  section: the heading under which the report puts it, the part's kind unless
    given; exhibits of one section stand in the order in which they are handed out.

    Raises ValueError, for all kinds, where the data have another form than the kind says.
    """

    kind: ClassVar[str]
    name: str
    title: str
    caption: str = field(default="", kw_only=True)
    section: str = field(default="", kw_only=True)

    def __post_init__(self) -> None:
        for name in ("name", "title", "caption", "section"):
            self._expect(isinstance(vars(self)[name], str), f"{name} must be a text")
        self._expect(bool(self.name), "name must not be empty")
        self._check()

    @abstractmethod
    def _check(self) -> None:
        """Bring the data into their declared form."""

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(f"{type(self).__name__} {self.name!r}: {what}")

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _names(self, **given: object) -> None:
        """Bring these fields into tuples of texts."""
        for name, value in given.items():
            if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
                raise ValueError(f"{type(self).__name__} {self.name!r}: {name} must be a list of texts")
            self._set(**{name: tuple(value)})

    def _numbers(self, what: str, value: object, dimensions: int) -> Numbers:
        """float64 of so many dimensions; None stands for NaN."""
        try:
            numbers = np.asarray(value, np.float64).copy()
        except (TypeError, ValueError) as error:
            raise ValueError(f"{type(self).__name__} {self.name!r}: {what} must be numbers ({error})") from error
        self._expect(numbers.ndim == dimensions, f"{what} must have {dimensions} dimensions, got {list(numbers.shape)}")
        return numbers

    def _mapping(self, what: str, value: object) -> dict[str, object]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise ValueError(f"{type(self).__name__} {self.name!r}: {what} must be a mapping whose keys are texts")
        return dict(value)

    def to_json(self) -> dict[str, object]:
        """What `read` takes; strict JSON, null for NaN and infinity."""
        return {"kind": self.kind, **{each.name: _plain(vars(self)[each.name]) for each in fields(self)}}


@dataclass(frozen=True, eq=False)
class Text(Exhibit):
    """A few sentences, as paragraphs that blank lines part; the title is not shown."""

    kind: ClassVar[str] = "text"
    text: str

    def _check(self) -> None:
        self._expect(isinstance(self.text, str), "text must be a text")


@dataclass(frozen=True, eq=False)
class Table(Exhibit):
    """Rows of texts and numbers, one cell a head; folded: shown after a click."""

    kind: ClassVar[str] = "table"
    heads: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]
    folded: bool = False

    def _check(self) -> None:
        self._names(heads=self.heads)
        rows = tuple(tuple(row) for row in self.rows)
        self._expect(all(len(row) == len(self.heads) for row in rows), f"every row must have {len(self.heads)} cells")
        plain = all(cell is None or isinstance(cell, str | int | float) for row in rows for cell in row)
        self._expect(plain, "cells must be texts or numbers")
        self._set(rows=rows)


@dataclass(frozen=True, eq=False)
class Curve:
    """One line: y[n] over x[n], NaN where there is a gap.  Dotted ones are for comparison: they have no place in the
    legend, and the colour of the line of the same name."""

    name: str
    x: Numbers
    y: Numbers
    dotted: bool = False


@dataclass(frozen=True, eq=False)
class Curves(Exhibit):
    """Lines over a common axis.  An x_label of "round" writes negative numbers as "before".

    steps: one level for each x, such as one of each client.  log: equal steps of y for equal factors.
    """

    kind: ClassVar[str] = "curves"
    curves: tuple[Curve, ...]
    x_label: str = "round"
    y_label: str = ""
    steps: bool = False
    log: bool = False

    def _check(self) -> None:
        self._set(curves=tuple(self._curve(each) for each in self.curves))
        self._expect(len(self.curves) > 0, "curves must not be empty")

    def _curve(self, given: object) -> Curve:
        curve = Curve(**given) if isinstance(given, Mapping) else given
        if not isinstance(curve, Curve):
            raise ValueError(f"Curves {self.name!r}: curves must be fedgen.exhibits.Curve, got {type(curve).__name__}")
        x, y = (self._numbers(f"{part} of {curve.name!r}", vars(curve)[part], 1) for part in ("x", "y"))
        self._expect(len(x) == len(y) > 0, f"x and y of {curve.name!r} must be as long, and not empty")
        return Curve(str(curve.name), x, y, bool(curve.dotted))


@dataclass(frozen=True, eq=False)
class Heatmap(Exhibit):
    """values[rows, columns] as depths of colour, another colour for negative ones, none for NaN; panels of equal rows
    stand side by side on one scale.

    row_names, column_names: in place of numbers.  most: the value of the full colour, else the largest there is.  unit:
    what is counted.  written: the values stand in their places.
    """

    kind: ClassVar[str] = "heatmap"
    panels: Mapping[str, Numbers]
    x_label: str = ""
    y_label: str = ""
    row_names: tuple[str, ...] = ()
    column_names: tuple[str, ...] = ()
    unit: str = ""
    most: float | None = None
    written: bool = False

    def _check(self) -> None:
        self._names(row_names=self.row_names, column_names=self.column_names)
        given = self._mapping("panels", self.panels)
        panels = {name: self._numbers(f"panel {name!r}", value, 2) for name, value in given.items()}
        self._expect(bool(panels) and all(panel.size for panel in panels.values()), "panels must not be empty")
        shapes = {panel.shape for panel in panels.values()}
        self._expect(len({rows for rows, _ in shapes}) == 1, "panels must have as many rows")
        for rows, columns in shapes:
            self._expect(len(self.row_names) in (0, rows), f"row_names must be {rows}, one a row")
            self._expect(len(self.column_names) in (0, columns), f"column_names must be {columns}, one a column")
        self._set(panels=panels, most=None if self.most is None else float(self.most))


@dataclass(frozen=True, eq=False)
class Points(Exhibit):
    """points[p, 2] in a plane; panels stand side by side on the same axes.

    labels {panel: [p]}: the number of each point's group, of which `names` has the names, and `groups` the word for
    them in the legend.
    """

    kind: ClassVar[str] = "points"
    panels: Mapping[str, Numbers]
    labels: Mapping[str, Labels] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    groups: str = ""
    x_label: str = ""
    y_label: str = ""

    def _check(self) -> None:
        self._names(names=self.names)
        given, labels = self._mapping("panels", self.panels), self._mapping("labels", self.labels)
        panels = {name: self._numbers(f"panel {name!r}", value, 2) for name, value in given.items()}
        self._expect(bool(panels), "panels must not be empty")
        self._expect(all(panel.shape[1] == 2 for panel in panels.values()), "points must be [p, 2]")
        if not labels and not self.names:
            labels = {name: np.zeros(len(panel)) for name, panel in panels.items()}
            self._set(names=("",))
        self._expect(labels.keys() == panels.keys(), "labels must be of the same panels")
        numbers = {name: self._numbers(f"labels of {name!r}", value, 1) for name, value in labels.items()}
        for name, each in numbers.items():
            self._expect(len(each) == len(panels[name]), f"labels of {name!r} must be one a point")
            known = not len(each) or bool((each % 1 == 0).all() and each.min() >= 0 and each.max() < len(self.names))
            self._expect(known, f"labels of {name!r} must be whole numbers from 0 to {len(self.names) - 1}, as names")
        self._set(panels=panels, labels={name: each.astype(np.int64) for name, each in numbers.items()})


@dataclass(frozen=True, eq=False)
class Images(Exhibit):
    """images[n, height, width], or [n, height, width, 3] in colour, row by row in a grid.

    Whole numbers are 0 .. 255, others 0 .. 1.  names: one beneath each image, if any.
    """

    kind: ClassVar[str] = "images"
    images: Pixels
    names: tuple[str, ...] = ()
    columns: int = 10

    def _check(self) -> None:
        images = _unpacked(self.images) if isinstance(self.images, Mapping) else np.asarray(self.images)
        shaped = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
        self._expect(shaped and images.size > 0, f"images must be [n, h, w] or [n, h, w, 3], got {list(images.shape)}")
        self._expect(images.size <= MOST_PIXELS, f"{images.size} numbers are more than the {MOST_PIXELS} of a picture")
        if not np.issubdtype(images.dtype, np.integer):
            self._expect(bool(np.isfinite(images).all()), "images must be finite")
            images = np.round(255 * np.clip(images, 0, 1))
        self._names(names=self.names)
        self._expect(len(self.names) in (0, len(images)), f"names must be {len(images)}, one an image")
        self._expect(self.columns >= 1, "columns must be at least 1")
        self._set(images=np.clip(images, 0, 255).astype(np.uint8), columns=int(self.columns))


KINDS: Mapping[str, type[Exhibit]] = {each.kind: each for each in (Text, Table, Curves, Heatmap, Points, Images)}


def read(value: Json) -> Exhibit:
    """The exhibit of which this is the JSON form.

    Raises ValueError where it is of none.
    """
    given = dict(value)
    kind = KINDS.get(str(given.pop("kind", "")))
    if kind is None:
        raise ValueError(f"no kind of exhibit: {value.get('kind')!r}")
    try:
        return kind(**given)
    except (TypeError, KeyError, OverflowError, MemoryError) as error:
        raise ValueError(f"no {kind.kind}: {error}") from error


def _plain(value: object) -> object:
    """The value as strict JSON has it."""
    if isinstance(value, np.ndarray):
        return _packed(value) if value.dtype == np.uint8 else _plain(value.tolist())
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Curve):
        return _plain(vars(value))
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _packed(pixels: Pixels) -> dict[str, object]:
    data = zlib.compress(np.ascontiguousarray(pixels).tobytes())
    return {"shape": list(pixels.shape), "zlib": base64.b64encode(data).decode()}


def _unpacked(packed: Json) -> Pixels:
    """Raises ValueError where that is no image, or a larger one than there can be."""
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(packed["zlib"], validate=True), MOST_PIXELS)
        return np.frombuffer(data, np.uint8).reshape(packed["shape"])
    except (KeyError, TypeError, binascii.Error, zlib.error) as error:
        raise ValueError(f"images cannot be unpacked: {error}") from error
