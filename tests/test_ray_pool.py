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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgen import Experiment, Result, registry, resume, run
from fedgen.contracts import Context
from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.rows import LocalRows
from fedgen.server.pools import ray_cluster, ray_pool
from fedgen.server.pools.pool import BlockFailure, Interrupt
from fedgen.server.pools.ray_cluster import connect
from fedgen.server.pools.ray_pool import RayPool, RayWorker
from fedgen.server.pools.sliced_rows import SlicedRows
from fedgen.server.rounds.exchange import exchange
from fedgen.server.rounds.session import Session
from fedgen.server.rounds.star import Star
from fedgen.server.screen.plain_view import PlainView
from fedgen.server.store.checkpoint import Standing, digest
from fedgen.server.store.journal import Journal, read_lines
from fedgen.server.store.ray_home import ray_home

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
    connection = connect(None, 2)
    yield
    connection.leave()


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
    result = run(experiment(40), tmp_path / "ray", observers=[PlainView(sys.stdout)])
    killer.join()
    output = capsys.readouterr().out
    assert output.splitlines()[1:3] == [
        "note: backend: ray, as runtime.workers is given",
        "starting 2 Ray workers ...",
    ]
    assert "raylet" not in output
    assert (result.state, result.sha256) == ("completed", expected.sha256)
    [retry] = [event for event in read_lines(tmp_path / "ray" / "events.jsonl") if event["event"] == "retried"]
    assert "its blocks are computed again" in retry["reason"]


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
    monkeypatch.setattr(ray_pool, "DEATHS", 1)
    deadly = with_deed(tmp_path, "os._exit(1)", monkeypatch)
    result = run(deadly, tmp_path / "run", search_path=(str(tmp_path),))
    assert_one_client_lost(result, "2 workers died while they computed it, the last 1 with no other block")
    assert "if memory runs out, lower runtime.workers or training.block" in result.message


def sleeps(federation: Federation, shared: int, number: int) -> int:
    """A task that hangs at one number."""
    if number == shared:
        time.sleep(3600)
    return number


def test_stuck_block_is_given_up() -> None:
    with pool_of(2, experiment(1)) as (pool, _):
        assert list(pool.map(sleeps, range(4), -1)) == [0, 1, 2, 3]
        pool._block_timeout_s = 5.0
        given_up = BlockFailure("no answer within runtime.block_timeout_s = 5")
        assert list(pool.map(sleeps, range(4), 1)) == [0, given_up, 2, 3]


@pytest.mark.slow
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


def pid(federation: Federation, shared: None, number: int) -> int:
    """A task that says who computed it."""
    return os.getpid()


