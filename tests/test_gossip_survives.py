"""Gossip in both clocks when processes are killed: the hash is that of the run that nothing happened to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedgen import Experiment, Result, resume, run
from fedgen.server.store.journal import read_lines

CLOCKS: dict[str, dict[str, dict[str, Any]]] = {
    "rounds": {"faults": {"loss": 0.1, "churn": 0.02, "away": 3}},
    "events": {
        "gossip": {"clock": "events", "protocol": "push_pull"},
        "virtual_time": {"training_ticks": [1, 3], "delay": [0, 3]},
        "faults": {"loss": 0.1},
    },
}
ROUNDS, KILLED_AFTER = 16, 3

DEADLY = """
import os
from dataclasses import dataclass
from pathlib import Path
import torch
from fedgen.aggregation.median import Median

def die_once(name):
    try:
        Path({folder!r}, name).unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), 9)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Linear(8, 10))

    def forward(self, x):
        if self.training:
            die_once("train")
        return self.layers(x)

@dataclass(frozen=True, kw_only=True)
class Rule(Median):
    def aggregate(self, rows, weights, context):
        die_once("merge")
        return super().aggregate(rows, weights, context)
"""


def tables(clock: str) -> dict[str, dict[str, Any]]:
    """Twelve peers on a random 4-regular graph, two of which lie, with all that a run remembers: momentum, drift of the
    variance, letters."""
    return {
        "data": {"clients": 12},
        "model": {"name": "mlp", "hidden": [8]},
        "training": {"steps": 1, "batch_size": 8, "block": 4, "optimizer": {"name": "sgd", "momentum": 0.5}},
        "federation": {"mode": "gossip", "rounds": ROUNDS, "evaluate_every": 10},
        **CLOCKS[clock],
        "aggregation": {"wrappers": ["variance_correction"]},
        "byzantine": {"attack": "sign_flip", "clients": 2},
        "runtime": {"backend": "serial", "checkpoint_every": 7},
        "tracking": {"report": False},
    }


def hashes(result: Result) -> tuple[str, str | None]:
    assert result.state == "completed"
    assert result.client_sha256 is not None
    return result.sha256, result.client_sha256


def wait_for_rounds(folder: Path, rounds: int, running: Callable[[], bool]) -> None:
    while len(read_lines(folder / "metrics.jsonl")) < rounds:
        assert running(), "the run ended early"
        time.sleep(0.01)


@pytest.mark.parametrize("phase", ["train", pytest.param("merge", marks=pytest.mark.slow)])
@pytest.mark.parametrize("clock", CLOCKS)
def test_a_worker_killed_inside_a_round_leaves_the_hash(
    clock: str, phase: str, cluster: None, tmp_path: Path, user_module: Callable[[str, str], Path]
) -> None:
    user_module(f"deadly_{clock}_{phase}", DEADLY.format(folder=str(tmp_path)))
    own = {
        "model": {"name": f"deadly_{clock}_{phase}:Net"},
        "training": {**tables(clock)["training"], "engine": "vmap"},
    }
    rule = {"rule": f"deadly_{clock}_{phase}:Rule", "wrappers": ["variance_correction"], "slice": 64}
    experiment = Experiment(**{**tables(clock), **own, "aggregation": rule})
    expected = hashes(run(experiment, tmp_path / "serial"))
    spread = experiment.replace(runtime={"backend": "ray", "workers": 2})
    finished = threading.Event()

    def kill() -> None:
        wait_for_rounds(tmp_path / "ray", KILLED_AFTER, lambda: not finished.is_set())
        (tmp_path / phase).touch()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        result = run(spread, tmp_path / "ray", search_path=(str(tmp_path),))
    finally:
        finished.set()
        killer.join()
    assert hashes(result) == expected
    assert not (tmp_path / phase).exists(), "a worker met its death"
    [retry] = [event for event in read_lines(result.folder / "events.jsonl") if event["event"] == "retried"]
    assert "its blocks are computed again" in retry["reason"]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("clock", CLOCKS)
def test_a_killed_driver_resumes_to_the_hash(
    clock: str, workers: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """kill -9 between two checkpoints of a serial run, gone on with in this process or on two workers."""
    runtime: dict[str, Any] = {"backend": "serial"}
    if workers:
        request.getfixturevalue("cluster")
        runtime = {"backend": "ray", "workers": workers}
    endless = {**tables(clock), "federation": {**tables(clock)["federation"], "rounds": 100_000}}
    script = (
        "import json, sys; from fedgen import Experiment, run; run(Experiment(**json.loads(sys.argv[1])), sys.argv[2])"
    )
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", script, json.dumps(endless), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_rounds(folder, 20, lambda: process.poll() is None)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    rounds = len(read_lines(folder / "metrics.jsonl")) + 5
    overrides = {f"runtime.{key}": value for key, value in runtime.items()}
    resolved = folder / "resolved.toml"  # nobody waits for 100,000 rounds
    resolved.write_text(resolved.read_text().replace("rounds = 100000", f"rounds = {rounds}"))
    resumed = resume(folder, overrides=overrides)
    whole = Experiment(**tables(clock)).replace(federation={"rounds": rounds})
    assert hashes(resumed) == hashes(run(whole, tmp_path / "whole"))
    assert [record["round"] for record in read_lines(folder / "metrics.jsonl")] == list(range(rounds))
