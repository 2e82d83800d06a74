"""A run's life: folder, stops, resumes, damaged checkpoints, end states and exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedgen import Experiment, Result, resume, run
from fedgen.errors import FedgenError, SettingError
from fedgen.server.run import environment
from fedgen.server.screen.plain_view import end_line
from fedgen.server.store import parts
from fedgen.server.store.journal import read_lines
from fedgen.tracking.observer import Observer, Plan
from fedgen.tracking.record import RoundRecord

FEDGEN = [sys.executable, "-m", "fedgen.server"]


def tiny(rounds: int = 6, **tables: Any) -> Experiment:
    return Experiment(
        data={"clients": 20},
        model={"name": "logistic"},
        federation={"rounds": rounds, "cohort": 5},
        runtime={"backend": "serial", "checkpoint_every": 2, "keep_checkpoints": 2},
        tracking={"report": False},
    ).replace(**tables)


def without_seconds(folder: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in line.items() if key != "seconds"} for line in read_lines(folder / "metrics.jsonl")
    ]


def test_folder_of_a_completed_run(tmp_path: Path) -> None:
    result = run(tiny(tracking={"report": True}), tmp_path / "run")
    assert (result.state, result.exit_code, result.rounds) == ("completed", 0, 6)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {
        "experiment.toml", "resolved.toml", "environment.json", "partition.json", "metrics.jsonl", "events.jsonl",
        "checkpoints", "model.safetensors", "result.json", "report.html", "figures",
    }  # fmt: skip
    assert names == {*parts.ALL, ".lock"} - {parts.EXHIBITS, parts.NETWORK}, (
        "those are of parts with exhibits and of gossip"
    )
    checkpoints = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert checkpoints == ["round-000004.safetensors", "round-000006.safetensors"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["sha256"] == result.sha256
    admitted = [event for event in read_lines(tmp_path / "run" / "events.jsonl") if event["event"] == "admitted"]
    assert [len(event["clients"]) for event in admitted] == [5] * 6


def test_history_is_arrays(tmp_path: Path) -> None:
    result = run(tiny(federation={"evaluate_every": 4}), tmp_path / "run")
    accuracy = result.history["accuracy"]
    assert accuracy.shape == (6,)
    assert np.isfinite(accuracy).tolist() == [False, False, False, True, False, True]
    assert accuracy[-1] == result.metrics["accuracy"]


def test_model_file_loads_into_a_plain_module(tmp_path: Path) -> None:
    result = run(tiny(), tmp_path / "run")
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    module.load_state_dict(load_file(result.folder / "model.safetensors"))


@pytest.mark.parametrize("played", [1, 2, 3, 5])
def test_lengthened_run_equals_a_whole_one(tmp_path: Path, played: int) -> None:
    whole = run(tiny(), tmp_path / "whole")
    run(tiny(rounds=played), tmp_path / "part")
    result = resume(tmp_path / "part", rounds=6)
    assert result.sha256 == whole.sha256
    assert without_seconds(tmp_path / "part") == without_seconds(tmp_path / "whole")


def test_resume_of_a_completed_run_changes_nothing(tmp_path: Path) -> None:
    first = run(tiny(), tmp_path / "run")
    again = resume(tmp_path / "run")
    assert (again.state, again.sha256, again.metrics) == (first.state, first.sha256, first.metrics)


def test_a_block_given_up_in_the_round_that_failed_the_run_is_tried_again(tmp_path: Path) -> None:
    whole = run(tiny(), tmp_path / "whole")
    run(tiny(rounds=3), tmp_path / "run")
    with (tmp_path / "run" / "events.jsonl").open("a") as events:
        events.write('{"event": "block_failed", "round": 3, "block": 0, "clients": [], "reason": "too slow"}\n')
    result = resume(tmp_path / "run", rounds=6)
    assert (result.state, result.sha256) == ("completed", whole.sha256)


def test_resume_without_any_checkpoint_starts_over(tmp_path: Path) -> None:
    whole = run(tiny(), tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    result = resume(tmp_path / "run")
    assert result.sha256 == whole.sha256
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 6


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_checkpoint_falls_back(tmp_path: Path, damage: str) -> None:
    whole = run(tiny(), tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "round-000006.safetensors"
    data = bytearray(newest.read_bytes())
    data[-5] ^= 1
    newest.write_bytes({"cut": bytes(data[: len(data) // 2]), "flipped": bytes(data), "empty": b""}[damage])
    result = resume(tmp_path / "run")
    assert (result.state, result.exit_code) == ("degraded", 3)
    assert result.message.startswith("1 checkpoint damaged (round-000006.safetensors is damaged")
    assert result.sha256 == whole.sha256
    [event] = [
        each for each in read_lines(tmp_path / "run" / "events.jsonl") if each["event"] == "checkpoint_fell_back"
    ]
    assert "round-000006.safetensors is damaged" in event["reason"]


def test_all_checkpoints_damaged_is_an_error(tmp_path: Path) -> None:
    run(tiny(), tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(FedgenError, match=r"no checkpoint in .* can be read"):
        resume(tmp_path / "run")


def test_resume_refuses_another_experiment(tmp_path: Path) -> None:
    run(tiny(), tmp_path / "run")
    with pytest.raises(SettingError, match="no longer describe the experiment"):
        resume(tmp_path / "run", overrides={"training.batch_size": 7})
    with pytest.raises(SettingError, match="--rounds 3: this run is planned for 6 rounds"):
        resume(tmp_path / "run", rounds=3)


def test_resume_refuses_other_data(tmp_path: Path) -> None:
    run(tiny(), tmp_path / "run")
    path = tmp_path / "run" / "environment.json"
    environment = json.loads(path.read_text())
    environment["data"]["sha256"] = "0" * 64
    path.write_text(json.dumps(environment))
    with pytest.raises(SettingError, match="its hash differs"):
        resume(tmp_path / "run")


def test_a_run_folder_has_one_owner(tmp_path: Path) -> None:
    from fedgen.server.store.run_folder import locked

    run(tiny(), tmp_path / "run")
    with locked(tmp_path / "run"), pytest.raises(SettingError, match="in use by another process"):
        resume(tmp_path / "run")


def test_too_few_admitted_updates_skip_the_round(tmp_path: Path) -> None:
    result = run(tiny(aggregation={"norm_limit": 1e-9}), tmp_path / "run")
    assert (result.state, result.exit_code, result.rounds) == ("degraded", 3, 6)
    events = read_lines(tmp_path / "run" / "events.jsonl")
    assert sum(event["event"] == "skipped" for event in events) == 6
    assert sum(event["event"] == "rejected" for event in events) == 30
    untouched = Experiment().replace(data={"clients": 20}, model={"name": "logistic"})
    from fedgen.federation import Federation

    start = Federation(untouched).method.initial_state(0)["model"]
    kept = torch.cat([value.flatten() for value in load_file(result.folder / "model.safetensors").values()])
    assert sorted(start.tolist()) == sorted(kept.tolist())


class Heard(Observer):
    """Remembers what a run said; stops the run in its second round where asked to."""

    def __init__(self, stop: bool = False) -> None:
        self.stop = stop
        self.said: list[str] = []
        self.earlier: list[int] = []

    def start(self, plan: Plan) -> None:
        self.earlier = [record.round for record in plan.earlier]

    def doing(self, what: str) -> None:
        self.said.append(what)

    def round(self, record: RoundRecord) -> None:
        if self.stop and record.round == 1:
            signal.raise_signal(signal.SIGINT)

    def end(self, result: Result) -> None:
        self.said.append(end_line(replace(result, seconds=2.0, metrics={})))


def test_what_a_person_is_told_of_a_stop_and_a_resume(tmp_path: Path) -> None:
    folder, heard = tmp_path / "my run", Heard(stop=True)
    run(tiny(tracking={"report": True}), folder, observers=[heard])
    go_on = f"`fedgen resume '{folder}'` continues this run"
    assert [words for words in heard.said if words] == [
        "stopping: the unfinished round is dropped; Ctrl-C again ends at once",
        f"■ stopped after 2 rounds in 2.0 s: {go_on} (report: {folder}/report.html)",
    ]
    assert read_lines(folder / "events.jsonl")[-1] == {"event": "stopped", "reason": "before round 2"}
    assert (go_on in (folder / "report.html").read_text().replace("&#39;", "'")) is True
    resume(folder, observers=[again := Heard()])
    assert again.earlier == [0, 1]
    assert again.said[-1] == f"✓ completed after 6 rounds in 2.0 s (report: {folder}/report.html)"


def start_command(folder: Path, **settings: object) -> subprocess.Popen[str]:
    tables = {"federation.rounds": 100_000, "runtime.backend": "serial", "runtime.checkpoint_every": 50, **settings}
    experiment = folder.parent / "experiment.toml"
    experiment.write_text('[data]\nclients = 20\n[model]\nname = "logistic"\n')
    sets = [word for key, value in tables.items() for word in ("--set", f"{key}={value}")]
    return subprocess.Popen(
        [*FEDGEN, "run", str(experiment), "--out", str(folder), "--json", *sets],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def wait_for_rounds(folder: Path, rounds: int, process: subprocess.Popen[str]) -> None:
    while len(read_lines(folder / "metrics.jsonl")) < rounds:
        assert process.poll() is None, "the run ended early"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    process = start_command(tmp_path / "run")
    wait_for_rounds(tmp_path / "run", 20, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    last = json.loads(output.splitlines()[-1])
    assert (process.returncode, last["state"]) == (130, "stopped")
    assert last["rounds"] == len(read_lines(tmp_path / "run" / "metrics.jsonl"))
    assert (tmp_path / "run" / "report.html").exists()
    assert_continues(tmp_path / "run", last["rounds"])


def test_killed_driver_leaves_the_hash(tmp_path: Path) -> None:
    process = start_command(tmp_path / "run", **{"runtime.checkpoint_every": 7})
    wait_for_rounds(tmp_path / "run", 20, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert_continues(tmp_path / "run", len(read_lines(tmp_path / "run" / "metrics.jsonl")))


def assert_continues(folder: Path, played: int) -> None:
    """The interrupted run, played to a few rounds more, equals one that was never interrupted."""
    resolved = folder / "resolved.toml"  # nobody waits for 100,000 rounds
    resolved.write_text(resolved.read_text().replace("rounds = 100000", f"rounds = {played + 5}"))
    interrupted = resume(folder, overrides={"tracking.report": False})
    whole = Experiment(
        data={"clients": 20}, model={"name": "logistic"}, federation={"rounds": played + 5},
        runtime={"backend": "serial"}, tracking={"report": False},
    )  # fmt: skip
    assert interrupted.sha256 == run(whole, folder.parent / "whole").sha256
    assert len(read_lines(folder / "metrics.jsonl")) == played + 5


def test_runs_of_one_moment_have_folders_of_their_own(
    tiny: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody named them, and their names hold the time in seconds: two threads get two folders."""
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(lambda _: run(tiny()), range(3)))
    assert len({result.folder for result in results}) == 3
    assert {result.state for result in results} == {"completed"}