@contextmanager
def pool_of(workers: Any, chosen: Experiment, folder: Path | None = None) -> Iterator[tuple[RayPool, list[str]]]:
    """(a pool, what was told of it as "event: reason")."""
    told: list[str] = []
    search_path = () if folder is None else (str(folder),)
    federation = Federation(chosen)
    pool = RayPool(federation, workers, Interrupt(), search_path, lambda event, why: told.append(f"{event}: {why}"))
    try:
        yield pool, told
    finally:
        pool.close()


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Ray of two CPUs is one that somebody else has started in this process."""
    monkeypatch.setattr(ray_cluster, "_home", None)
    monkeypatch.setattr(ray_cluster, "_USERS", [])


def test_more_workers_than_cpus_go_on_with_those_that_start(foreign: None) -> None:
    began = time.monotonic()
    with pool_of(50, experiment(1)) as (pool, told):
        assert time.monotonic() - began < ray_pool.PATIENCE_S
        assert len(set(pool.map(pid, range(20), None))) == 2
    joined, missing = told
    assert joined.startswith("joined: uses the Ray at ")
    assert missing.startswith("workers: 2 of 50 Ray workers run: the cluster has 2 CPUs, ")


def test_auto_is_the_clusters_cpus(foreign: None, monkeypatch: pytest.MonkeyPatch) -> None:
    hired: list[int] = []
    monkeypatch.setattr(ray_pool, "default_workers", lambda: 7)
    monkeypatch.setattr(RayPool, "_start", lambda self, workers: hired.append(workers))
    with pool_of("auto", experiment(1)):
        assert hired == [2]
    with pool_of("auto", experiment(1).replace(training={"threads": 2})):
        assert hired == [2, 1]


def test_workers_without_a_cpu_end_the_run_and_come_when_there_is_one(foreign: None) -> None:
    import ray

    holder = ray.remote(num_cpus=2)(RayWorker).remote()
    ray.get(holder.__ray_ready__.remote())
    short = experiment(1, runtime={"worker_timeout_s": 2.0})
    with pytest.raises(
        FedgenError, match=r"within runtime.worker_timeout_s = 2: the cluster has 2 CPUs, 0 of them free"
    ):
        RayPool(Federation(short), 2, Interrupt())
    threading.Timer(2.0, ray.kill, [holder]).start()
    with pool_of(1, experiment(1)) as (pool, _):
        assert len(list(pool.map(pid, [0, 1], None))) == 2


def in_first_worker(folder: Path, deed: str, monkeypatch: pytest.MonkeyPatch, **runtime: Any) -> Experiment:
    """An experiment whose own module does something in the first worker process that imports it."""
    name = f"first_{hashlib.sha256(deed.encode()).hexdigest()[:8]}"
    (folder / f"{name}.py").write_text(
        "import os, time, torch\nfrom pathlib import Path\n"
        f"if os.getpid() != {os.getpid()}:\n"
        "    try:\n"
        f"        Path({str(folder / 'marker')!r}).touch(exist_ok=False)\n"
        f"        {deed}\n"
        "    except FileExistsError:\n"
        "        pass\n"
        "class Net(torch.nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    return experiment(1, model={"name": f"{name}:Net"}, runtime=runtime)


def test_worker_that_hangs_while_it_starts_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "PATIENCE_S", 0.5)
    with pool_of(2, in_first_worker(tmp_path, "time.sleep(3600)", monkeypatch), tmp_path) as (pool, told):
        assert told[-1] == "workers: 1 of 2 Ray workers run: their start takes long or hangs"
        [hung] = [seat for seat in pool._seats if not seat.greeted]
        hung.since -= pool._worker_timeout_s
        deadline = time.monotonic() + 60
        while not told[-1].startswith("workers: all") and time.monotonic() < deadline:
            assert list(pool.map(pid, [0], None))
    assert told[-1] == "workers: all 2 Ray workers run"


def test_worker_that_dies_while_it_starts_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pool_of(1, in_first_worker(tmp_path, "os._exit(1)", monkeypatch), tmp_path) as (pool, _):
        assert (tmp_path / "marker").exists()
        assert list(pool.map(pid, [0], None))
    (tmp_path / "marker").unlink()
    monkeypatch.setattr(ray_pool, "DEATHS", 0)  # the first try is the last
    with pytest.raises(FedgenError, match=r"a Ray worker did not start in 1 tries \(ActorDiedError"):
        RayPool(Federation(in_first_worker(tmp_path, "os._exit(1)", monkeypatch)), 1, Interrupt(), (str(tmp_path),))


def test_worker_that_cannot_even_be_made_is_named_with_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where fedgen is not installed."""

    class Absent:
        def __init__(self) -> None:
            raise ModuleNotFoundError("No module named 'fedgen'")

        def greet(self, told: Any) -> None: ...

    monkeypatch.setattr(ray_pool, "RayWorker", Absent)
    monkeypatch.setattr(ray_pool, "DEATHS", 0)
    with pytest.raises(FedgenError, match=r"\(ModuleNotFoundError: No module named 'fedgen' on node [\d.:a-f]+\)$"):
        RayPool(Federation(experiment(1)), 1, Interrupt())


def test_what_keeps_a_worker_from_starting_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = in_first_worker(tmp_path, "import not_there_at_all", monkeypatch)
    with pytest.raises(FedgenError) as raised:
        RayPool(Federation(lacking), 1, Interrupt(), (str(tmp_path),))
    assert str(raised.value) == (
        "a Ray worker on this machine did not start: No module named 'not_there_at_all'; install it on that machine or "
        "put it beside the experiment file"
    )


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
            Star().play_round(session, evaluate=True)
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
    with pytest.raises(FedgenError, match=r"runtime.address = '127.0.0.1:9'\): ConnectionRefusedError"):
        connect("127.0.0.1:9", 1)


def test_machines_of_a_cluster_are_compared(foreign: None, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation(experiment(1))
    events: list[tuple[str, str]] = []
    real = ray_pool.introduction(federation)
    monkeypatch.setattr(ray_pool, "introduction", lambda _: {**real, "processor": "another"})
    RayPool(federation, 1, Interrupt(), on_event=lambda *event: events.append(event)).close()
    _, (event, reason) = events
    assert event == "mixed_machines"
    assert "node" in reason
    assert "another" in reason
    monkeypatch.setattr(ray_pool, "introduction", lambda _: {**real, "data": "other"})
    with pytest.raises(FedgenError, match=r"has different data .*runtime.data_dir"):
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
