"""The report of a run: everything in the run folder, as one HTML file that needs nothing else.

Only ``resolved.toml`` is required. Every other part may be missing, as it is while a run goes or after one that was
killed, and the report then says what is missing.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from fedgen.server import figures
from fedgen.server.view import (
    OUTCOMES,
    STATE_MARKS,
    finite,
    human_bytes,
    human_count,
    human_metric,
    human_seconds,
    is_share,
    leading_metric,
    lower_is_better,
    numbers,
    printable,
    split_metric,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

Record = dict[str, Any]

STATE_WORDS = {
    "completed": "Completed: every round was trained and no client failed.",
    "degraded": "Degraded: the run ended, but a round was skipped, a client or block failed or a checkpoint fell back.",
    "failed": "Failed: the run ended before its last round.",
    "stopped": "Stopped: a person or the system ended the run; it can be resumed.",
    "running": "Running: there is no result yet. If nothing runs, the process was killed and the run can be resumed.",
}
OPEN_ROWS, MOST_ROWS = 12, 300
LONGEST_TEXT = 400
MOST_METRICS = 6
LARGEST = 1e30
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|inf|nan)(?![\w])")


def write_report(folder: Path) -> Path:
    """Write ``report.html`` and ``figures/*.svg`` into a run folder, finished or not, and return the report's path.

    Raises:
        ValueError: `folder` holds no readable ``resolved.toml``, or a log is damaged before its last line; the message
            names the file.
    """
    run = RunFolder.read(Path(folder))
    pictures = draw(run)
    for name, picture in pictures.items():
        write_text(run.folder / "figures" / f"{name}.svg", picture.standalone)
    target = run.folder / "report.html"
    write_text(target, render(run, pictures))
    return target


@dataclass(frozen=True)
class Picture:
    """One figure: its SVG as drawn, its caption, and its text for those who cannot see it."""

    name: str
    svg: str
    caption: str
    description: str

    @property
    def standalone(self) -> str:
        return figures.standalone(self.svg, self.description)

    @property
    def inline(self) -> str:
        return figures.inline(self.svg, self.name, self.description)


@dataclass(frozen=True)
class Partition:
    """Who holds what: ``counts[clients, classes]`` samples, and who lies."""

    counts: NDArray[np.int64]
    classes: list[str]
    byzantine: list[int]


@dataclass(frozen=True)
class RunFolder:
    """What a run folder holds, parsed; `notices` names the parts that are missing or unreadable."""

    folder: Path
    config: Record
    config_text: str
    experiment_text: str | None
    environment: Record
    partition: Partition | None
    records: list[Record]
    events: list[Record]
    result: Record
    notices: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> RunFolder:
        config_text = required_text(folder / "resolved.toml")
        try:
            config = tomllib.loads(config_text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{folder / 'resolved.toml'} is not valid TOML: {error}") from error
        notices: list[str] = []
        experiment = folder / "experiment.toml"
        return cls(
            folder=folder,
            config=config,
            config_text=config_text,
            experiment_text=experiment.read_text("utf-8", "replace") if experiment.is_file() else None,
            environment=optional_object(
                folder / "environment.json", notices, absent="The environment was not recorded"
            ),
            partition=read_partition(folder / "partition.json", notices),
            records=metric_records(folder / "metrics.jsonl", notices),
            events=json_lines(folder / "events.jsonl", notices),
            result=optional_object(folder / "result.json", notices),
            notices=notices,
        )

    def setting(self, section: str, key: str) -> Any:
        table = self.config.get(section)
        return table.get(key) if isinstance(table, dict) else None

    @property
    def name(self) -> str:
        return str(self.setting("experiment", "name") or self.folder.resolve().name)

    @property
    def state(self) -> str:
        return str(self.result.get("state") or "running")

    @property
    def num_clients(self) -> int | None:
        if self.partition is not None:
            return len(self.partition.counts)
        clients = finite(self.setting("data", "clients"))
        return None if clients is None else int(clients)

    @cached_property
    def rounds(self) -> list[int]:
        return [record["round"] for record in self.records]

    def column(self, part: str, name: str) -> list[float]:
        """One number a round, such as ``clients.admitted``; 0 where a round has none that can be drawn."""
        values = (numbers(record.get(part)).get(name, 0.0) for record in self.records)
        return [value if abs(value) < LARGEST else 0.0 for value in values]

    def names(self, part: str, first: Iterable[str] = ()) -> list[str]:
        """The names under `part` in any round: those of `first` in that order, then the others as they came."""
        seen = dict.fromkeys(name for record in self.records for name in numbers(record.get(part)))
        known = [name for name in first if name in seen]
        return known + [name for name in seen if name not in known]

    @cached_property
    def histories(self) -> dict[str, tuple[list[int], list[float]]]:
        """Every metric's rounds and values, where it was evaluated and did not diverge beyond what can be drawn."""
        histories: dict[str, tuple[list[int], list[float]]] = {}
        for record in self.records:
            for name, value in numbers(record.get("metrics")).items():
                if abs(value) < LARGEST:
                    rounds, values = histories.setdefault(name, ([], []))
                    rounds.append(record["round"])
                    values.append(value)
        return histories

    @cached_property
    def final_metrics(self) -> dict[str, float]:
        """The result's values, or while there is none the last ones seen."""
        return numbers(self.result.get("metrics")) or {name: values[-1] for name, (_, values) in self.histories.items()}


def required_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); is {path.parent} the folder of a run?") from error


def optional_object(path: Path, notices: list[str], absent: str = "") -> Record:
    """A JSON object, or nothing and a notice where the file is missing or damaged."""
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


def json_lines(path: Path, notices: list[str]) -> list[Record]:
    """The objects of a log, one a line. A last line cut short by a kill is left out; damage before it is an error."""
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


def metric_records(path: Path, notices: list[str]) -> list[Record]:
    """The rounds in order, the last line of each where a round was written twice."""
    rounds: dict[int, Record] = {}
    for number, record in enumerate(json_lines(path, notices), start=1):
        if not isinstance(record.get("round"), int) or abs(record["round"]) > 2**53:
            raise ValueError(f"{path}, line {number}, is damaged: it has no round number")
        rounds[record["round"]] = record
    return [rounds[number] for number in sorted(rounds)]


def read_partition(path: Path, notices: list[str]) -> Partition | None:
    value = optional_object(path, notices, absent="Who holds what was not recorded")
    if not value:
        return None
    try:
        counts = np.array(value.get("counts"), dtype=np.int64)
        if counts.ndim != 2 or counts.size == 0 or counts.min() < 0:
            raise ValueError("counts should be one list of counts a client, all of one length")
        names = [printable(name) for name in value.get("classes") or []]
        classes = [names[index] if index < len(names) else str(index) for index in range(counts.shape[1])]
        byzantine = sorted({int(client) for client in value.get("byzantine") or []})
    except (TypeError, ValueError, OverflowError) as error:
        notices.append(f"{path.name} cannot be understood: {error}.")
        return None
    return Partition(counts, classes, byzantine)


def draw(run: RunFolder) -> dict[str, Picture]:
    """All pictures that the folder has numbers for, by name, in the order of the report."""
    pictures = metric_pictures(run)
    if run.records:
        pictures += [clients_picture(run), *time_pictures(run), *traffic_pictures(run)]
    if run.partition is not None:
        pictures.append(partition_picture(run.partition))
    return {picture.name: picture for picture in pictures}


def metric_pictures(run: RunFolder) -> list[Picture]:
    by_base: dict[str, dict[str, figures.Series]] = defaultdict(dict)
    for name, history in run.histories.items():
        split, base = split_metric(name)
        by_base[base][split] = history
    order = sorted(by_base, key=lambda base: (base != "accuracy", base != "loss", base))
    pictures = []
    for index, base in enumerate(order[:MOST_METRICS]):
        series: dict[str, figures.Series] = {
            split: by_base[base][split] for split in ("test", "validation", "train") if split in by_base[base]
        }
        words = printable(base).replace("_", " ")
        svg = figures.curves(series, f"{words} (%)" if is_share(base) else words, percent=is_share(base))
        file = (
            base if base in ("accuracy", "loss") else f"metric-{index}-{re.sub(r'[^a-z0-9]+', '-', base.lower())[:40]}"
        )
        pictures.append(Picture(file, svg, words.capitalize(), f"{words} over the rounds: {', '.join(series)}"))
    return pictures


def clients_picture(run: RunFolder) -> Picture:
    seen = run.names("clients", OUTCOMES)
    kinds = [name for name in seen if name == "admitted" or any(run.column("clients", name))] or ["admitted"]
    parts = {name: run.column("clients", name) for name in kinds}
    svg = figures.stacked(run.rounds, parts, "clients", figures.OUTCOME_COLOURS)
    return Picture(
        "clients", svg, "Clients in each round" + steps_words(run), f"clients in each round: {', '.join(kinds)}"
    )


def time_pictures(run: RunFolder) -> list[Picture]:
    phases = run.names("seconds", figures.PHASE_COLOURS)
    if not phases:
        return []
    parts = {name: [max(0.0, value) for value in run.column("seconds", name)] for name in phases}
    svg = figures.stacked(run.rounds, parts, "seconds", figures.PHASE_COLOURS)
    return [
        Picture(
            "time",
            svg,
            "Seconds in each round" + steps_words(run),
            f"seconds in each round by phase: {', '.join(phases)}",
        )
    ]


def traffic_pictures(run: RunFolder) -> list[Picture]:
    up, down = run.column("bytes", "up"), run.column("bytes", "down")
    if not any(up) and not any(down):
        return []
    svg = figures.traffic(run.rounds, up, down)
    return [Picture("traffic", svg, "Bytes in each round" + steps_words(run), "bytes up and down in each round")]


def steps_words(run: RunFolder) -> str:
    """What a step of a per-round picture is, where it is not one round."""
    rounds = -(-len(run.records) // figures.MAX_STEPS)
    return f" (each step the mean of {rounds})" if rounds > 1 else ""


def partition_picture(partition: Partition) -> Picture:
    svg = figures.partition(partition.counts, partition.classes, partition.byzantine)
    return Picture("partition", svg, "Who holds what", partition_sentence(partition))


def partition_sentence(partition: Partition) -> str:
    counts = partition.counts
    samples, held = counts.sum(axis=1), (counts > 0).sum(axis=1)
    return (
        f"{counted(len(counts), 'client')} with {human_count(samples.sum())} samples in all: "
        f"{spread(samples.tolist())} samples each, "
        f"from {spread(held.tolist())} of {counted(counts.shape[1], 'class', 'classes')}."
    )


def partition_key(partition: Partition) -> str:
    """How to read the picture."""
    clients = len(partition.counts)
    shares = "below, the share of each class in them, the fuller the colour the larger."
    if clients <= figures.MAX_BAR_CLIENTS and len(partition.classes) <= figures.MAX_BAR_CLASSES:
        text = "Each bar is one client, its colours the classes of its samples."
    elif figures.partition_is_sorted(clients):
        group = f"about {round(clients / figures.MAX_COLUMNS)} clients, sorted by their main class"
        text = f"Each column stands for {group}: above, their mean number of samples; {shares}"
    else:
        text = f"Each column is one client: above, its number of samples; {shares}"
    if partition.byzantine and not figures.partition_is_sorted(clients):
        text += " Triangles mark Byzantine clients."
    return text


def spread(values: Sequence[float]) -> str:
    low, middle, high = min(values), median(values), max(values)
    if low == high:
        return f"{low:,.0f}"
    return f"{low:,.0f} to {high:,.0f} (median {middle:,.6g})"


def counted(count: int, one: str, many: str = "") -> str:
    return f"{human_count(count)} {one if count == 1 else many or one + 's'}"


def subtitle(run: RunFolder) -> str:
    """The experiment in one line: method, mode, data, model, rule, attack."""
    parts = [
        choice(run.setting("training", "method")),
        choice(run.setting("federation", "mode")),
        choice(run.setting("data", "dataset")),
        choice(run.setting("model", "name")),
        choice(run.setting("aggregation", "rule")),
    ]
    attack = choice(run.setting("byzantine", "attack"))
    if attack and attack != "none" and run.setting("byzantine", "clients") not in (0, []):
        parts.append(f"under {attack}")
    return " · ".join(part for part in parts if part)


def choice(value: object) -> str:
    """The name of a choice, which is a name or a table with one."""
    if isinstance(value, Mapping):
        value = value.get("name")
    return value if isinstance(value, str) else ""


def headline(run: RunFolder) -> list[tuple[str, str, str]]:
    """The large numbers: label, value, and a remark below."""
    shown = []
    name = leading_metric(run.final_metrics)
    if name is not None:
        shown.append((metric_words(name), human_metric(name, run.final_metrics[name]), best_words(run, name)))
    planned = finite(run.setting("federation", "rounds"))
    done = finite(run.result.get("rounds"))
    rounds = len([number for number in run.rounds if number >= 0]) if done is None else int(done)
    shown.append(("rounds", human_count(rounds), f"of {human_count(planned)} planned" if planned is not None else ""))
    if run.num_clients is not None:
        shown.append(("clients", human_count(run.num_clients), clients_words(run)))
    return shown + cost_numbers(run) if run.records else shown


def cost_numbers(run: RunFolder) -> list[tuple[str, str, str]]:
    seconds = finite(run.result.get("seconds"))
    spent = sum(sum(numbers(record.get("seconds")).values()) for record in run.records)
    up, down = sum(run.column("bytes", "up")), sum(run.column("bytes", "down"))
    return [
        (
            "wall time" if seconds is not None else "time in rounds",
            human_seconds(spent if seconds is None else seconds),
            "",
        ),
        ("traffic", human_bytes(up + down), f"{human_bytes(up)} up, {human_bytes(down)} down"),
    ]


def metric_words(name: str) -> str:
    split, base = split_metric(name)
    return f"{split} {base.replace('_', ' ')}"


def best_words(run: RunFolder, name: str) -> str:
    if name not in run.histories:
        return ""
    at, value = best(run, name)
    return f"best {human_metric(name, value)} in round {at}"


def best(run: RunFolder, name: str) -> tuple[int, float]:
    sign = 1 if lower_is_better(name) else -1
    return min(zip(*run.histories[name], strict=True), key=lambda point: sign * point[1])


def clients_words(run: RunFolder) -> str:
    sizes = [sum(numbers(record.get("clients")).values()) for record in run.records]
    words = [f"{human_count(median(sizes))} in a round"] if sizes else []
    if run.partition is not None and run.partition.byzantine:
        words.append(f"{len(run.partition.byzantine)} Byzantine")
    return ", ".join(words)


def metric_rows(run: RunFolder) -> list[tuple[str, ...]]:
    """Every metric: its final value, its best, and the round of that."""
    rows: list[tuple[str, ...]] = []
    for name in sorted(run.histories, key=lambda name: (split_metric(name)[1], split_metric(name)[0])):
        at, value = best(run, name)
        rows.append(
            (metric_words(name), human_metric(name, run.histories[name][1][-1]), human_metric(name, value), str(at))
        )
    return rows


def client_rows(run: RunFolder) -> list[tuple[str, ...]]:
    """How the clients asked came out: in all, as a share, and in how many rounds."""
    totals = {name: run.column("clients", name) for name in run.names("clients", OUTCOMES)}
    asked = sum(sum(values) for values in totals.values())
    return [
        (
            name,
            human_count(sum(values)),
            f"{100 * sum(values) / asked:.1f} %" if asked else "",
            human_count(sum(value > 0 for value in values)),
        )
        for name, values in totals.items()
    ]


def time_rows(run: RunFolder) -> list[Record]:
    """Seconds of each phase: in all, as a share, in the mean and in the slowest round."""
    phases = run.names("seconds", figures.PHASE_COLOURS)
    columns = {phase: [max(0.0, value) for value in run.column("seconds", phase)] for phase in phases}
    totals = {phase: sum(values) for phase, values in columns.items()}
    colours = figures.colours_for(phases, figures.PHASE_COLOURS)
    rows: list[Record] = [
        {
            "phase": phase,
            "colour": colours[phase],
            "total": totals[phase],
            "mean": human_seconds(totals[phase] / len(run.records)),
            "slowest": f"{human_seconds(max(values))} (round {run.rounds[values.index(max(values))]})",
        }
        for phase, values in columns.items()
    ]
    seconds = finite(run.result.get("seconds"))
    if rows and seconds is not None and seconds > sum(totals.values()):
        rest = seconds - sum(totals.values())
        rows.append({"phase": "outside rounds", "colour": "grid", "total": rest, "mean": "", "slowest": ""})
    whole = sum(row["total"] for row in rows)
    for row in rows:
        row["share"] = 100 * row["total"] / whole if whole > 0 else 0.0
        row["total"] = human_seconds(row["total"])
    return rows


def traffic_rows(run: RunFolder) -> list[tuple[str, ...]]:
    """Each direction: bytes in all, in the mean and in the largest round."""
    rows: list[tuple[str, ...]] = []
    for words, name in (("up, from clients", "up"), ("down, to clients", "down")):
        values = run.column("bytes", name)
        if values:
            rows.append(
                (words, human_bytes(sum(values)), human_bytes(sum(values) / len(values)), human_bytes(max(values)))
            )
    return rows


@dataclass
class Refusals:
    """Rejections or failures that belong together: how many, whose, and from which round to which."""

    count: int = 0
    clients: set[object] = field(default_factory=set)
    rounds: list[int] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, event: Record) -> None:
        self.count += 1
        self.clients.add(event.get("client") if isinstance(event.get("client"), int) else None)
        if isinstance(event.get("round"), int):
            self.rounds.append(event["round"])
        self.reasons[str(event.get("reason") or "no reason given")] += 1

    @property
    def when(self) -> str:
        return (
            f"{min(self.rounds)} to {max(self.rounds)}"
            if len(set(self.rounds)) > 1
            else "".join(map(str, self.rounds[:1]))
        )

    @property
    def words(self) -> str:
        """The common text of the reasons, with the range of each number that differs."""
        return clipped(common_text(list(self.reasons)))


def grouped(events: Iterable[Record], key: Callable[[Record], object]) -> dict[Any, Refusals]:
    """Refusals by `key`, the most frequent first."""
    groups: dict[Any, Refusals] = defaultdict(Refusals)
    for event in events:
        groups[key(event)].add(event)
    return dict(sorted(groups.items(), key=lambda item: (-item[1].count, str(item[0]))))


def reason_key(event: Record) -> tuple[str, str]:
    """Kind of event and its reason without the numbers, in which reasons of one kind differ."""
    return str(event["event"]), NUMBER.sub("#", str(event.get("reason") or "no reason given"))


def common_text(reasons: Sequence[str]) -> str:
    """Texts that differ in numbers only, as one: ``norm 9 above 5``, ``norm 7 above 5`` -> ``norm 7 to 9 above 5``."""
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


def refused(events: Iterable[Record]) -> Iterable[Record]:
    """The rejections and failures, one for each client where an event names several."""
    for event in events:
        if event.get("event") in ("rejected", "failed"):
            several = event.get("clients")
            yield from ({**event, "client": client} for client in several) if isinstance(several, list) else (event,)


def refusal_tables(run: RunFolder) -> Record:
    """Who was rejected or failed and why, by reason and by client, and a sentence about it."""
    events = list(refused(run.events))
    byzantine = set(run.partition.byzantine) if run.partition else set()
    reasons = [
        (kind, refusals.words, human_count(refusals.count), client_list(refusals.clients), refusals.when)
        for (kind, _), refusals in grouped(events, reason_key).items()
    ]
    clients = [
        (client, client in byzantine, human_count(refusals.count), clipped(main_reasons(refusals)), refusals.when)
        for client, refusals in grouped(
            events, lambda event: event.get("client") if isinstance(event.get("client"), int) else "not named"
        ).items()
    ]
    return {"sentence": refusal_sentence(events, byzantine), "reasons": reasons, "clients": clients}


def refusal_sentence(events: Sequence[Record], byzantine: set[int]) -> str:
    if not events:
        return "No update was rejected and no client failed."
    kinds = Counter(str(event["event"]) for event in events)
    words = []
    if kinds["rejected"]:
        words.append(f"{counted(kinds['rejected'], 'update was', 'updates were')} rejected")
    if kinds["failed"]:
        words.append(f"{counted(kinds['failed'], 'client run')} failed")
    clients = {client for event in events if isinstance(client := event.get("client"), int)}
    text = f"{' and '.join(words)}, of {counted(len(clients), 'client')}"
    if byzantine:
        liars, honest = len(clients & byzantine), len(clients - byzantine)
        text += f"; {liars} of the {counted(len(byzantine), 'Byzantine client')} and {honest} honest are among them"
    return text + "."


def main_reasons(refusals: Refusals) -> str:
    kinds: dict[str, list[str]] = defaultdict(list)
    for reason in refusals.reasons:
        kinds[NUMBER.sub("#", reason)].append(reason)
    return "; ".join(common_text(reasons) for reasons in kinds.values())


def client_list(clients: set[object], most: int = 8) -> str:
    known = sorted(client for client in clients if isinstance(client, int))
    text = ", ".join(map(str, known[:most]))
    return text + (f" and {len(known) - most:,} more" if len(known) > most else "")


def event_rows(run: RunFolder) -> list[tuple[str, str, str]]:
    """All events besides admissions and refusals: round, kind, and whatever they say."""
    rows = []
    for event in run.events:
        kind = str(event.get("event", "event"))
        if kind not in ("admitted", "rejected", "failed"):
            rows.append((str(event.get("round", "")), kind.replace("_", " "), clipped(event_words(event))))
    return rows


def event_words(event: Record) -> str:
    rest = [f"{name} {plain_value(value)}" for name, value in event.items() if name not in ("event", "round", "reason")]
    return "; ".join([*([str(event["reason"])] if event.get("reason") else []), *rest])


def plain_value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def clipped(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …"


def environment_rows(run: RunFolder) -> list[tuple[str, str]]:
    known = run.environment
    rows = []
    for name, value in known.items():
        if name in ("identity", "data", "command", "packages") or value is None:
            continue
        if name == "git" and isinstance(value, dict):
            value = f"{value.get('commit')}{' with uncommitted changes' if value.get('dirty') else ''}"
        elif name == "memory_gib":
            name, value = "memory", f"{value} GiB"
        rows.append((name.replace("_", " "), clipped(plain_value(value))))
    packages = known.get("packages")
    if isinstance(packages, dict):
        rows.append(("packages", clipped(", ".join(f"{name} {version}" for name, version in sorted(packages.items())))))
    return rows


def hash_rows(run: RunFolder) -> list[tuple[str, str]]:
    data = run.environment.get("data")
    data = data if isinstance(data, dict) else {}
    rows = (
        ("final state", run.result.get("sha256")),
        ("client state", run.result.get("client_sha256")),
        ("data", data.get("sha256")),
        ("experiment identity", run.environment.get("identity")),
    )
    return [(name, str(value)) for name, value in rows if value]


def data_sentence(run: RunFolder) -> str:
    data = run.environment.get("data")
    if not isinstance(data, dict):
        return ""
    sizes = [
        f"{human_count(size)} {split}"
        for split in ("training", "validation", "test")
        if (size := finite(data.get(split))) is not None
    ]
    return f"Data set {data.get('dataset', 'unknown')}" + (f": {', '.join(sizes)} samples." if sizes else ".")


def commands(run: RunFolder) -> list[tuple[str, str]]:
    """Command lines to copy: what was run, how to run it again, how to go on."""
    given = run.environment.get("command")
    rows = []
    if isinstance(given, list) and given:
        rows.append(("As it was run", shlex.join(map(str, given))))
    folder = str(run.result.get("run") or run.folder)
    rows.append(("Again, from the start", shlex.join(["fedgen", "run", f"{folder}/experiment.toml"])))
    if run.state != "completed":
        rows.append(("Go on with this run", shlex.join(["fedgen", "resume", folder])))
    return rows


def skipped_sentence(run: RunFolder) -> str:
    skipped = [record["round"] for record in run.records if record.get("skipped")]
    if not skipped:
        return ""
    listed = ", ".join(map(str, skipped[:10])) + (" and others" if len(skipped) > 10 else "")
    return f"{counted(len(skipped), 'round was', 'rounds were')} skipped, with the state kept as it was: {listed}."


def render(run: RunFolder, pictures: Mapping[str, Picture]) -> str:
    """The whole page; every text is escaped by the template, the pictures alone go in as they are."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    fixed = ("clients", "time", "traffic", "partition")
    return environment.get_template("report.html.jinja").render(
        style=Markup(loader.get_source(environment, "report.css")[0]),
        svg={name: Markup(picture.inline) for name, picture in pictures.items()},
        pictures=pictures,
        metric_names=[name for name in pictures if name not in fixed],
        name=run.name,
        subtitle=subtitle(run),
        state=run.state if run.state in STATE_WORDS else "running",
        state_mark=STATE_MARKS.get(run.state, "…"),
        state_words=STATE_WORDS.get(run.state, run.state),
        message=clipped(str(run.result.get("message") or "")),
        notices=run.notices,
        headline=headline(run),
        metric_rows=metric_rows(run),
        skipped=skipped_sentence(run),
        partition_sentence=partition_sentence(run.partition) if run.partition else "",
        partition_key=partition_key(run.partition) if run.partition else "",
        client_rows=client_rows(run),
        time_rows=time_rows(run),
        traffic_rows=traffic_rows(run),
        refusals=refusal_tables(run),
        events=event_rows(run),
        config_text=run.config_text,
        experiment_text=run.experiment_text,
        environment=environment_rows(run),
        data_sentence=data_sentence(run),
        hashes=hash_rows(run),
        commands=commands(run),
        open_rows=OPEN_ROWS,
        most_rows=MOST_ROWS,
    )


def write_text(path: Path, text: str) -> None:
    """Write in one step, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, "utf-8", errors="replace")
    part.replace(path)
