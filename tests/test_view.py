"""The views: what they print at 80 and 40 columns, in a log, and for records of any shape."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fedgen.config import Experiment
from fedgen.server.screen.live_view import LiveView
from fedgen.server.screen.plain_view import PlainView, end_line, plain_line
from fedgen.server.screen.tally import Tally
from fedgen.server.screen.view import view_for
from fedgen.server.words import human_bytes, human_count, human_metric, human_seconds, leading_metric, sparkline
from fedgen.tracking.observer import Plan
from fedgen.tracking.record import Outcomes, RoundRecord, Traffic
from fedgen.tracking.result import Result

WAYS = {"accuracy": False, "loss": True, "validation_accuracy": False, "validation_loss": True}
"""Which metrics are better when lower."""


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def plan(rounds: int, mode: str = "star", name: str = "digits", **known: Any) -> Plan:
    experiment = Experiment(experiment={"name": name}, federation={"rounds": rounds, "mode": mode})
    return replace(Plan(experiment, Path("runs/x"), WAYS), **known)


def ended(**changes: Any) -> Result:
    return replace(Result(Path("runs/x"), "completed", 2, {}, "", None, 61.0), **changes)


def record(number: int, accuracy: float | None = None, **changes: Any) -> RoundRecord:
    metrics: dict[str, float | None] = {"train_loss": 0.5}
    if accuracy is not None:
        # The test set is best in another round than the validation set.
        metrics |= {"accuracy": accuracy, "loss": 1 - accuracy, "validation_accuracy": 1 - abs(number - 40) / 100}
    plain = RoundRecord(
        round=number,
        evaluated=accuracy is not None,
        metrics=metrics,
        clients=Outcomes(admitted=9, rejected=1),
        skipped=False,
        bytes=Traffic(up=1_000_000, down=2_500_000),
        seconds={"train": 0.1},
    )
    return replace(plain, **changes)


def console(width: int) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=24, force_terminal=True, color_system=None, legacy_windows=False
    )


def shown(view: LiveView, width: int) -> list[str]:
    """The panel's lines on a console of that width."""
    page = Console(file=io.StringIO(), width=width, color_system=None)
    page.print(view.panel())
    assert isinstance(page.file, io.StringIO)
    return page.file.getvalue().splitlines()


def live(width: int, rounds: int = 100, first_round: int = 0, mode: str = "star") -> tuple[LiveView, Clock]:
    clock = Clock()
    view = LiveView(console(width), clock)
    folder = Path("runs/digits-20260102-030405")
    view.start(plan(rounds, mode, "digits-dirichlet", folder=folder, first_round=first_round))
    return view, clock


@pytest.mark.parametrize("width", [80, 40])
def test_the_panel_says_everything_at_any_width(width: int) -> None:
    view, clock = live(width)
    with view:
        for number in range(60):
            clock.now += 2.0
            view.round(record(number, accuracy=0.9 if number == 30 else 0.5 + number / 1000))
        lines = shown(view, width)
    text = " ".join(lines)
    assert max(map(len, lines)) <= width
    assert len(lines) <= 11
    assert "digits-dirichlet" in text
    assert "60/100 rounds · 1 min 20 s left" in text
    assert "accuracy 55.90 % · 54.00 % in round 40, chosen by validation accuracy" in " ".join(text.split())
    assert "up 60.0 MB · down 150 MB" in text
    assert "2 min 00 s · 2.0 s a round" in text
    assert "█" in text
    words = [line.split() for line in lines]
    assert ["clients", "ok", "late", "failed", "rejected"] in words
    assert ["round", "9", "0", "0", "1"] in words
    assert ["total", "540", "0", "0", "60"] in words


def test_the_eta_counts_down_within_a_round_and_never_below_zero() -> None:
    tally = Tally(clock := Clock())
    tally.begin(plan(10))
    etas = [tally.eta_s]
    for number in range(4):
        clock.now += 5.0
        tally.add(record(number))
    assert tally.seconds_a_round == 5.0
    for seconds in (0.0, 4.0, 400.0):
        clock.now += seconds
        etas.append(tally.eta_s)
    assert etas == [None, 30.0, 26.0, 0.0]


def test_the_eta_follows_the_last_fifty_rounds() -> None:
    tally = Tally(clock := Clock())
    tally.begin(plan(200))
    for number in range(100):
        clock.now += 100.0 if number < 50 else 1.0
        tally.add(record(number))
    assert tally.eta_s == 100.0


