"""Reads a run folder into one record, without torch or Ray.

Only ``resolved.toml`` is required. Other parts may be missing, in a running or killed run.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedgen.lazy import lazy_property
from fedgen.server.report.exhibits_record import Shown, read_exhibits
from fedgen.server.report.round_numbers import SINGLE, numbers_of
from fedgen.server.selection import Chosen, Directions, Points, best, chosen
from fedgen.server.store.parts import (
    ENVIRONMENT,
    EVENTS,
    EXHIBITS,
    EXPERIMENT,
    METRICS,
    NETWORK,
    PARTITION,
    RESOLVED,
    RESULT,
)
from fedgen.server.words import finite, measures, members_of, numbers, printable
from fedgen.tracking.record import RoundRecord

if TYPE_CHECKING:
    from numpy.typing import NDArray

Record = dict[str, Any]

PHASES = ("train", "aggregate", "evaluate", "checkpoint")
LARGEST = 1e30
"""Larger numbers have diverged; they are not drawn and count as missing."""


@dataclass(frozen=True)
class Partition:
    """The data partition, and the Byzantine clients.

    counts[clients, classes]: samples per class, label or range of targets (see `targets`); no columns for tokens.
    samples[clients]: number of samples.
    """

    counts: NDArray[np.int64]
    classes: list[str]
    byzantine: list[int]
    samples: NDArray[np.int64]
    targets: str = "classes"


@dataclass(frozen=True)
class NetworkFacts:
    """The graph in gossip: edges[e, 2], empty if they are too many to draw; and named properties of the graph."""

    peers: int
    edges: NDArray[np.int64]
    facts: dict[str, str]


@dataclass(frozen=True)
class RunFolder:
    """The parsed contents of a run folder; `notices` name missing or unreadable parts.

    `read` makes one. It does not follow later writes of a running run.
    """

    folder: Path
    config: Record
    config_text: str
    experiment_text: str | None
    environment: Record
    partition: Partition | None
    records: list[RoundRecord]
    events: list[Record]
    result: Record
    network: NetworkFacts | None = None
    exhibits: list[Shown] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> RunFolder:
        """Read the folder of a finished, running or killed run.

        Raises:
            ValueError: there is no readable ``resolved.toml``, or a log is damaged before its last line; the message
                names the file.
        """
        config_text = _required_text(folder / RESOLVED)
        notices: list[str] = []
        return cls(
            folder=folder,
            config=_toml(config_text, folder / RESOLVED),
            config_text=config_text,
            experiment_text=_optional_text(folder / EXPERIMENT),
            environment=_optional_object(folder / ENVIRONMENT, notices, absent="The environment was not recorded"),
            partition=_read_partition(folder / PARTITION, notices),
            records=_metric_records(folder / METRICS, notices),
            events=_json_lines(folder / EVENTS, notices),
            result=_optional_object(folder / RESULT, notices),
            network=_read_network(folder / NETWORK, notices),
            exhibits=read_exhibits(_exhibit_lines(folder / EXHIBITS, notices), notices),
            notices=notices,
        )

    def setting(self, section: str, key: str) -> Any:
        """A value of ``resolved.toml``, or None."""
        table = self.config.get(section)
        return table.get(key) if isinstance(table, dict) else None

    @property
    def name(self) -> str:
        """Name of the experiment, else of the folder."""
        return str(self.setting("experiment", "name") or self.folder.resolve().name)

    @property
    def state(self) -> str:
        """``completed``, ``degraded``, ``failed`` or ``stopped``; ``running`` without a result."""
        return str(self.result.get("state") or "running")

    @property
    def members(self) -> str:
        """``clients``, or ``peers`` in gossip."""
        return members_of(self.setting("federation", "mode"))

    @property
    def num_clients(self) -> int | None:
        """Number of clients, if it is known."""
        if self.partition is not None:
            return len(self.partition.counts)
        clients = finite(self.setting("data", "clients"))
        return None if clients is None else int(clients)

    @property
    def byzantine(self) -> set[int]:
        """Byzantine clients of any round; empty if they were not recorded."""
        drawn = (event.get("clients") for event in self.events if event.get("event") == "byzantine")
        lists = (clients for clients in drawn if isinstance(clients, list))
        redrawn = {client for clients in lists for client in clients if isinstance(client, int)}
        return redrawn | (set(self.partition.byzantine) if self.partition else set())

    @lazy_property
    def rounds(self) -> list[int]:
        """Round numbers of `records`, ascending."""
        return [record.round for record in self.records]

    def column(self, part: str, name: str) -> list[float]:
        """One number per round, such as ``clients.admitted``; 0 if a round has no number that can be drawn."""
        values = (numbers_of(record, part).get(name, 0.0) for record in self.records)
        return [value if abs(value) < LARGEST else 0.0 for value in values]

    def measured(self, part: str, names: Iterable[str]) -> dict[str, tuple[list[int], list[float]]]:
        """{name: (rounds, numbers)} under `part`, for names that any round has, from the rounds that have them."""
        series = {}
        for name in names:
            found = [(record.round, numbers_of(record, part).get(name)) for record in self.records]
            known = [(at, value) for at, value in found if value is not None and abs(value) < LARGEST]
            if known:
                series[name] = ([at for at, _ in known], [value for _, value in known])
        return series

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """(rounds, numbers) of the rounds whose record has a number of that name."""
        known = [(record.round, finite(SINGLE[name](record))) for record in self.records]
        found = [(at, value) for at, value in known if value is not None and abs(value) < LARGEST]
        return [at for at, _ in found], [value for _, value in found]

    def names(self, part: str, first: Iterable[str] = ()) -> list[str]:
        """The names under `part` in any round: first those of `first`, then others in order of appearance."""
        seen = dict.fromkeys(name for record in self.records for name in numbers_of(record, part))
        known = [name for name in first if name in seen]
        return known + [name for name in seen if name not in known]

    @lazy_property
    def phase_seconds(self) -> dict[str, list[float]]:
        """Seconds of each phase, one number per round."""
        phases = self.names("seconds", PHASES)
        return {phase: [max(0.0, value) for value in self.column("seconds", phase)] for phase in phases}

    @lazy_property
    def points(self) -> dict[str, Points]:
        """{metric: (round, value) pairs}, without values that have diverged."""
        points: dict[str, Points] = {}
        for record in self.records:
            for name, value in numbers(record.metrics).items():
                if abs(value) < LARGEST:
                    points.setdefault(name, []).append((record.round, value))
        return points

    @lazy_property
    def histories(self) -> dict[str, tuple[list[int], list[float]]]:
        """{metric: (rounds, values)}, from `points`."""
        return {
            name: ([at for at, _ in points], [value for _, value in points]) for name, points in self.points.items()
        }

    @lazy_property
    def broken(self) -> dict[str, list[int]]:
        """{metric: rounds in which it is not finite}."""
        rounds: dict[str, list[int]] = {}
        for record in self.records:
            for name, value in measures(record.metrics).items():
                if isinstance(value, str):
                    rounds.setdefault(name, []).append(record.round)
        return rounds

    @lazy_property
    def final_metrics(self) -> dict[str, float | str | None]:
        """Metrics of the result or, without a result, of the last evaluated round."""
        evaluated = [record.metrics for record in self.records if record.evaluated]
        return measures(self.result.get("metrics") or (evaluated[-1] if evaluated else None))

    @lazy_property
    def directions(self) -> Directions:
        """{metric: whether a lower value is better}, for metrics that declare it."""
        declared = self.environment.get("lower_is_better")
        known = declared.items() if isinstance(declared, dict) else ()
        return {printable(name): lower for name, lower in known if isinstance(lower, bool)}

    def best(self, name: str) -> tuple[int, float] | None:
        """(round, value) of a metric's best value; None if it declares no better direction."""
        points = self.points.get(name)
        return best(points, self.directions[name]) if points and name in self.directions else None

    def chosen(self, metric: str) -> Chosen | None:
        """A test metric at the round that the validation set chooses, if there is one."""
        return chosen(metric, self.points, self.directions)


