"""Who watches a run: told in order, dropped when they raise, never able to end or change it."""

from __future__ import annotations

import csv
import json
import logging
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedgen import Experiment, Observer, Plan, Result, RoundRecord, load_experiment, resume, run
from fedgen.errors import SettingError
from fedgen.server.cli import main
from fedgen.server.experiment_file import dump
from fedgen.server.run.result import RunFailed
from fedgen.server.store.journal import read_lines

EXAMPLES = Path(__file__).parents[1] / "examples"
CALLS = ["start", "doing", "round", "note", "end"]
LOOPS: dict[str, dict[str, Any]] = {
    "star": {},
    "gossip": {"federation": {"mode": "gossip"}},
    "virtual time": {"federation": {"mode": "gossip"}, "gossip": {"clock": "events"}},
}
NOTED = {"byzantine": {"attack": "sign_flip", "clients": 0}}
"""Settings of which a note is made."""


class Listening(Observer):
    """Remembers every call; raises `error` in the one of that name."""

    def __init__(self, at: str = "", error: BaseException | None = None, others: list[str] | None = None) -> None:
        self.at, self.error = at, error
        self.heard: list[tuple[str, Any]] = []
        self.order = [] if others is None else others

    def called(self, name: str, value: Any) -> None:
        self.heard.append((name, value))
        self.order.append(name)
        if name == self.at and self.error is not None:
            raise self.error

    def start(self, plan: Plan) -> None:
        self.called("start", plan)

    def doing(self, what: str) -> None:
        self.called("doing", what)

    def round(self, record: RoundRecord) -> None:
        self.called("round", record)

    def note(self, message: str) -> None:
        self.called("note", message)

    def end(self, result: Result) -> None:
        self.called("end", result)

    def of(self, name: str) -> list[Any]:
        return [value for called, value in self.heard if called == name]


def dropped(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_lines(folder / "events.jsonl") if event["event"] == "observer_dropped"]


