"""The Ray pool: workers that die, blocks that kill or hang, clusters that are already there, shared memory."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgen import Experiment, Result, registry, resume, run
from fedgen.contracts import Context
from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.rows import LocalRows
from fedgen.server import ray_pool
from fedgen.server.checkpoint import Standing, digest
from fedgen.server.exchange import exchange
from fedgen.server.journal import Journal, read_lines
from fedgen.server.pool import Interrupt
from fedgen.server.ray_cluster import connect, ray_home
from fedgen.server.ray_pool import RayPool
from fedgen.server.session import Session
from fedgen.server.sliced_rows import SlicedRows
from fedgen.server.star import play_round
from fedgen.server.view import PlainView

BIG_CLIENT = 324
"""1,293 training samples over 4 clients: one of them, and only one, holds this many."""

MODULE = """
import os, time
from pathlib import Path
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))

    def forward(self, x):
        if self.training and len(x) == {size} and Path({marker!r}).exists():
            {deed}
        return self.layers(x)
"""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray, _ = connect(None, 2)
    yield
    ray.shutdown()


def experiment(rounds: int, **tables: Any) -> Experiment:
    return Experiment(
        data={"clients": 20},
        federation={"rounds": rounds, "cohort": 8},
        runtime={"workers": 2, "checkpoint_every": 5},
        tracking={"report": False},
    ).replace(**tables)


def descendants(name: str) -> list[int]:
    """Processes of this process's tree whose command line contains `name`."""
    parents: dict[int, int] = {}
    named = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if name in (folder / "cmdline").read_text():
                    named.append(int(folder.name))
            except OSError:
                continue

    def ours(pid: int) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    return [pid for pid in named if ours(pid)]


def kill_a_worker_after(folder: Path, rounds: int) -> None:
    while len(read_lines(folder / "metrics.jsonl")) < rounds:
        time.sleep(0.01)
    os.kill(descendants("ray::RayWorker")[0], signal.SIGKILL)


def test_killed_worker_leaves_the_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = run(experiment(40, runtime={"backend": "serial"}), tmp_path / "serial")
    killer = threading.Thread(target=kill_a_worker_after, args=(tmp_path / "ray", 2))
    killer.start()
    result = run(experiment(40), tmp_path / "ray", view=PlainView(sys.stdout))
    killer.join()
    output = capsys.readouterr().out
    assert output.splitlines()[1] == "starting 2 Ray workers ..."
    assert "raylet" not in output
    assert (result.state, result.sha256) == ("completed", expected.sha256)
    [retry] = [event for event in read_lines(tmp_path / "ray" / "events.jsonl") if event["event"] == "retried"]
    assert "took its place" in retry["reason"]


def with_deed(folder: Path, deed: str, monkeypatch: pytest.MonkeyPatch, **runtime: Any) -> Experiment:
    name = f"net_{hashlib.sha256(deed.encode()).hexdigest()[:8]}"
    marker = folder / "marker"
    marker.touch()
    (folder / f"{name}.py").write_text(MODULE.format(size=BIG_CLIENT, marker=str(marker), deed=deed))
    monkeypatch.syspath_prepend(str(folder))
    return Experiment(
        data={"clients": 4, "partition": "iid"},
        model={"name": f"{name}:Net"},
        training={"engine": "reference", "batch_size": 1000, "block": 1},
        federation={"rounds": 2, "cohort": 4},
        runtime={"workers": 2, **runtime},
        tracking={"report": False},
    )


def failed_blocks(folder: Path) -> list[dict[str, Any]]:
    return [event for event in read_lines(folder / "events.jsonl") if event["event"] == "block_failed"]


def assert_one_client_lost(result: Result, reason: str) -> None:
    assert (result.state, result.exit_code) == ("degraded", 3)
    events = failed_blocks(result.folder)
    assert [(event["round"], len(event["clients"])) for event in events] == [(0, 1), (1, 1)]
    assert all(reason in event["reason"] for event in events)
    assert [line["clients"]["admitted"] for line in read_lines(result.folder / "metrics.jsonl")] == [3, 3]


def test_block_that_kills_its_worker_ends_as_that_blocks_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_pool, "TASK_RETRIES", 1)
    deadly = with_deed(tmp_path, "os._exit(1)", monkeypatch)
    result = run(deadly, tmp_path / "run", search_path=(str(tmp_path),))
    assert_one_client_lost(result, "4 workers died of it, the last 2 of them alone with it")
    assert "lower runtime.workers or training.block where memory runs out" in result.message


def test_stuck_block_is_given_up_and_stays_so_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = with_deed(tmp_path, "time.sleep(3600)", monkeypatch, block_timeout_s=20.0)
    result = run(stuck, tmp_path / "run", search_path=(str(tmp_path),))
    assert_one_client_lost(result, "no answer within runtime.block_timeout_s = 20")
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        checkpoint.unlink()
    (tmp_path / "marker").unlink()
    again = resume(tmp_path / "run", overrides={"runtime.backend": "serial"})
    assert again.sha256 == result.sha256
    assert_one_client_lost(again, "no answer within runtime.block_timeout_s = 20")


