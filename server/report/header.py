"""The header of a report: state, subtitle, large numbers, sentences, command lines."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict
from statistics import median

from fedgen.server.report.phrases import metric_words
from fedgen.server.report.run_record import RunFolder
from fedgen.server.store.parts import RESOLVED
from fedgen.server.words import (
    counted,
    finite,
    human_bytes,
    human_count,
    human_metric,
    human_seconds,
    leading_metric,
    round_name,
)

STATE_WORDS = {
    "completed": "Completed: every round was trained and no {member} failed.",
    "degraded": "Degraded: the run ended, but a round was skipped, a {member} or block failed, a number was not finite "
    "or a checkpoint fell back.",
    "failed": "Failed: the run ended before its last round.",
    "stopped": "Stopped: a person or the system ended the run; it can be resumed.",
    "running": "Running: there is no result yet. If nothing runs, the process was killed and the run can be resumed.",
}


def state_words(run: RunFolder) -> str:
    """The state of the run, and a warning if a round had more Byzantine clients than the rule tolerates."""
    words = STATE_WORDS.get(run.state, run.state).replace("{member}", run.members[:-1])
    return " ".join(filter(None, [words, bound_sentence(run)]))


def bound_sentence(run: RunFolder) -> str:
    """In how many rounds more than f clients were Byzantine; empty if in none."""
    broken = [event for event in run.events if event.get("event") == "bound_broken"]
    if not broken:
        return ""
    most = max(int(finite(event.get("byzantine")) or 0) for event in broken)
    f = broken[0].get("f")
    where = "in an inbox, " if run.members == "peers" else ""
    return (
        f"The rule's bound was broken: in {counted(len(broken), 'round')} more {run.members} were Byzantine than "
        f"aggregation.f = {f}, {where}up to {most}; the rule gives no guarantee for them."
    )


def subtitle(run: RunFolder) -> str:
    """The experiment in one line: method, mode, data, model, rule, attack."""
    settings = (
        ("training", "method"), ("federation", "mode"), ("data", "dataset"), ("model", "name"), ("aggregation", "rule"),
    )  # fmt: skip
    parts = [_choice(run.setting(section, key)) for section, key in settings]
    attack = _choice(run.setting("byzantine", "attack"))
    if attack and attack != "none" and run.setting("byzantine", "clients") not in (0, []):
        parts.append(f"under {attack}")
    return " · ".join(part for part in parts if part)


def _choice(value: object) -> str:
    """The name of a choice, which is a name or a table with a name."""
    if isinstance(value, Mapping):
        value = value.get("name")
    return value if isinstance(value, str) else ""


def headline(run: RunFolder) -> list[tuple[str, str, str]]:
    """The large numbers: (label, value, remark)."""
    shown = []
    name = leading_metric(run.final_metrics)
    if name is not None:
        found = run.chosen(name)
        remark = found.words(name) if found else ""
        shown.append((metric_words(name), human_metric(name, run.final_metrics[name]), remark))
    planned = finite(run.setting("federation", "rounds"))
    done = finite(run.result.get("rounds"))
    rounds = len([number for number in run.rounds if number >= 0]) if done is None else int(done)
    shown.append(("rounds", human_count(rounds), f"of {human_count(planned)} planned" if planned is not None else ""))
    if run.num_clients is not None:
        shown.append((run.members, human_count(run.num_clients), _members_words(run)))
    return shown + _cost_numbers(run) if run.records else shown


def _cost_numbers(run: RunFolder) -> list[tuple[str, str, str]]:
    seconds = finite(run.result.get("seconds"))
    spent = sum(sum(run.phase_seconds[phase]) for phase in run.phase_seconds)
    up, down = sum(run.column("bytes", "up")), sum(run.column("bytes", "down"))
    return [
        ("time in rounds", human_seconds(spent), "") if seconds is None else ("wall time", human_seconds(seconds), ""),
        ("traffic", human_bytes(up + down), f"{human_bytes(up)} up, {human_bytes(down)} down"),
    ]


def _members_words(run: RunFolder) -> str:
    sizes = [sum(asdict(record.clients).values()) for record in run.records]
    words = [f"{human_count(median(sizes))} in a round"] if sizes else []
    if run.byzantine:
        words.append(f"{len(run.byzantine)} Byzantine")
    return ", ".join(words)


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


def skipped_sentence(run: RunFolder) -> str:
    skipped = [record.round for record in run.records if record.skipped]
    if not skipped:
        return ""
    listed = ", ".join(map(round_name, skipped[:10])) + (" and others" if len(skipped) > 10 else "")
    return f"{counted(len(skipped), 'round was', 'rounds were')} skipped, with the state kept as it was: {listed}."


def commands(run: RunFolder) -> list[tuple[str, str]]:
    """Command lines to copy: the original one, one to run again, one to resume."""
    given = run.environment.get("command")
    rows = []
    if isinstance(given, list) and given:
        rows.append(("As it was run", shlex.join(map(str, given))))
    folder = str(run.result.get("run") or run.folder)
    # The original file would lack the changes of the command line.
    rows.append(("Again, from the start", shlex.join(["fedgen", "run", f"{folder}/{RESOLVED}"])))
    if run.state != "completed":
        rows.append(("Resume this run", shlex.join(["fedgen", "resume", folder])))
    return rows