@pytest.mark.parametrize("loop", LOOPS)
def test_an_observer_is_told_what_the_folder_says(loop: str, tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    watching = Listening()
    result = run(tiny(**LOOPS[loop], **NOTED), tmp_path / "run", observers=[watching])
    assert [name for name, _ in watching.heard] == ["start", "note", "doing", "round", "round", "end"]
    (plan,) = watching.of("start")
    assert (plan.folder, plan.rounds, plan.title) == (tmp_path / "run", 2, "tiny")
    assert (plan.first_round, plan.earlier) == (0, ())
    assert plan.experiment.training.engine != "auto", "the experiment as it was resolved"
    assert plan.directions["loss"] is True
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert watching.of("round") == [RoundRecord.from_json(line) for line in lines] == list(result.records)
    assert watching.of("end") == [result]
    [note] = [each for each in watching.of("note") if "no client attacks" in each]
    assert note.startswith("byzantine.attack"), "the word note is the view's"


def test_a_run_that_goes_on_tells_of_the_rounds_before(tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    first, again = Listening(), Listening()
    run(tiny(), tmp_path / "run", observers=[first])
    resume(tmp_path / "run", rounds=3, observers=[again])
    (plan,) = again.of("start")
    assert plan.first_round == 2
    assert list(plan.earlier) == first.of("round")
    assert plan.earlier_s > 0
    assert [record.round for record in again.of("round")] == [2]


@pytest.mark.parametrize("error", [ValueError("no room"), SystemExit(7), GeneratorExit(), BrokenPipeError()], ids=repr)
@pytest.mark.parametrize("at", CALLS)
def test_one_that_raises_is_dropped_and_the_run_stays_what_it_is(
    at: str, error: BaseException, tiny: Callable[..., Experiment], tmp_path: Path
) -> None:
    whole = run(tiny(**NOTED), tmp_path / "whole")
    before, bad, after = Listening(), Listening(at, error), Listening()
    result = run(tiny(**NOTED), tmp_path / "run", observers=[before, bad, after])
    assert (result.state, result.exit_code, result.sha256) == ("completed", 0, whole.sha256)
    assert bad.heard[-1][0] == at, "nothing more is said to it"
    (event,) = dropped(tmp_path / "run")
    assert event["observer"].endswith(":Listening")
    assert f"test_observers.py:{LINE}: {type(error).__name__}" in event["reason"]
    others = [before, after] if at != "end" else [before]  # `after` has ended before
    for other in others:
        assert [name for name, _ in other.heard].count("round") == 2
        assert any("observer dropped" in note for note in other.of("note"))
    for other in (before, after):
        assert other.heard[0][0] == "start"
        assert other.heard[-1][0] == "end"
    assert json.loads((tmp_path / "run" / "result.json").read_text())["state"] == "completed"
    assert resume(tmp_path / "run", rounds=3).state == "completed"


LINE = next(n for n, line in enumerate(Path(__file__).read_text().splitlines(), 1) if "raise self.error" in line)


def test_all_may_be_dropped_and_the_last_is_said_aloud(
    tiny: Callable[..., Experiment], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [Listening("round", ValueError("one")), Listening("note", ValueError("two"))]
    with caplog.at_level(logging.WARNING):
        assert run(tiny(), tmp_path / "run", observers=bad).state == "completed"
    assert ["one" in event["reason"] for event in dropped(tmp_path / "run")] == [True, False]
    (warning,) = caplog.records
    assert "ValueError: two" in warning.getMessage()


def test_a_failed_run_stays_failed_and_has_its_end(
    tiny: Callable[..., Experiment], tmp_path: Path, user_module: Callable[[str, str], Path]
) -> None:
    watching, bad = Listening(), Listening("end", ValueError("no"))
    user_module("own_sum", "def broken(updates, f):\n    return updates.missing\n")
    with pytest.raises(RunFailed) as failure:
        run(tiny(aggregation={"rule": "own_sum:broken"}), tmp_path / "run", observers=[watching, bad])
    assert failure.value.result.state == "failed"
    assert watching.of("end") == [failure.value.result]
    assert len(dropped(tmp_path / "run")) == 1


class Pressing(Listening):
    """Presses Ctrl-C so many times in the first round, amid its own work."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def round(self, record: RoundRecord) -> None:
        for _ in range(self.times):
            signal.raise_signal(signal.SIGINT)
        super().round(record)


def test_ctrl_c_amid_an_observers_work_is_told_after_it(tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    pressing, other = Pressing(1), Listening()
    result = run(tiny(), tmp_path / "run", observers=[pressing, other])
    assert (result.state, result.rounds) == ("stopped", 1)
    assert [name for name, _ in pressing.heard] == ["start", "doing", "round", "doing", "end"]
    assert other.of("doing")[-1].startswith("stopping")
    assert dropped(tmp_path / "run") == []


def test_a_second_ctrl_c_ends_at_once(tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    pressing = Pressing(2)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), tmp_path / "run", observers=[pressing])
    assert [name for name, _ in pressing.heard] == ["start", "doing"]
    assert resume(tmp_path / "run").state == "completed"


def test_the_last_one_ends_first(tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    """A view, which comes first, still says what the others' ends raised."""
    bad, view = Listening("end", ValueError("late")), Listening()
    run(tiny(), tmp_path / "run", observers=[view, bad])
    assert [name for name, _ in view.heard][-2:] == ["note", "end"]


# Named in the experiment file.

OWN = """
from pathlib import Path

class Counting:
    def __init__(self, start=0):
        self.count = start
    def start(self, plan): self.folder = plan.folder
    def doing(self, what): pass
    def round(self, record): self.count += 1
    def note(self, message): pass
    def end(self, result): (self.folder / "count").write_text(str(self.count))

class Half:
    def start(self, plan): pass
    def round(self): pass

class Fails:
    def __init__(self): raise OSError("no such tracker")
"""


def test_one_of_your_own_is_named_with_its_parameters(
    user_module: Callable[[str, str], Path], tiny: Callable[..., Experiment], tmp_path: Path
) -> None:
    """It need not inherit, decides nothing of the result, and its source may change."""
    file = user_module("own_watch", OWN)
    observers = [{"name": "own_watch:Counting", "start": 40}, "own_watch:Counting"]
    named = tiny(tracking={"report": False, "observers": observers})
    assert named.identity == tiny().identity
    run(named, tmp_path / "run")
    assert (tmp_path / "run" / "count").read_text() == "42", "the first one ends last"
    file.write_text(OWN + "# changed\n")
    assert resume(tmp_path / "run", rounds=3).state == "completed"
    assert (tmp_path / "run" / "count").read_text() == "41"


@pytest.mark.parametrize(
    ("observers", "message"),
    [
        (["own_watch:Missing"], r"tracking\.observers\.0: observer 'own_watch:Missing': module 'own_watch' has no"),
        (["nowhere_at_all:Class"], r"observer 'nowhere_at_all:Class' cannot be imported"),
        (["csv"], r"observer 'csv' is not known: .*your own is written 'module:Class'"),
        ([{"name": "own_watch:Counting", "begin": 1}], r"begin: unknown key of own_watch:Counting"),
        (["own_watch:Half"], r"observer 'own_watch:Half' lacks 'doing' and .*'round' that does not take \(record\)"),
        (["own_watch:Fails"], r"observer 'own_watch:Fails' cannot be made .*own_watch\.py:\d+: OSError: no such"),
    ],
)
def test_one_that_does_not_fit_is_refused_before_anything_is_written(
    observers: list[Any], message: str, user_module: Callable[[str, str], Path], tiny: Any, tmp_path: Path
) -> None:
    user_module("own_watch", OWN)
    with pytest.raises(SettingError, match=message):
        run(tiny(tracking={"observers": observers}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_one_that_is_passed_is_checked_too(tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"observer 'builtins:object' lacks 'start'"):
        run(tiny(), tmp_path / "run", observers=[object()])  # type: ignore[list-item]
    with pytest.raises(SettingError, match=r"Listening is a class; pass an instance, such as Listening\(\)"):
        run(tiny(), tmp_path / "run", observers=[Listening])  # type: ignore[list-item]
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_without_an_observer_that_is_gone(
    user_module: Callable[[str, str], Path], tiny: Callable[..., Experiment], tmp_path: Path
) -> None:
    file = user_module("own_watch", OWN)
    run(tiny(tracking={"observers": ["own_watch:Counting"]}), tmp_path / "run")
    file.unlink()
    del sys.modules["own_watch"]
    with pytest.raises(SettingError, match="own_watch:Counting' cannot be imported"):
        resume(tmp_path / "run", rounds=3)
    assert resume(tmp_path / "run", rounds=3, overrides={"tracking.observers": []}).state == "completed"


def test_workers_need_no_module_of_an_observer(
    user_module: Callable[[str, str], Path], tiny: Callable[..., Experiment]
) -> None:
    """A worker unpickles the experiment and resolves it again; what only watches may be missing there."""
    file = user_module("own_watch", OWN)
    experiment = tiny(tracking={"observers": ["own_watch:Counting"]})
    sent = pickle.dumps(experiment)
    file.unlink()
    del sys.modules["own_watch"]
    assert pickle.loads(sent).replace(training={"block": 2}).training.block == 2
    with pytest.raises(SettingError, match="cannot be imported"):
        experiment.replace(tracking={"report": True})


def test_a_command_whose_output_nobody_takes_still_ends_well(tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(dump(tiny(federation={"rounds": 3})))
    command = [sys.executable, "-m", "fedgen.server", "run", str(path), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert "PlainView is dropped" in said
    assert "Exception ignored" not in said
    assert [event["observer"] for event in dropped(tmp_path / "run")] == ["fedgen.server.screen.plain_view:PlainView"]


def test_the_example_writes_a_csv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fifteen lines of code, in a run and, from its checkpoint, in one that goes on."""
    monkeypatch.syspath_prepend(EXAMPLES)
    code = (EXAMPLES / "csv_observer.py").read_text().splitlines()
    assert len([line for line in code if line.strip() and not line.startswith('"""')]) <= 15
    assert main(["run", str(EXAMPLES / "csv_observer.toml"), "--out", str(tmp_path / "run")]) == 0
    result = resume(tmp_path / "run", rounds=12)
    head, *rows = csv.reader((tmp_path / "run" / "rounds.csv").read_text().splitlines())
    assert head == ["round", "accuracy", "validation_accuracy"]
    assert [int(row[0]) for row in rows] == list(range(12))
    assert [float(row[1]) for row in rows] == result.history["accuracy"].tolist()
    assert load_experiment(tmp_path / "run" / "resolved.toml").tracking.observers
