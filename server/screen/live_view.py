"""The live panel on a terminal: progress, a metric with its curve, clients, traffic, time."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from fedgen.server.screen.plain_view import end_line
from fedgen.server.screen.tally import Clock, Tally
from fedgen.server.words import OUTCOMES, human_bytes, human_count, human_metric, human_seconds, printable, sparkline
from fedgen.tracking.observer import Observer, Plan
from fedgen.tracking.record import RoundRecord
from fedgen.tracking.result import Result

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live
    from rich.table import Table


class LiveView(Observer):
    """A panel that redraws in place."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        self.console = console
        self.tally = Tally(clock)
        self.title = self.folder = ""
        self._live: Live | None = None
        # Live redraws in another thread, which must not see a half-added record.
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # the terminal may be gone
            self._close()

    def start(self, plan: Plan) -> None:
        from rich.live import Live

        self._close()
        self.title, self.folder = printable(plan.title), printable(plan.folder)
        self.tally.begin(plan)
        # A piped stdout belongs to its reader, even while the panel is drawn on stderr.
        self._live = Live(
            console=self.console, get_renderable=self.panel, refresh_per_second=4, redirect_stdout=sys.stdout.isatty()
        )
        self._live.start(refresh=True)

    def doing(self, what: str) -> None:
        with self._lock:
            self.tally.wait_for(what)

    def round(self, record: RoundRecord) -> None:
        with self._lock:
            self.tally.add(record)

    def note(self, message: str) -> None:
        from rich.text import Text

        self.console.print(Text.assemble(("note ", "yellow"), printable(message)))

    def end(self, result: Result) -> None:
        from rich.text import Text

        self._close()
        style = {"completed": "green", "degraded": "yellow", "stopped": "yellow", "failed": "red"}
        line = Text(end_line(result), style=style[result.state])
        self.console.print(line, soft_wrap=True)  # no line breaks in commands, so that they can be copied

    def panel(self) -> RenderableType:
        """The current panel, for the width of the console."""
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
        total = max(tally.rounds, 1)
        bar = ProgressBar(total=total, completed=max(0, min(tally.done, total)))
        eta = tally.eta_s
        left = "" if eta is None or tally.done >= tally.rounds else f"{human_seconds(eta)} left"
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
        table.add_row(tally.members, client_counts(tally))
        up, down = human_bytes(tally.up), human_bytes(tally.down)
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
        live = self._live
        self._live = None
        if live is not None:
            live.stop()


def client_counts(tally: Tally) -> Table:
    """Numbers of ok, late, failed and rejected clients: in this round, and in total."""
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
