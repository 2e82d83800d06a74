"""What a person sees while a run goes: a live panel on a terminal, plain lines in a log, or nothing.

A view is handed the same records that go to ``metrics.jsonl`` and never fails on one: what it cannot read is left out.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from fedgen.server.selection import Chosen, Directions, Points, chosen
from fedgen.server.words import (
    OUTCOMES,
    STATE_MARKS,
    counted,
    finite,
    human_bytes,
    human_count,
    human_metric,
    human_seconds,
    leading_metric,
    measures,
    members_of,
    numbers,
    printable,
    round_name,
    sparkline,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table

Clock = Callable[[], float]
Records = Iterable[Mapping[str, Any]]

RECENT_ROUNDS = 50


@dataclass(frozen=True)
class Plan:
    """What a view is told of a run before it begins; rounds: how many are planned; mode: federation.mode."""

    title: str
    folder: str
    rounds: int
    directions: Directions = field(default_factory=dict)
    mode: str = "star"

    @property
    def members(self) -> str:
        return members_of(self.mode)


class View(Protocol):
    """One run as it goes. Use it as a context manager: leaving it gives the terminal back, also after an exception."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def start(self, plan: Plan, first_round: int = 0, earlier: Records = (), earlier_s: float = 0.0) -> None:
        """Begin: `first_round` is the one this process begins with (above 0 on resume).

        earlier: the records of the rounds before it.  earlier_s: seconds that the run has taken so far.
        """

    def doing(self, what: str) -> None:
        """Say what rounds wait for, such as workers that start; nothing where they begin now."""

    def round(self, record: dict[str, Any]) -> None:
        """Show one finished round, given as its line of ``metrics.jsonl``."""

    def note(self, message: str) -> None:
        """Say one warning or event worth a person's attention."""

    def end(self, result: dict[str, Any], report: str = "") -> None:
        """Finish with the contents of ``result.json`` and the path of the report, where one was written."""


def view_for(stream: TextIO, *, json: bool = False) -> View:
    """The view that suits `stream`; with `json` it goes to stderr, as stdout then belongs to the JSON object."""
    from rich.console import Console

    target = sys.stderr if json else stream
    console = Console(file=target)
    live = console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf")
    return LiveView(console) if live else PlainView(target)