def test_the_eta_does_not_count_what_the_rounds_waited_for() -> None:
    """Starting Ray takes seconds and happens once."""
    view, clock = live(80, rounds=100)
    view.doing("starting 2 Ray workers")
    clock.now += 60.0
    assert "0/100 rounds · starting 2 Ray workers" in " ".join(shown(view, 80))
    view.doing("")
    clock.now += 2.0
    view.round(record(0))
    text = " ".join(shown(view, 80))
    assert "1/100 rounds · 3 min 18 s left" in text
    assert "1 min 02 s · 2.0 s a round" in text


def test_the_panel_says_that_it_stops() -> None:
    view, _ = live(80)
    view.round(record(0))
    view.doing("stopping")
    assert "1/100 rounds · stopping" in " ".join(shown(view, 80))


def test_a_log_says_what_the_rounds_wait_for() -> None:
    view, clock, stream = plain(rounds=10)
    view.doing("starting 2 Ray workers")
    clock.now += 60.0
    view.doing("")
    clock.now += 2.0
    view.round(record(0))
    assert stream.getvalue().splitlines()[1] == "starting 2 Ray workers ..."
    assert round_lines(stream)[0].endswith("2.0 s a round | 18 s left")


def test_a_resumed_run_remembers_its_earlier_rounds() -> None:
    clock = Clock()
    view = LiveView(console(80), clock)
    earlier = [record(number, accuracy=0.9 if number == 40 else 0.5) for number in range(90)]
    view.start(plan(100, first_round=90, earlier=tuple(earlier), earlier_s=600.0))
    clock.now += 3.0
    view.round(record(90, accuracy=0.6))
    text = " ".join(shown(view, 80))
    assert "91/100 rounds · 27 s left" in text
    assert "accuracy 60.00 % · 90.00 % in round 40, chosen by validation accuracy" in " ".join(text.split())
    assert "up 91.0 MB" in text
    assert "10 min 03 s · 3.0 s a round" in text
    assert view.tally.total["admitted"] == 91 * 9


def test_a_resumed_run_counts_from_its_first_round() -> None:
    view, clock = live(80, rounds=100, first_round=90)
    with view:
        clock.now += 3.0
        view.round(record(90))
        text = " ".join(shown(view, 80))
    assert "91/100 rounds · 27 s left" in text
    assert view.tally.total["admitted"] == 9


def test_what_is_to_be_copied_is_not_broken_into_lines() -> None:
    view, _ = live(40)
    message = "`fedgen resume 'runs/a long name-20260102-030405'` continues"
    view.end(ended(state="stopped", message=message, report=Path("r.html")))
    assert "`fedgen resume 'runs/a long name-20260102-030405'` continues (report: r.html)\n" in text_of(view)


def test_the_terminal_is_given_back_at_the_end_and_after_an_exception() -> None:
    hide, show = "\x1b[?25l", "\x1b[?25h"
    view, _ = live(80)
    stdout = sys.stdout
    with view:
        view.round(record(0))
        view.note("careful")
        view.end(ended(state="degraded", rounds=1, metrics={"accuracy": 0.9}, message="one round skipped"))
    output = text_of(view)
    assert output.count(hide) == output.count(show) == 1
    assert "note careful" in output
    assert "▲ degraded after 1 round in 1 min 01 s, accuracy 90.00 %: one round skipped" in output

    view, _ = live(80)
    fail(view, rounds=1)
    assert text_of(view).rstrip("\n").endswith(show)
    assert sys.stdout is stdout


def fail(view: LiveView | PlainView, rounds: int) -> None:
    """A run that ends in an exception after so many rounds."""
    try:
        with view:
            for number in range(rounds):
                view.round(record(number))
            raise RuntimeError
    except RuntimeError:
        return
    pytest.fail("the view swallowed the exception")


def text_of(view: LiveView) -> str:
    assert isinstance(view.console.file, io.StringIO)
    return view.console.file.getvalue()


def plain(rounds: int = 100, first_round: int = 0) -> tuple[PlainView, Clock, io.StringIO]:
    clock, stream = Clock(), io.StringIO()
    view = PlainView(stream, clock)
    view.start(plan(rounds, first_round=first_round))
    return view, clock, stream


def round_lines(stream: io.StringIO) -> list[str]:
    return [line for line in stream.getvalue().splitlines() if " rounds | " in line]