def _required_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); is {path.parent} the folder of a run?") from error


def _optional_text(path: Path) -> str | None:
    return path.read_text("utf-8", "replace") if path.is_file() else None


def _toml(text: str, path: Path) -> Record:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error


def _optional_object(path: Path, notices: list[str], absent: str = "") -> Record:
    """A JSON object; empty, with a notice, if the file is missing or damaged."""
    if not path.is_file():
        if absent:
            notices.append(f"{absent}: {path.name} is missing.")
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        notices.append(f"{path.name} cannot be read: {error}.")
        return {}
    if not isinstance(value, dict):
        notices.append(f"{path.name} should hold one JSON object.")
        return {}
    return value


def _json_lines(path: Path, notices: list[str]) -> list[Record]:
    """The objects of a log, one per line. An incomplete last line is left out; other damage is an error."""
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines()
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                notices.append(f"The last line of {path.name} is cut short and left out.")
                break
            raise ValueError(f"{path}, line {number}, is damaged: {error}") from error
        records.append(value)
    return records


def _exhibit_lines(path: Path, notices: list[str]) -> list[Record]:
    """The objects of exhibits.jsonl; empty, with a notice, if it is damaged."""
    try:
        return _json_lines(path, notices)
    except ValueError as error:
        notices.append(f"{error}.")
        return []