def test_worker_that_does_not_start_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "START_TIMEOUT_S", 0.5)
    with pytest.raises(FedgenError, match=r"runtime.workers = 50: the Ray cluster did not start them"):
        RayPool(Federation(experiment(1)), 50, Interrupt())


def test_every_rule_has_the_bits_of_local_rows_where_slices_stay_with_the_workers(tmp_path: Path) -> None:
    """One exchange of four blocks in many slices, then every registered rule over the same handles."""
    chosen = experiment(1, training={"block": 3}, aggregation={"rule": "median", "slice": 1024})
    federation = Federation(chosen.replace(federation={"cohort": 12}))
    pool, journal = RayPool(federation, 2, Interrupt()), Journal(tmp_path)
    try:
        session = Session(federation, pool, Standing(0, federation.method.initial_state(0)), journal)
        broadcast = federation.method.broadcast(session.standing.state, 0)
        inbox = exchange(session, broadcast, federation.cohort(0, everyone=False)).inbox
        assert isinstance(inbox.rows, SlicedRows)
        local, root = LocalRows(inbox.rows.collect(), 1024), inbox.rows.collect().mean(0)
        context = Context(broadcast.start, broadcast.expects, inbox.clients, 2, root=root)
        for name in registry.members("rule"):
            rule = registry.build("rule", name, {}, facts=federation.facts)
            here, there = (rule.aggregate(rows, inbox.weights, context) for rows in (local, inbox.rows))
            assert torch.equal(here.aggregate, there.aggregate), name
    finally:
        pool.close()
        journal.close()


def test_broadcasts_are_not_written_to(tmp_path: Path) -> None:
    """What a worker receives is the driver's memory: whatever it does with it, the driver's bytes stay."""
    federation = Federation(
        experiment(3, training={"keep_optimizer": True, "optimizer": {"name": "sgd", "momentum": 0.9}})
    )
    pool = RayPool(federation, 2, Interrupt())
    journal = Journal(tmp_path)
    try:
        session = Session(federation, pool, Standing(0, federation.method.initial_state(0)), journal)
        for _ in range(3):
            state, clients = session.standing.state, session.standing.clients
            before = digest(state), digest(clients.tensors())
            sent = federation.method.broadcast(state, session.standing.round)
            sent_before = digest({"start": sent.start, **sent.tensors})
            play_round(session, evaluate=True)
            assert digest(state) == before[0]
            assert digest({"start": sent.start, **sent.tensors}) == sent_before
            assert session.standing.state is not state
    finally:
        pool.close()
        journal.close()


def test_ray_folder_is_private_and_short() -> None:
    assert ray_home().stat().st_mode & 0o077 == 0
    assert (ray_home() / "token").stat().st_mode & 0o177 == 0
    assert len(str(ray_home())) < 40


def test_address_where_nobody_listens_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(FedgenError, match=r"runtime.address = '127.0.0.1:9'"):
        connect("127.0.0.1:9", 1)


def test_machines_of_a_cluster_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(experiment(1))
    federation.experiment = federation.experiment.replace(runtime={"address": "auto"})
    events: list[tuple[str, str]] = []
    real = ray_pool.introduction(federation)
    monkeypatch.setattr(ray_pool, "introduction", lambda _: {**real, "processor": "another"})
    RayPool(federation, 1, Interrupt(), on_event=lambda *event: events.append(event)).close()
    [(event, reason)] = events
    assert event == "mixed_machines"
    assert "another" in reason
    monkeypatch.setattr(ray_pool, "introduction", lambda _: {**real, "data": "other"})
    with pytest.raises(FedgenError, match=r"holds other data .*runtime.data_dir"):
        RayPool(federation, 1, Interrupt())


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"ray ended with {process.returncode}")


@pytest.mark.slow
def test_command_joins_a_cluster_that_is_there(tmp_path: Path) -> None:
    """`ray start --head` in a process of its own, then `fedgen run --address`: the same hash as alone."""
    file = tmp_path / "experiment.toml"
    file.write_text('[data]\nclients = 20\n[model]\nname = "logistic"\n[federation]\nrounds = 2\ncohort = 4\n')
    home = ray_home() / "there"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_A")}
    ray = str(Path(sys.executable).with_name("ray"))
    environment["RAY_AUTH_MODE"] = "disabled"
    start = [ray, "start", "--head", "--block", "--port=6399", "--num-cpus=2", "--include-dashboard=false"]
    head = subprocess.Popen(
        [*start, f"--temp-dir={home}", "--disable-usage-stats"],
        env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for_port(6399, head)
        words = [sys.executable, "-m", "fedgen.server", "run", str(file), "--address", "127.0.0.1:6399"]
        subprocess.run([*words, "--out", str(tmp_path / "joined")], env=environment, check=True, capture_output=True)
    finally:
        head.terminate()
        head.wait(timeout=60)
    assert descendants(str(home)) == []
    alone = run(experiment(2, model={"name": "logistic"}, federation={"cohort": 4}), tmp_path / "alone")
    assert (tmp_path / "joined" / "result.json").read_text().count(alone.sha256) == 1