def test_plain_lines_come_at_most_once_a_second_but_first_and_last_always() -> None:
    view, clock, stream = plain(rounds=100)
    with view:
        for number in range(100):
            clock.now += 0.3
            view.round(record(number, accuracy=0.5))
        view.end(ended(rounds=100))
    numbers = [int(line.split("/")[0]) for line in round_lines(stream)]
    assert numbers == [1, *range(5, 100, 4), 100]
    assert stream.getvalue().endswith("completed after 100 rounds in 1 min 01 s (folder: runs/x)\n")


def test_the_last_line_names_the_report_else_the_folder() -> None:
    view, _, stream = plain()
    view.end(ended(report=Path("runs/x/report.html")))
    assert stream.getvalue().splitlines()[-1] == "✓ completed after 2 rounds in 1 min 01 s (report: runs/x/report.html)"
    view.end(ended(state="stopped", message="go on with X"))
    said = stream.getvalue().splitlines()[-1]
    assert said == "■ stopped after 2 rounds in 1 min 01 s: go on with X (folder: runs/x)"


def test_the_last_round_before_a_stop_is_said() -> None:
    view, _, stream = plain()
    for number in range(7):
        view.round(record(number))
    view.end(ended(state="stopped"))
    assert [line.split("/")[0] for line in round_lines(stream)] == ["1", "7"]


def test_the_last_round_before_an_exception_is_said() -> None:
    view, _, stream = plain()
    fail(view, rounds=7)
    assert [line.split("/")[0] for line in round_lines(stream)] == ["1", "7"]


def test_a_plain_line_says_everything_without_escape_codes() -> None:
    view, clock, stream = plain(rounds=10)
    clock.now += 2.0
    view.round(record(0, accuracy=0.8, skipped=True))
    view.note("red \x1b[31mherring\nsecond line")
    assert round_lines(stream) == [
        "1/10 rounds | SKIPPED | accuracy 80.00 % (80.00 % in round 0, chosen by validation accuracy) | "
        "ok 9, rejected 1 | up 1.0 MB, down 2.5 MB | 2.0 s a round | 18 s left"
    ]
    assert stream.getvalue().splitlines()[0] == "digits: 10 rounds, folder runs/x"
    assert stream.getvalue().splitlines()[-1] == "note: red  [31mherring second line"
    assert "\x1b" not in stream.getvalue()


def test_a_log_that_knows_only_ascii_is_no_error() -> None:
    stream = io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii")
    view = PlainView(stream, Clock())
    view.start(plan(1, name="Größe", folder=Path("runs/ß")))
    view.end(ended())
    assert raw.getvalue().isascii()


def test_a_terminal_gets_the_live_view_and_anything_else_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(view_for(Terminal()), LiveView)
    assert isinstance(view_for(io.StringIO()), PlainView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view_for(Terminal()), PlainView)