class SilentView:
    """Shows nothing: runs inside a program, sweeps, tests."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def start(self, plan: Plan, first_round: int = 0, earlier: Records = (), earlier_s: float = 0.0) -> None: ...

    def doing(self, what: str) -> None: ...

    def round(self, record: dict[str, Any]) -> None: ...

    def note(self, message: str) -> None: ...

    def end(self, result: dict[str, Any], report: str = "") -> None: ...


class Tally:
    """The records so far, added up: what every view shows. The pace is that of this process's rounds."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self.begin(Plan("", "", 0))

    def begin(self, plan: Plan, first_round: int = 0, earlier: Records = (), earlier_s: float = 0.0) -> None:
        self.plan = plan
        self.done, self.at = 0, 0
        self.last: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self.total: dict[str, int] = dict.fromkeys(OUTCOMES, 0)
        self.skipped = 0
        self.bytes = {"up": 0.0, "down": 0.0}
        self.histories: dict[str, Points] = {}
        self.latest: dict[str, float | str | None] = {}
        self.began = self.clock() - earlier_s
        for record in earlier:
            self._count(record)
        self.done = max(0, first_round)
        self.wait_for("")

    def wait_for(self, what: str) -> None:
        """Rounds wait for something, or begin now: a pace measured before is no more."""
        self.waiting = what
        self.stamps: deque[float] = deque([self.clock()], maxlen=RECENT_ROUNDS + 1)

    def add(self, record: Mapping[str, Any]) -> None:
        self.stamps.append(self.clock())
        self._count(record)

    def _count(self, record: Mapping[str, Any]) -> None:
        number = finite(record.get("round"))
        self.done = self.done + 1 if number is None else max(self.done, int(number) + 1)
        self.skipped += bool(record.get("skipped"))
        clients, traffic = numbers(record.get("clients")), numbers(record.get("bytes"))
        for outcome in OUTCOMES:
            self.last[outcome] = int(clients.get(outcome, 0))
            self.total[outcome] += self.last[outcome]
        for direction in self.bytes:
            self.bytes[direction] += traffic.get(direction, 0.0)
        at = self.done - 1 if number is None else int(number)
        for name, value in measures(record.get("metrics")).items():
            self.latest[name] = value
            if isinstance(value, float):
                self.histories.setdefault(name, []).append((at, value))
        self.at = at

    @property
    def metric(self) -> str | None:
        """The metric worth one line: accuracy where there is one."""
        return leading_metric(self.latest)

    def chosen(self, name: str) -> Chosen | None:
        """The metric at the round that the validation set chooses so far, where there is one."""
        return chosen(name, self.histories, self.plan.directions)

    @property
    def progress(self) -> str:
        """How many of the planned rounds are over; the exchange before the first of them is none of them."""
        return f"{round_name(-1) + ', ' if self.at < 0 else ''}{self.done}/{self.plan.rounds} rounds"

    @property
    def seconds_a_round(self) -> float | None:
        """Mean over the last 50 rounds; None before the first has ended."""
        stamps = self.stamps
        return (stamps[-1] - stamps[0]) / (len(stamps) - 1) if len(stamps) > 1 else None

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end at the pace of the last 50 rounds, counting down while a round runs."""
        pace = self.seconds_a_round
        if pace is None:
            return None
        return max(0.0, (self.plan.rounds - self.done) * pace - (self.clock() - self.stamps[-1]))


class PlainView:
    """One line a round, at most one a second, always the first and the last; no escape codes, for a log file."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic, every_s: float = 1.0) -> None:
        self.stream, self.every_s = stream, every_s
        self.tally = Tally(clock)
        self._said_at: float | None = None
        self._held: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._release()

    def start(self, plan: Plan, first_round: int = 0, earlier: Records = (), earlier_s: float = 0.0) -> None:
        self.tally.begin(plan, first_round, earlier, earlier_s)
        self._said_at = self._held = None
        resumed = f", from {round_name(first_round)}" if first_round > 0 else ""
        self._say(f"{plan.title}: {counted(plan.rounds, 'round')}{resumed}, folder {plan.folder}")

    def doing(self, what: str) -> None:
        self.tally.wait_for(what)
        if what:
            self._say(f"{what} ...")

    def round(self, record: dict[str, Any]) -> None:
        self.tally.add(record)
        self._held = plain_line(self.tally, skipped=bool(record.get("skipped")))
        now = self.tally.clock()
        if self._said_at is None or now - self._said_at >= self.every_s or self.tally.done >= self.tally.plan.rounds:
            self._said_at = now
            self._release()

    def note(self, message: str) -> None:
        self._say(f"note: {message}")

    def end(self, result: dict[str, Any], report: str = "") -> None:
        self._release()
        self._say(end_line(result, report))

    def _release(self) -> None:
        if self._held is not None:
            self._say(self._held)
        self._held = None

    def _say(self, line: str) -> None:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        text = printable(line).encode(encoding, "replace").decode(encoding)
        print(text, file=self.stream, flush=True)