DROPS = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(), nn.Linear(32, 10))
"""


@pytest.mark.parametrize("engine", ["reference", "sequential"])
def test_runs_in_threads_have_the_hash_of_runs_one_by_one(
    engine: str, tiny: Callable[..., Experiment], tmp_path: Path, user_module: Callable[[str, str], Path]
) -> None:
    """Torch's generator is of the whole process: a thread that draws does not change what another draws."""
    user_module("drops", DROPS)
    experiments = [
        tiny(experiment={"seed": seed}, model={"name": "drops:Net"}, training={"engine": engine, "steps": 3})
        for seed in range(4)
    ]
    expected = [run(each, tmp_path / f"one{place}").sha256 for place, each in enumerate(experiments)]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda place: run(experiments[place], tmp_path / f"many{place}"), range(4)))
    assert [result.sha256 for result in results] == expected


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_a_log_that_cannot_be_read_is_named(
    name: str, tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    folder = run_in(tiny()).folder
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(SettingError, match=f"{name} cannot be read .*restore the file from a copy"):
        resume(folder, rounds=5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"resolved.toml has changed: .*restore the file from a copy, or start the run again: .*experiment.toml"),
        (
            "[data",
            r"resolved.toml is damaged or .* is not valid TOML: .*restore the file from a copy",
        ),
    ],
    ids=["empty", "broken"],
)
def test_a_damaged_plan_is_named_with_what_to_do(
    text: str, message: str, tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    folder = run_in(tiny()).folder
    (folder / "resolved.toml").write_text(text)
    with pytest.raises(SettingError, match=message):
        resume(folder, rounds=5)


@pytest.mark.parametrize(
    ("arguments", "recorded"),
    [
        (["/usr/bin/fedgen", "run", "a b.toml"], ["/usr/bin/fedgen", "run", "a b.toml"]),
        (["/src/fedgen/server/__main__.py", "run", "a.toml"], ["python", "-m", "fedgen.server", "run", "a.toml"]),
        (["study.py", "--seed", "3"], ["python", "study.py", "--seed", "3"]),
        ([], [""]),
    ],
)
def test_the_command_is_recorded_as_it_can_be_typed(arguments: list[str], recorded: list[str]) -> None:
    assert environment._command(arguments) == recorded
