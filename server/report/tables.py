"""The report's tables as rows of text."""

from __future__ import annotations

from fedgen.server.report import figures
from fedgen.server.report.phrases import clipped, metric_words, plain_value
from fedgen.server.report.refusals import refuses_clients
from fedgen.server.report.run_record import Record, RunFolder
from fedgen.server.words import (
    OUTCOMES,
    counted,
    finite,
    human_bytes,
    human_count,
    human_metric,
    human_seconds,
    in_round,
    round_name,
    split_metric,
)


def metric_rows(run: RunFolder) -> list[tuple[str, ...]]:
    """Per metric: its final value, its value at the round that the validation set chose, and its best value.

    The best value is left out for test metrics and for metrics without a declared direction.
    """
    rows: list[tuple[str, ...]] = []
    for name in sorted(_measured(run), key=lambda name: (split_metric(name)[1], split_metric(name)[0])):
        final = human_metric(name, run.final_metrics[name]) if name in run.final_metrics else "not evaluated"
        found = run.chosen(name)
        top = None if split_metric(name)[0] == "test" else run.best(name)
        rows.append(
            (
                metric_words(name),
                final,
                f"{human_metric(name, found.value)} {in_round(found.round)}" if found else "",
                f"{human_metric(name, top[1])} {in_round(top[0])}" if top else "",
            )
        )
    return rows


def _measured(run: RunFolder) -> set[str]:
    return {*run.points, *run.broken, *run.final_metrics}


def chosen_words(run: RunFolder) -> str:
    """The metrics by which the validation set chooses a round, for a column head; may be empty."""
    found = {chosen.by for name in run.points if (chosen := run.chosen(name))}
    return f"chosen by {' or '.join(sorted(metric_words(name) for name in found))}" if found else ""


def broken_sentence(run: RunFolder) -> str:
    """The metrics that were not finite, with their rounds."""
    described = [
        f"{metric_words(name)} {in_round(rounds[0])}"
        + (f" and {counted(len(rounds) - 1, 'later one', 'later ones')}" if len(rounds) > 1 else "")
        for name, rounds in run.broken.items()
    ]
    return f"Not finite: {', '.join(described)}." if described else ""


def client_rows(run: RunFolder) -> list[tuple[str, ...]]:
    """Per outcome of clients: total, share, number of rounds."""
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
    """Seconds per phase: total, share, mean round, slowest round."""
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
        "slowest": f"{human_seconds(slowest)} ({round_name(run.rounds[values.index(slowest)])})",
    }


def traffic_rows(run: RunFolder) -> list[tuple[str, ...]]:
    """Bytes up and down: total, mean round, largest round; in gossip also messages, and amounts per peer."""
    rows: list[tuple[str, ...]] = []
    _, messages = run.series("messages")
    peers = (run.num_clients or 0) if messages else 0
    for words, name in ((f"up, from {run.members}", "up"), (f"down, to {run.members}", "down")):
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
    """Total, mean, maximum."""
    return sum(values), sum(values) / len(values), max(values)


def event_rows(run: RunFolder) -> list[tuple[str, str, str]]:
    """Events that no other table shows: round, kind, details.

    Of `bound_broken` events, which may occur in every round, only the first is shown.
    """
    rows = []
    bounds = [event for event in run.events if event.get("event") == "bound_broken"]
    for event in run.events:
        kind = event.get("event", "event")
        if kind in ("admitted", "aggregated", "backend") or (kind in OUTCOMES and refuses_clients(event)):
            continue
        words = _event_words(event)
        if kind == "bound_broken":
            if event is not bounds[0]:
                continue
            words += f", and in {counted(len(bounds) - 1, 'more round')}" if len(bounds) > 1 else ""
        rows.append((_round_cell(event.get("round")), str(kind).replace("_", " "), clipped(words)))
    return rows


def _round_cell(round: object) -> str:
    if round is None:
        return ""
    return round_name(round) if isinstance(round, int) and round < 0 else str(round)


def _event_words(event: Record) -> str:
    rest = [f"{name} {plain_value(value)}" for name, value in event.items() if name not in ("event", "round", "reason")]
    return "; ".join([*([str(event["reason"])] if event.get("reason") else []), *rest])


def environment_rows(run: RunFolder) -> list[tuple[str, str]]:
    """The environment of the run, without what other parts of the report show."""
    elsewhere = ("identity", "data", "command", "packages", "lower_is_better", "code")
    known = {
        name: value for name, value in run.environment.items() if name not in elsewhere and value not in (None, [])
    }
    rows = [_environment_row(name, value) for name, value in known.items()]
    packages = run.environment.get("packages")
    if isinstance(packages, dict):
        rows.append(("packages", clipped(", ".join(f"{name} {version}" for name, version in sorted(packages.items())))))
    return rows


def _environment_row(name: str, value: object) -> tuple[str, str]:
    if name == "git" and isinstance(value, dict):
        value = f"{value.get('commit')}{' with uncommitted changes' if value.get('dirty') else ''}"
    elif name == "memory_gib":
        name = "memory"
        value = f"{value} GiB"
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