def test_with_json_the_view_keeps_off_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", error := io.StringIO())
    view = view_for(output := Terminal(), json=True)
    view.start(plan(1))
    assert isinstance(view, PlainView)
    assert output.getvalue() == ""
    assert "digits" in error.getvalue()
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(view_for(io.StringIO(), json=True), LiveView)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_234_567, "1.2 MB"),
        (999_960, "1.0 MB"),
        (45_600_000_000, "45.6 GB"),
        (267e6, "267 MB"),
    ],
)
def test_bytes(size: float, text: str) -> None:
    assert human_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0042, "4 ms"),
        (1.0, "1.0 s"),
        (9.96, "10 s"),
        (59.97, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (266_400, "3 d 2 h"),
    ],
)
def test_seconds(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_other_numbers() -> None:
    assert human_count(12345) == "12,345"
    assert human_count(3_400_000) == "3.4 M"
    assert human_metric("validation_accuracy", 0.97251) == "97.25 %"
    assert human_metric("mean_squared_error", 0.0123449) == "0.01234"


def test_the_leading_metric_is_accuracy_on_the_test_set_where_there_is_one() -> None:
    assert leading_metric(["train_loss", "loss", "f1", "validation_accuracy", "accuracy"]) == "accuracy"
    assert leading_metric(["train_loss", "loss", "f1", "validation_accuracy"]) == "f1"
    assert leading_metric(["train_loss", "validation_loss", "validation_accuracy"]) == "validation_accuracy"
    assert leading_metric([]) is None


@pytest.mark.parametrize(("lower", "at"), [(True, 1), (False, 0), (None, None)])
def test_validation_chooses_the_way_its_metric_declares(lower: bool | None, at: int | None) -> None:
    """Whatever it is called; one that declares nothing chooses nothing, and no test value chooses at all."""
    tally = Tally(Clock())
    ways = {} if lower is None else {"validation_error_free": lower, "error_free": lower}
    tally.begin(plan(3, directions=ways))
    for number, value in enumerate((3.0, 1.0, 2.0)):
        metrics = {"error_free": 10 - value, "validation_error_free": value}
        tally.add(record(number, metrics=metrics))
    found = tally.chosen("error_free")
    assert (None if found is None else found.round) == at
    assert found is None or found.value == 10 - (3.0, 1.0, 2.0)[found.round]
    assert tally.chosen("validation_error_free") is None


def test_without_a_validation_set_nothing_is_chosen() -> None:
    view, _, _ = plain(rounds=3)
    for number, accuracy in enumerate((0.5, 0.9, 0.6)):
        view.round(record(number, metrics={"accuracy": accuracy}))
    assert "accuracy 60.00 % | " in (line := plain_line(view.tally))
    assert "90" not in line


def test_what_is_no_number_is_a_word() -> None:
    view, _, _ = plain(rounds=9)
    for value, words in ((math.nan, "not finite (NaN)"), (-math.inf, "not finite (-Infinity)"), (None, "undefined")):
        view.round(record(1, metrics={"accuracy": value}))
        assert f"accuracy {words} | " in plain_line(view.tally)
    assert "accuracy not finite (NaN)" in end_line(ended(state="degraded", metrics={"accuracy": math.nan}))


def test_an_exchange_before_training_is_called_so() -> None:
    view, _, stream = plain(rounds=9, first_round=-1)
    view.round(record(-1, metrics={"accuracy": 0.5, "validation_accuracy": 0.5}))
    assert stream.getvalue().splitlines()[0] == "digits: 9 rounds, folder runs/x"
    line = round_lines(stream)[0]
    assert line.startswith("before training, 0/9 rounds | accuracy 50.00 % (50.00 % before training, chosen by")


@pytest.mark.parametrize(("mode", "word"), [("star", "clients"), ("gossip", "peers")])
def test_who_takes_part_is_called_by_the_mode(mode: str, word: str) -> None:
    view, _ = live(80, mode=mode)
    view.round(record(0))
    lines = shown(view, 80)
    assert any(line.split()[:2] == [word, "ok"] for line in lines)
    assert {"clients", "peers"} & set(" ".join(lines).split()) == {word}


def test_sparkline() -> None:
    assert sparkline([], 8) == ""
    assert sparkline([2.0, 2.0], 8) == "▁▁"
    assert sparkline([float(level) for level in range(8)], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.0, 0.0, 1.0, 1.0], 2) == "▁█"
    assert sparkline([-1.7e308, 1.7e308], 8) == "▁█"


NAMES = st.sampled_from(["accuracy", "loss", "validation_loss", "\x1b[2J"]) | st.text(max_size=8)
METRICS = st.dictionaries(NAMES, st.none() | st.floats(allow_subnormal=False), max_size=4)
COUNTS = st.integers(0, 10**18)
RECORDS = st.builds(
    RoundRecord,
    round=st.integers(-3, 10**6),
    evaluated=st.booleans(),
    metrics=METRICS,
    clients=st.builds(Outcomes, COUNTS, COUNTS, COUNTS, COUNTS),
    skipped=st.booleans(),
    bytes=st.builds(Traffic, COUNTS, COUNTS),
    seconds=st.just({}),
)
RESULTS = st.builds(
    ended,
    state=st.sampled_from(["completed", "degraded", "failed", "stopped"]),
    rounds=COUNTS,
    metrics=METRICS,
    seconds=st.floats(0, 1e300, allow_subnormal=False),
    message=st.text(max_size=20),
    folder=st.text(max_size=8).map(Path),
)


@pytest.mark.parametrize("width", [80, 40])
@settings(max_examples=50, deadline=None)
@given(records=st.lists(RECORDS, max_size=4), result=RESULTS, note=st.text(max_size=20), rounds=st.integers(0, 10**6))
def test_no_record_breaks_a_view(
    width: int, records: list[RoundRecord], result: Result, note: str, rounds: int
) -> None:
    stream = io.StringIO()
    plain_view, live_view = PlainView(stream, Clock()), LiveView(console(width), Clock())
    for view in (plain_view, live_view):
        view.start(plan(rounds))
        for line in records:
            view.round(line)
        if isinstance(view, LiveView):
            assert max(map(len, shown(view, width))) <= width
        view.note(note)
        view.end(result)
    assert "\x1b" not in stream.getvalue()
