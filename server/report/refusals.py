"""Groups rejections and failures by reason or by client.

Reasons that differ only in their numbers are grouped: ``norm 9 above 5`` and ``norm 7 above 5`` become
``norm 7 to 9 above 5``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import TypeVar

from fedgen.server.report.run_record import Record

Key = TypeVar("Key")

NUMBER = re.compile(r"(?<![\w.])[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|inf|nan)(?![\w])")
KINDS = {"rejected": "rejected", "failed": "failed", "block_failed": "failed"}
"""Events about rejected or failed clients, with their outcome."""


@dataclass
class Refusals:
    """A group of rejections or failures: number, clients, reasons, rounds."""

    count: int = 0
    clients: set[int] = field(default_factory=set)
    rounds: list[int] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, event: Record) -> None:
        self.count += 1
        if (client := _client(event)) is not None:
            self.clients.add(client)
        if isinstance(event.get("round"), int):
            self.rounds.append(event["round"])
        self.reasons[_reason(event)] += 1

    @property
    def when(self) -> str:
        """The range of rounds: ``3``, ``3 to 9``, or empty."""
        first = min(self.rounds, default=None)
        last = max(self.rounds, default=None)
        named = ["before training" if end < 0 else str(end) for end in (first, last) if end is not None]
        return " to ".join(dict.fromkeys(named))

    @property
    def words(self) -> str:
        """The reasons, one text for each kind."""
        kinds: dict[str, list[str]] = defaultdict(list)
        for reason in self.reasons:
            kinds[_kind(reason)].append(reason)
        return "; ".join(common_text(reasons) for reasons in kinds.values())


def refused(events: Iterable[Record]) -> list[Record]:
    """The rejections and failures of clients among `events`, one per client.

    Their ``event`` is ``rejected`` or ``failed``. Failures of the whole run are left out.
    """
    found: list[Record] = []
    for event in filter(refuses_clients, events):
        several = event.get("clients")
        clients = several if isinstance(several, list) else [event.get("client")]
        found += [{**event, "event": KINDS[event["event"]], "client": client} for client in clients]
    return found


def refuses_clients(event: Record) -> bool:
    """Whether an event is about rejected or failed clients, and not about a failed run."""
    return str(event.get("event")) in KINDS and ("client" in event or "clients" in event)


def by_reason(refused: Iterable[Record]) -> dict[tuple[str, str], Refusals]:
    """Grouped by outcome and kind of reason, the most frequent first."""
    return _grouped(refused, lambda event: (str(event["event"]), _kind(_reason(event))))


def by_client(refused: Iterable[Record]) -> dict[int | None, Refusals]:
    """Grouped by client, the most frequent first, ties by number; None for unknown clients."""
    known_first = sorted(refused, key=lambda event: inf if (client := _client(event)) is None else client)
    return _grouped(known_first, _client)


def common_text(reasons: Sequence[str]) -> str:
    """One text for texts that differ in numbers: ``norm 9 above 5``, ``norm 7 above 5`` -> ``norm 7 to 9 above 5``."""
    found = [NUMBER.findall(reason) for reason in reasons]
    pieces = NUMBER.split(reasons[0])
    text = pieces[0]
    for index, piece in enumerate(pieces[1:]):
        values = sorted(
            {row[index] for row in found if index < len(row)},
            key=lambda value: (float(value) != float(value), float(value)),
        )
        text += (values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}") + piece
    return text


def _grouped(events: Iterable[Record], key: Callable[[Record], Key]) -> dict[Key, Refusals]:
    """Grouped by `key`, the most frequent first, ties in order of appearance."""
    groups: dict[Key, Refusals] = defaultdict(Refusals)
    for event in events:
        groups[key(event)].add(event)
    return dict(sorted(groups.items(), key=lambda item: -item[1].count))


def _client(event: Record) -> int | None:
    client = event.get("client")
    return client if isinstance(client, int) else None


def _reason(event: Record) -> str:
    return str(event.get("reason") or "no reason given")


def _kind(reason: str) -> str:
    """A reason without its numbers."""
    return NUMBER.sub("#", reason)
