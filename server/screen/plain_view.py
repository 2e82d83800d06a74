"""Plain lines for a log: one per round, at most one per second."""

from __future__ import annotations

import time
from typing import Self, TextIO

from fedgen.server.screen.tally import Clock, Tally
from fedgen.server.words import (
    OUTCOMES,
    STATE_MARKS,
    counted,
    human_bytes,
    human_metric,
    human_seconds,
    leading_metric,
    measures,
    printable,
    round_name,
)
from fedgen.tracking.observer import Observer, Plan
from fedgen.tracking.record import RoundRecord
from fedgen.tracking.result import Result


class PlainView(Observer):
    """One line per round, at most one per second, always the first and the last; no escape codes."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic, every_s: float = 1.0) -> None:
        self.stream, self.every_s = stream, every_s
        self.tally = Tally(clock)
        self._said_at: float | None = None
        self._unsaid: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._release()

    def start(self, plan: Plan) -> None:
        self.tally.begin(plan)
        self._said_at = self._unsaid = None
        resumed = f", from {round_name(plan.first_round)}" if plan.first_round > 0 else ""
        self._say(f"{plan.title}: {counted(plan.rounds, 'round')}{resumed}, folder {plan.folder}")

    def doing(self, what: str) -> None:
        self.tally.wait_for(what)
        if what:
            self._say(f"{what} ...")

    def round(self, record: RoundRecord) -> None:
        self.tally.add(record)
        self._unsaid = plain_line(self.tally, skipped=record.skipped)
        now = self.tally.clock()
        if self._said_at is None or now - self._said_at >= self.every_s or self.tally.done >= self.tally.rounds:
            self._said_at = now
            self._release()

    def note(self, message: str) -> None:
        self._say(f"note: {message}")

    def end(self, result: Result) -> None:
        self._release()
        self._say(end_line(result))

    def _release(self) -> None:
        line = self._unsaid
        self._unsaid = None
        if line is not None:
            self._say(line)

    def _say(self, line: str) -> None:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        text = printable(line).encode(encoding, "replace").decode(encoding)
        print(text, file=self.stream, flush=True)


def plain_line(tally: Tally, *, skipped: bool = False) -> str:
    """One round as one line of a log, in ASCII except for the metric's name."""
    parts = [tally.progress]
    if skipped:
        parts.append("SKIPPED")
    if (name := tally.metric) is not None:
        found = tally.chosen(name)
        parts.append(f"{name} {human_metric(name, tally.latest[name])}" + (f" ({found.words(name)})" if found else ""))
    counts = [
        f"{'ok' if outcome == 'admitted' else outcome} {tally.last[outcome]}"
        for outcome in OUTCOMES
        if outcome == "admitted" or tally.last[outcome] or tally.total[outcome]
    ]
    parts.append(", ".join(counts))
    parts.append(f"up {human_bytes(tally.up)}, down {human_bytes(tally.down)}")
    if (pace := tally.seconds_a_round) is not None:
        parts.append(f"{human_seconds(pace)} a round")
    if (eta := tally.eta_s) is not None and tally.done < tally.rounds:
        parts.append(f"{human_seconds(eta)} left")
    return " | ".join(parts)


def end_line(result: Result) -> str:
    """State, metric and message of the ended run, with the path of its report or folder."""
    metrics = measures(result.metrics)
    name = leading_metric(metrics)
    after = counted(result.rounds, "round")
    seconds = human_seconds(result.seconds)
    text = f"{STATE_MARKS[result.state]} {result.state} after {after} in {seconds}"
    if name is not None:
        text += f", {name} {human_metric(name, metrics[name])}"
    if result.message:
        text += f": {result.message}"
    return printable(text + (f" (report: {result.report})" if result.report else f" (folder: {result.folder})"))
