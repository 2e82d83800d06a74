"""The layout of a run's exhibits in the report: headings, paragraphs, tables, pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite

from fedgen.exhibits import Table, Text
from fedgen.server.report.exhibit_pictures import is_wide
from fedgen.server.report.exhibits_record import Shown


@dataclass(frozen=True)
class TableBlock:
    """A table as text. classes: CSS classes per column. left_out: number of rows that are not shown."""

    title: str
    caption: str
    folded: bool
    heads: tuple[str, ...]
    classes: list[str]
    rows: list[list[str]]
    left_out: int


@dataclass(frozen=True)
class Block:
    """Paragraphs, a table, a picture as wide as the page, or pictures side by side."""

    paragraphs: list[str] = field(default_factory=list)
    table: TableBlock | None = None
    wide: str = ""
    charts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Section:
    """A heading and its blocks."""

    id: str
    heading: str
    blocks: list[Block]


def sections(shown: Iterable[Shown], most_rows: int) -> list[Section]:
    """The sections of the exhibits, in order."""
    found: dict[str, list[Block]] = {}
    for newest in shown:
        blocks = found.setdefault(newest.section, [])
        if isinstance(newest.exhibit, Text):
            blocks.append(Block(paragraphs=re.split(r"\n\s*\n", newest.exhibit.text.strip())))
        elif isinstance(newest.exhibit, Table):
            blocks.append(Block(table=_table(newest, newest.exhibit, most_rows)))
        elif is_wide(newest.exhibit):
            blocks.append(Block(wide=newest.figure))
        elif blocks and blocks[-1].charts:
            blocks[-1].charts.append(newest.figure)
        else:
            blocks.append(Block(charts=[newest.figure]))
    return [Section(f"exhibits-{place}", heading, blocks) for place, (heading, blocks) in enumerate(found.items())]


def _table(shown: Shown, table: Table, most_rows: int) -> TableBlock:
    rows = [[_cell(value) for value in row] for row in table.rows]
    words = [any(character.isalpha() for row in rows for character in row[at]) for at in range(len(table.heads))]
    return TableBlock(
        title=shown.title,
        caption=table.caption,
        folded=table.folded,
        heads=table.heads,
        classes=["text" if word else "number nowrap" for word in words],
        rows=rows[:most_rows],
        left_out=max(0, len(rows) - most_rows),
    )


def _cell(value: str | float | None) -> str:
    """Text of a cell; a dash for no number."""
    if isinstance(value, str):
        return value
    if value is None or not isfinite(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
