"""The report's tables: a run in, rows of text out."""

from __future__ import annotations

from typing import Any

from fedgen.server import figures
from fedgen.server.refusals import refuses_clients
from fedgen.server.report_words import clipped, metric_words, plain_value
from fedgen.server.run_record import Record, RunFolder
from fedgen.server.words import OUTCOMES, finite, human_bytes, human_count, human_metric, human_seconds, split_metric


def metric_rows(run: RunFolder) -> list[tuple[str, ...]]:
    """Every metric: its final value, its best, and the round of that."""
    rows: list[tuple[str, ...]] = []
    for name in sorted(run.histories, key=lambda name: (split_metric(name)[1], split_metric(name)[0])):
        at, value = run.best(name)
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
    colours = figures.colours_for(list(run.phase_seconds), figures.PHASE_COLOURS)
    rows = [_phase_row(run, phase, colours[phase]) for phase in run.phase_seconds]
    inside = sum(row["seconds"] for row in rows)
    whole = finite(run.result.get("seconds"))
    if rows and whole is not None and whole > inside:
        rest = {"phase": "outside rounds", "colour": "grid", "seconds": whole - inside, "mean": "", "slowest": ""}
        rows.append(rest)
    shown = sum(row["seconds"] for row in rows)
    for row in rows:
        row["share"] = 100 * row["seconds"] / shown if shown > 0 else 0.0
        row["total"] = human_seconds(row["seconds"])
    return rows


def _phase_row(run: RunFolder, phase: str, colour: str) -> Record:
    values = run.phase_seconds[phase]
    slowest = max(values)
    return {
        "phase": phase,
        "colour": colour,
        "seconds": sum(values),
        "mean": human_seconds(sum(values) / len(values)),
        "slowest": f"{human_seconds(slowest)} (round {run.rounds[values.index(slowest)]})",
    }


def traffic_rows(run: RunFolder) -> list[tuple[str, ...]]:
    """Each direction: bytes in all, in the mean and in the largest round; in gossip messages too, and of one peer."""
    rows: list[tuple[str, ...]] = []
    _, messages = run.told("messages")
    peers = (run.num_clients or 0) if messages else 0
    for words, name in (("up, from clients", "up"), ("down, to clients", "down")):
        values = run.column("bytes", name)
        if values:
            rows.append((words, *map(human_bytes, _amounts(values))))
            if peers:
                rows.append((f"{name}, of a peer", *(human_bytes(amount / peers) for amount in _amounts(values))))
    if peers:
        rows.append(("messages", *map(human_count, _amounts(messages))))
        rows.append(("messages of a peer", *(f"{amount / peers:,.1f}" for amount in _amounts(messages))))
    return rows


def _amounts(values: list[float]) -> tuple[float, float, float]:
    """In all, in the mean, at most."""
    return sum(values), sum(values) / len(values), max(values)


def event_rows(run: RunFolder) -> list[tuple[str, str, str]]:
    """All events but those that the other tables tell of: round, kind, and whatever they say."""
    return [
        (str(event.get("round", "")), str(event.get("event", "event")).replace("_", " "), clipped(_event_words(event)))
        for event in run.events
        if event.get("event") not in ("admitted", "aggregated", "bound_broken")
        and not (event.get("event") in OUTCOMES and refuses_clients(event))
    ]


def _event_words(event: Record) -> str:
    rest = [f"{name} {plain_value(value)}" for name, value in event.items() if name not in ("event", "round", "reason")]
    return "; ".join([*([str(event["reason"])] if event.get("reason") else []), *rest])


def environment_rows(run: RunFolder) -> list[tuple[str, str]]:
    """Where the run ran; what the report tells elsewhere is left out."""
    elsewhere = ("identity", "data", "command", "packages")
    known = {
        name: value for name, value in run.environment.items() if name not in elsewhere and value not in (None, [])
    }
    rows = [_environment_row(name, value) for name, value in known.items()]
    packages = run.environment.get("packages")
    if isinstance(packages, dict):
        rows.append(("packages", clipped(", ".join(f"{name} {version}" for name, version in sorted(packages.items())))))
    return rows


def _environment_row(name: str, value: Any) -> tuple[str, str]:
    if name == "git" and isinstance(value, dict):
        value = f"{value.get('commit')}{' with uncommitted changes' if value.get('dirty') else ''}"
    elif name == "memory_gib":
        name, value = "memory", f"{value} GiB"
    elif isinstance(value, list) and all(isinstance(item, str) for item in value):
        value = ", ".join(value)
    return name.replace("_", " "), clipped(plain_value(value))


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