def _metric_records(path: Path, notices: list[str]) -> list[RoundRecord]:
    """The rounds in order; if a round was written twice, its last line."""
    rounds: dict[int, RoundRecord] = {}
    for number, line in enumerate(_json_lines(path, notices), start=1):
        try:
            record = RoundRecord.from_json(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}, cannot be read: {error}") from error
        rounds[record.round] = record
    return [rounds[number] for number in sorted(rounds)]


def _read_partition(path: Path, notices: list[str]) -> Partition | None:
    value = _optional_object(path, notices, absent="The data partition was not recorded")
    if not value:
        return None
    try:
        counts = np.array(value.get("counts"), dtype=np.int64)
        targets = str(value.get("targets") or "classes")
        if counts.ndim != 2 or len(counts) == 0 or (counts.size == 0 and targets != "tokens") or (counts < 0).any():
            raise ValueError("counts should be one list of counts per client, all of one length")
        names = [printable(name) for name in value.get("classes") or []]
        classes = [names[index] if index < len(names) else str(index) for index in range(counts.shape[1])]
        byzantine = sorted({int(client) for client in value.get("byzantine") or []})
        samples = np.array(value.get("samples") or counts.sum(axis=1), dtype=np.int64)
        if samples.shape != (len(counts),) or samples.min() < 0:
            raise ValueError("samples should be one number per client")
    except (TypeError, ValueError, OverflowError) as error:
        notices.append(f"{path.name} cannot be understood: {error}.")
        return None
    return Partition(counts, classes, byzantine, samples, targets)


def _read_network(path: Path, notices: list[str]) -> NetworkFacts | None:
    value = _optional_object(path, notices)
    if not value:
        return None
    try:
        peers = int(value["peers"])
        edges = np.array(value["edges"], dtype=np.int64).reshape(-1, 2)
        if edges.size and not 0 <= edges.min() <= edges.max() < peers:
            raise ValueError("edges should join peers")
        facts = {printable(name): printable(fact) for name, fact in value["facts"].items()}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        notices.append(f"{path.name} cannot be understood: {type(error).__name__}: {error}.")
        return None
    return NetworkFacts(peers, edges, facts)
