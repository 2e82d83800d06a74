"""A run in what it finds around it: modules, signals, variables and threads of the process that calls it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from fedgen import Experiment, registry, run
from fedgen.clients import own_modules
from fedgen.clients.own_modules import packed
from fedgen.errors import FedgenError
from fedgen.process import prepare_process, process_kept
from fedgen.server.pools.pool import WorkLost
from fedgen.server.rounds.star import Star
from fedgen.server.run.life import REPLAYS
from fedgen.server.run.result import RunFailed
from fedgen.server.store.journal import read_lines
from fedgen.tracking.record import RoundRecord

FEDGEN = [sys.executable, "-m", "fedgen.server"]


def small(**tables: Any) -> Experiment:
    return Experiment(
        data={"clients": 20},
        model={"name": "logistic"},
        federation={"rounds": 3, "cohort": 4},
        runtime={"backend": "serial"},
        tracking={"report": False},
    ).replace(**tables)


def flushes() -> bool:
    return bool(np.float32(1e-40) * np.float32(1.0) == 0)


def test_process_is_afterwards_what_it_was(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        torch.set_flush_denormal(False)
        with threadpool_limits(2, user_api="blas") as limits:
            before = [each.num_threads for each in limits._controller.lib_controllers]
            variables, handler = dict(os.environ), signal.getsignal(signal.SIGTERM)
            run(small(), tmp_path / "run")
            with pytest.raises(FedgenError):
                run(small(federation={"rounds": 0}), tmp_path / "refused")
            assert (torch.get_num_threads(), flushes()) == (3, False)
            assert [each.num_threads for each in limits._controller.lib_controllers] == before
            assert (dict(os.environ), signal.getsignal(signal.SIGTERM)) == (variables, handler)
    finally:
        prepare_process(threads)


def test_libraries_are_given_back_by_the_last_of_two_runs() -> None:
    with threadpool_limits(2, user_api="blas") as limits:
        libraries = limits._controller.lib_controllers
        first, second = process_kept(), process_kept()
        before = [each.num_threads for each in libraries]
        first.__enter__()
        prepare_process(1)
        during = [each.num_threads for each in libraries]
        second.__enter__()
        first.__exit__(None, None, None)
        assert [each.num_threads for each in libraries] == during
        second.__exit__(None, None, None)
        assert [each.num_threads for each in libraries] == before
    prepare_process(1)


SCRIPT = """
import asyncio, os, signal, sys
import ray, torch

before = dict(os.environ), torch.get_num_threads(), signal.getsignal(signal.SIGTERM)

from fedgen import Experiment, run

async def notebook():
    experiment = Experiment(
        data={"clients": 20}, model={"name": "logistic"}, federation={"rounds": 3, "cohort": 4},
        runtime={"workers": 1, "address": "local"}, tracking={"report": False},
    )
    return run(experiment, sys.argv[1])

result = asyncio.run(notebook())
assert result.state == "completed"
assert (dict(os.environ), torch.get_num_threads(), signal.getsignal(signal.SIGTERM)) == before
assert not ray.is_initialized()
print(result.sha256)
"""


def test_ray_imported_before_and_settings_of_others_do_not_matter(tmp_path: Path) -> None:
    """As in a notebook: an event loop runs.  Addresses and tokens that others have set are of other clusters."""
    others = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "of-another-cluster", "RAY_ADDRESS": "127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "run")],
        env={**os.environ, **others},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == run(small(), tmp_path / "serial").sha256


def test_sigterm_while_ray_starts_ends_the_run_as_documented(tmp_path: Path) -> None:
    file, folder = tmp_path / "experiment.toml", tmp_path / "run"
    file.write_text('[data]\nclients = 20\n[model]\nname = "logistic"\n[tracking]\nreport = false\n')
    process = subprocess.Popen(
        [*FEDGEN, "run", str(file), "--out", str(folder), "--set", "runtime.workers=1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    while "starting" not in process.stdout.readline():
        assert process.poll() is None
    time.sleep(1.0)  # Ray takes longer
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped after 0 rounds" in output
    assert '"state": "stopped"' in (folder / "result.json").read_text()


SLOW_DATA = """
import time
from dataclasses import dataclass

@dataclass(frozen=True)
class Slow:
    def load(self, folder):
        print("loading", flush=True)
        time.sleep(3600)
