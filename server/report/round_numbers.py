"""The numbers of a round by group and name, for the tables and curves of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

from fedgen.server.words import numbers
from fedgen.tracking.record import RoundRecord

GROUPS: Mapping[str, Callable[[RoundRecord], Mapping[str, float | None]]] = {
    "metrics": lambda record: record.metrics,
    "clients": lambda record: asdict(record.clients),
    "bytes": lambda record: asdict(record.bytes),
    "seconds": lambda record: record.seconds,
    "aggregation": lambda record: record.aggregation,
    "variance": lambda record: record.variance,
    "factor": lambda record: record.factor,
}
"""{group: {name: number}} of a round."""

SINGLE: Mapping[str, Callable[[RoundRecord], float | None]] = {
    "messages": lambda record: record.messages,
    "staleness": lambda record: record.staleness,
}
"""Numbers that not every round has."""


def numbers_of(record: RoundRecord, part: str) -> dict[str, float]:
    """The finite numbers of a group by printable name."""
    return numbers(GROUPS[part](record))
