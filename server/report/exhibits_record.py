"""Reads exhibits.jsonl for the report: the newest exhibit of every name; needs no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedgen import exhibits
from fedgen.exhibits import Exhibit
from fedgen.server.store.parts import EXHIBITS
from fedgen.server.words import in_round, printable

OWN_PICTURES = (
    *("accuracy", "loss", "domains", "clients", "trust", "residual", "partition", "network"),
    *("time", "traffic", "staleness"),
)
OWN_PREFIXES = ("metric-", "weights-")
PARTS = ("method", "rule", "attack")


@dataclass(frozen=True)
class Shown:
    """The newest exhibit of a name. figure: name of its picture. again: whether other rounds have it too."""

    figure: str
    by: str
    round: int
    again: bool
    exhibit: Exhibit

    @property
    def title(self) -> str:
        return (
            f"{self.exhibit.title} ({in_round(self.round).removeprefix('in ')})" if self.again else self.exhibit.title
        )

    @property
    def section(self) -> str:
        return self.exhibit.section or self.by.capitalize()


def read_exhibits(lines: Iterable[Mapping[str, Any]], notices: list[str]) -> list[Shown]:
    """The newest exhibit of every name, ordered by first appearance; a notice for each invalid one."""
    newest: dict[tuple[str, str], Mapping[str, Any]] = {}
    rounds: dict[tuple[str, str], set[object]] = {}
    for line in lines:
        key = str(line.get("by")), str(line.get("name"))
        newest[key] = line
        rounds.setdefault(key, set()).add(str(line.get("round")))
    shown: list[Shown] = []
    for (by, name), line in newest.items():
        try:
            round = int(line["round"])
            value = {key: value for key, value in line.items() if key not in ("round", "by")}
            exhibit = exhibits.read(_printable(value))
        except (KeyError, TypeError, ValueError) as error:
            notices.append(f"{EXHIBITS}: {printable(name)!r} cannot be understood: {printable(error)}.")
            continue
        figure = _figure(exhibit.name, {earlier.figure for earlier in shown})
        shown.append(Shown(figure, by if by in PARTS else "run", round, len(rounds[by, name]) > 1, exhibit))
    return shown


def _printable(value: Any) -> Any:
    """The value with control characters removed from its texts, except line breaks."""
    if isinstance(value, str):
        return "\n".join(map(printable, value.split("\n")))
    if isinstance(value, Mapping):
        return {_printable(key): _printable(item) for key, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list) else value


def _figure(name: str, taken: set[str]) -> str:
    """A unique file name for the picture."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "exhibit"
    if plain in OWN_PICTURES or plain.startswith(OWN_PREFIXES):
        plain = f"exhibit-{plain}"
    found = plain
    number = 2
    while found in taken:
        found = f"{plain}-{number}"
        number += 1
    return found