"""


def test_sigterm_while_data_load_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "slow_data.py").write_text(SLOW_DATA)
    (tmp_path / "experiment.toml").write_text('[data]\ndataset = "slow_data:Slow"\n')
    process = subprocess.Popen(
        [*FEDGEN, "run", str(tmp_path / "experiment.toml"), "--out", str(tmp_path / "run")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "loading" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "fedgen: stopped\n")
    assert not (tmp_path / "run").exists()


def losing(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some rounds lose their work when they have almost ended."""
    whole, left = Star.play_round, [times]

    def play(self: Star, session: Any, evaluate: bool) -> RoundRecord:
        if session.standing.round == 1 and left[0]:
            left[0] -= 1
            session.journal.event("rejected", 1, client=0, reason="of a try that does not count")
            session.evaluate(session.standing.state)
            raise WorkLost("what a worker had computed was lost with its machine")
        return whole(self, session, evaluate)

    monkeypatch.setattr(Star, "play_round", play)


def test_round_whose_work_is_lost_is_played_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(small(), tmp_path / "whole")
    losing(REPLAYS, monkeypatch)
    result = run(small(), tmp_path / "run")
    assert (result.state, result.sha256) == ("completed", expected.sha256)
    events = read_lines(tmp_path / "run" / "events.jsonl")
    told = [event["reason"] for event in events if event["event"] == "retried"]
    assert told == ["round 1 is played again: what a worker had computed was lost with its machine"] * REPLAYS
    assert not any(event.get("reason") == "of a try that does not count" for event in events)
    losing(REPLAYS + 1, monkeypatch)
    with pytest.raises(RunFailed, match=r"lost with its machine; `fedgen resume .* continues once this is fixed"):
        run(small(), tmp_path / "failed")


def test_own_modules_reach_a_process_that_has_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules, packages, what they import later, and before other versions of the same name that lie elsewhere."""
    here, stale = tmp_path / "here", tmp_path / "stale"
    (here / "own_package").mkdir(parents=True)
    stale.mkdir()
    (here / "own_part.py").write_text("import own_package.inner\nclass Part:\n    value = own_package.inner.VALUE\n")
    (here / "own_package" / "__init__.py").write_text("")
    (here / "own_package" / "inner.py").write_text("VALUE = 7\n")
    (here / "own_package" / "later.py").write_text("VALUE = 8\n")
    (here / "own_beside.py").write_text("VALUE = 9\n")
    (stale / "own_part.py").write_text("raise RuntimeError('an old version')\n")
    monkeypatch.syspath_prepend(str(here))
    registry.find("loss", "own_part:Part")
    (tmp_path / "sent").write_bytes(pickle.dumps(packed((), {"own_part"})))
    for path in sorted(here.rglob("*.py")):
        path.unlink()
    code = (
        "import pickle, sys\n"
        f"pickle.load(open({str(tmp_path / 'sent')!r}, 'rb')).install()\n"
        "import own_part, own_package.later, own_beside\n"
        "print(own_part.Part.value, own_package.later.VALUE, own_beside.VALUE)\n"
    )
    paths = os.pathsep.join([str(stale), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.stdout == "7 8 9\n", done.stderr


def test_own_modules_have_a_size_limit_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_modules, "SIZE_LIMIT_BYTES", 2 << 20)
    (tmp_path / "own_small.py").write_text("class Part:\n    pass\n")
    (tmp_path / "own_large.py").write_text("#" * (3 << 20))
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.find("loss", "own_small:Part")
    with pytest.raises(FedgenError, match=r"have 3.0 MiB of Python files; at most 2 MiB can be sent to the nodes"):
        packed((str(tmp_path),), {"own_small"})


def test_only_what_the_experiment_names_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what other runs of this process have imported, nor Python's own modules."""
    for name in ("one_run", "other_run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"own_{name}.py").write_text("class Part:\n    pass\n")
        monkeypatch.syspath_prepend(str(tmp_path / name))
        registry.find("loss", f"own_{name}:Part")
    sent = packed((), {"own_one_run", "json"})
    assert list(sent.imported) == ["own_one_run"]


def test_installed_modules_and_fedgen_itself_are_not_sent(tmp_path: Path) -> None:
    sent = packed((str(Path(torch.__file__).parents[1]), str(Path(own_modules.__file__).resolve().parents[1])))
    assert not [name for name in sent.imported if name.partition(".")[0] in ("torch", "fedgen", "numpy")]
