"""One round, as observers get it and as a line of metrics.jsonl keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeAlias

VERSION = 1
"""Of the lines of metrics.jsonl: higher when a field changes its meaning or goes away; a new field leaves it."""

NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""How the logs write numbers that are not finite."""

Json: TypeAlias = "Mapping[str, Json] | Sequence[Json] | str | float | bool | None"

Metrics: TypeAlias = dict[str, float | None]
"""{metric: its mean}; None, undefined, where there is nothing to take a mean of."""


@dataclass(frozen=True)
class Outcomes:
    """How many clients of a round sent an update that was admitted, rejected, or late; failed: how many sent none."""

    admitted: int = 0
    rejected: int = 0
    failed: int = 0
    late: int = 0


@dataclass(frozen=True)
class Traffic:
    """Payload bytes of a round, from the clients and to them; in gossip both count what the peers sent."""

    up: int = 0
    down: int = 0


@dataclass(frozen=True)
class RoundRecord:
    """One round that counts.

    round: its number; exchanges before training have -1 and down.  evaluated: whether held-back samples were measured.
    metrics: None where one is undefined.  skipped: too few updates, the state was kept.  seconds: {phase: wall time}.
    aggregation: mean coefficients of honest and Byzantine clients, and the rule's single numbers.

    Gossip only, else None or empty.  messages: how many were merged.  alone: peers that had too few to merge.
    factor, variance: {weight: number}, means of the honest peers; by_weight: what another rule says of each weight, by
    its name.  peers: {metric: [N]}, last round only.  In virtual time, merged: peers that did so in this tick;
    staleness: mean age of what they merged, in ticks.
    """

    round: int
    evaluated: bool
    metrics: Mapping[str, float | None]
    clients: Outcomes
    skipped: bool
    bytes: Traffic
    seconds: Mapping[str, float]
    aggregation: Mapping[str, float | None] = field(default_factory=dict)
    messages: int | None = None
    alone: int | None = None
    factor: Mapping[str, float | None] = field(default_factory=dict)
    variance: Mapping[str, float | None] = field(default_factory=dict)
    by_weight: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    peers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    staleness: float | None = None
    merged: int | None = None

    def to_json(self) -> dict[str, Json]:
        """The line of metrics.jsonl; what is None or empty and need not be there is left out."""
        fields = {name: value for name, value in vars(self).items() if name in REQUIRED or value not in (None, {})}
        return {"version": VERSION, **fields, "clients": asdict(self.clients), "bytes": asdict(self.bytes)}

    @classmethod
    def from_json(cls, line: object) -> RoundRecord:
        """The inverse of `to_json`; fields of other names are ignored.

        Raises ValueError that names the field.
        """
        fields = _object("the line", line)
        version = fields.get("version")
        if version != VERSION:
            found = "has no version" if version is None else f"is of version {version!r}"
            raise ValueError(f"it {found}, and this fedgen reads version {VERSION}")
        if missing := [name for name in REQUIRED if name not in fields]:
            raise ValueError(f"it has no {' and no '.join(map(repr, missing))}")
        clients, traffic = _object("clients", fields["clients"]), _object("bytes", fields["bytes"])
        seconds = _numbers("seconds", fields["seconds"])
        return cls(
            round=_whole("round", fields["round"]),
            evaluated=_truth("evaluated", fields["evaluated"]),
            metrics=_numbers("metrics", fields["metrics"]),
            clients=Outcomes(**{name: _whole(f"clients.{name}", clients.get(name, 0)) for name in OUTCOMES}),
            skipped=_truth("skipped", fields["skipped"]),
            bytes=Traffic(*(_whole(f"bytes.{name}", traffic.get(name, 0)) for name in ("up", "down"))),
            seconds={name: value for name, value in seconds.items() if value is not None},
            aggregation=_numbers("aggregation", fields.get("aggregation", {})),
            messages=_count("messages", fields.get("messages")),
            alone=_count("alone", fields.get("alone")),
            factor=_numbers("factor", fields.get("factor", {})),
            variance=_numbers("variance", fields.get("variance", {})),
            by_weight=_tables("by_weight", fields.get("by_weight", {})),
            peers=_lists("peers", fields.get("peers", {})),
            staleness=_number("staleness", fields.get("staleness")),
            merged=_count("merged", fields.get("merged")),
        )


REQUIRED = ("round", "evaluated", "metrics", "clients", "skipped", "bytes", "seconds")
"""Fields that every line has."""

OUTCOMES = ("admitted", "rejected", "failed", "late")
LARGEST_WHOLE = 2**53


def strict(value: object) -> Json:
    """The value as strict JSON can carry it: a number that is not finite becomes a word that `float` reads back.

    >>> strict({"loss": math.nan, "step": -math.inf, "accuracy": None})
    {'loss': 'NaN', 'step': '-Infinity', 'accuracy': None}
    """
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{type(value).__name__} is no JSON")


def final_metrics(records: Sequence[RoundRecord]) -> Metrics:
    """The metrics of the last evaluated round; None for what it had nothing to take a mean of, such as the training
    loss of a tick in which no peer trained."""
    last = next((record for record in reversed(records) if record.evaluated), None)
    if last is None:
        return {}
    trained = [record.metrics for record in records if 0 <= record.round <= last.round]
    names = dict.fromkeys([*last.metrics, *(name for metrics in trained for name in metrics)])
    return {name: last.metrics.get(name) for name in names}


def _object(name: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _wrong(name, "an object", value)
    return value


def _truth(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST_WHOLE:
        raise _wrong(name, "a whole number", value)
    return value


def _count(name: str, value: object) -> int | None:
    return None if value is None else _whole(name, value)


def _number(name: str, value: object) -> float | None:
    """A number, also one written as a word, or None."""
    if value is None:
        return None
    if value in NOT_FINITE or (isinstance(value, int | float) and not isinstance(value, bool)):
        try:
            return float(value)
        except OverflowError:
            pass
    raise _wrong(name, "a number", value)


def _numbers(name: str, value: object) -> dict[str, float | None]:
    return {key: _number(f"{name}.{key}", item) for key, item in _object(name, value).items()}


def _tables(name: str, value: object) -> dict[str, dict[str, float | None]]:
    return {key: _numbers(f"{name}.{key}", item) for key, item in _object(name, value).items()}


def _lists(name: str, value: object) -> dict[str, list[float]]:
    lists: dict[str, list[float]] = {}
    for key, items in _object(name, value).items():
        if not isinstance(items, list):
            raise _wrong(f"{name}.{key}", "a list of numbers", items)
        numbers = [_number(f"{name}.{key}", item) for item in items]
        lists[key] = [math.nan if number is None else number for number in numbers]
    return lists


def _wrong(name: str, expected: str, value: object) -> ValueError:
    got = repr(value)
    return ValueError(f"{name} should be {expected}, and is {got if len(got) <= 60 else got[:60] + ' ...'}")