class LiveView:
    """A panel that redraws in place: progress and ETA, the metric and its course, clients, bytes, pace."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self.console = console
        self.tally = Tally(clock)
        self.title = self.folder = ""
        self._live: Live | None = None
        # Live redraws from a thread of its own, which must not see a half-added record.
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._close()

    def start(self, plan: Plan, first_round: int = 0, earlier: Records = (), earlier_s: float = 0.0) -> None:
        from rich.live import Live

        self._close()
        self.title, self.folder = printable(plan.title), printable(plan.folder)
        self.tally.begin(plan, first_round, earlier, earlier_s)
        # Piped standard output belongs to whoever reads it, even while the panel is drawn on stderr.
        self._live = Live(
            console=self.console, get_renderable=self.panel, refresh_per_second=4, redirect_stdout=sys.stdout.isatty()
        )
        self._live.start(refresh=True)

    def doing(self, what: str) -> None:
        with self._lock:
            self.tally.wait_for(what)

    def round(self, record: dict[str, Any]) -> None:
        with self._lock:
            self.tally.add(record)

    def note(self, message: str) -> None:
        from rich.text import Text

        self.console.print(Text.assemble(("note ", "yellow"), printable(message)))

    def end(self, result: dict[str, Any], report: str = "") -> None:
        from rich.text import Text

        self._close()
        style = {"completed": "green", "degraded": "yellow", "stopped": "yellow", "failed": "red"}
        line = Text(end_line(result, report), style=style.get(str(result.get("state")), ""))
        self.console.print(line, soft_wrap=True)  # no line break inside a command that is to be copied

    def panel(self) -> RenderableType:
        """The panel as it stands now, for whatever width the console has."""
        from rich.console import Group
        from rich.text import Text

        head = Text.assemble((self.title, "bold"), "  ", (self.folder, "dim"), no_wrap=True, overflow="ellipsis")
        with self._lock:
            return Group(head, self._progress(), self._body())

    def _progress(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        tally = self.tally
        total = max(tally.plan.rounds, 1)
        bar = ProgressBar(total=total, completed=max(0, min(tally.done, total)))
        eta = tally.eta_s
        left = "" if eta is None or tally.done >= tally.plan.rounds else f"{human_seconds(eta)} left"
        parts = [tally.progress, tally.waiting or left]
        words = Text(" · ".join(filter(None, parts)), no_wrap=True, overflow="ellipsis")
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(ratio=1)
        if self.console.width >= 70:
            line.add_column(no_wrap=True)
            line.add_row(bar, words)
        else:
            line.add_row(bar)
            line.add_row(words)
        return line

    def _body(self) -> Table:
        from rich.table import Table

        tally = self.tally
        table = Table.grid(padding=(0, 1))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(ratio=1)
        if tally.metric is not None:
            self._add_metric(table, tally.metric)
        table.add_row(tally.plan.members, client_counts(tally))
        up, down = human_bytes(tally.bytes["up"]), human_bytes(tally.bytes["down"])
        pace = "" if tally.seconds_a_round is None else f" · {human_seconds(tally.seconds_a_round)} a round"
        table.add_row("traffic", f"up {up} · down {down}")
        skipped = f" · {tally.skipped} skipped" if tally.skipped else ""
        table.add_row("time", f"{human_seconds(tally.clock() - tally.began)}{pace}{skipped}")
        return table

    def _add_metric(self, table: Table, name: str) -> None:
        from rich.text import Text

        values = [value for _, value in self.tally.histories.get(name, [])]
        label = name if len(name) <= 10 else name[:9] + "…"
        now = Text(human_metric(name, self.tally.latest[name]), style="bold")
        if found := self.tally.chosen(name):
            now.append(f" · {found.words(name)}", style="not bold dim")
        table.add_row(printable(label), now)
        table.add_row("", Text(sparkline(values, max(8, min(60, self.console.width - 14))), style="cyan"))

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def client_counts(tally: Tally) -> Table:
    """Who was ok, late, failed and rejected: this round, and in total."""
    from rich.table import Table
    from rich.text import Text

    def cell(outcome: str, count: int) -> Text:
        styles = {"rejected": "yellow", "failed": "red"}
        return Text(human_count(count), style=styles.get(outcome, "") if count else "dim")

    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim")
    for _ in OUTCOMES:
        table.add_column(justify="right", no_wrap=True)
    table.add_row("", *("ok" if outcome == "admitted" else outcome for outcome in OUTCOMES), style="dim")
    for label, counts in (("round", tally.last), ("total", tally.total)):
        table.add_row(label, *(cell(outcome, counts[outcome]) for outcome in OUTCOMES))
    return table


def plain_line(tally: Tally, *, skipped: bool = False) -> str:
    """One round as one line of a log, in ASCII but for the metric's own name."""
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
    parts.append(f"up {human_bytes(tally.bytes['up'])}, down {human_bytes(tally.bytes['down'])}")
    if (pace := tally.seconds_a_round) is not None:
        parts.append(f"{human_seconds(pace)} a round")
    if (eta := tally.eta_s) is not None and tally.done < tally.plan.rounds:
        parts.append(f"{human_seconds(eta)} left")
    return " | ".join(parts)


def end_line(result: Mapping[str, Any], report: str = "") -> str:
    """How the run ended, in one sentence, and where to look."""
    state = str(result.get("state", "ended"))
    metrics = measures(result.get("metrics"))
    name = leading_metric(metrics)
    parts = [f"{STATE_MARKS.get(state, '-')} {state}"]
    if (rounds := finite(result.get("rounds"))) is not None:
        parts.append(f"after {counted(int(rounds), 'round')}")
    if (seconds := finite(result.get("seconds"))) is not None:
        parts.append(f"in {human_seconds(seconds)}")
    text = " ".join(parts)
    if name is not None:
        text += f", {name} {human_metric(name, metrics[name])}"
    if message := result.get("message"):
        text += f": {message}"
    if report or result.get("run"):
        text += f" (report: {report})" if report else f" (folder: {result['run']})"
    return printable(text)
