"""A cluster of two nodes of one CPU each, on this machine: who gets in, and a node that dies in mid-run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedgen import run
from fedgen.errors import FedgenError
from fedgen.server.experiment_file import load_experiment
from fedgen.server.pools import cluster_door
from fedgen.server.pools.cluster_door import admitted
from fedgen.server.store.journal import read_lines
from fedgen.server.store.ray_home import ray_home

TOKEN = "a-token-of-this-test-with-32-characters"

FILE = """
[data]
clients = 20
[model]
name = "mine:Net"
[training]
block = 1
[federation]
rounds = 60
cohort = 8
[aggregation]
rule = "median"
[tracking]
report = false
"""

MODULE = """
import torch
from beside import WIDTH

class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, 10))
"""


@dataclass
class Cluster:
    address: str
    token: Path
    environment: dict[str, str]
    second: Path

    def raylet_of_second(self) -> int | None:
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    words = (folder / "cmdline").read_text()
                except OSError:
                    continue
                if "raylet/raylet" in words and f"{self.second}/" in words:
                    return int(folder.name)
        return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    home = ray_home()
    token = home / "cluster-token"
    token.touch(mode=0o600)
    token.write_text(TOKEN)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    address = f"127.0.0.1:{free_port()}"
    there = Cluster(address, token, environment, home / "n2")

    def start(folder: Path, *where: str) -> subprocess.Popen[bytes]:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", *where]
        return subprocess.Popen(
            [*command, f"--temp-dir={folder}", "--object-store-memory=100000000", "--disable-usage-stats"],
            env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    nodes = [start(home / "n1", "--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false")]
    try:
        wait_for(lambda: listens(address), nodes)
        nodes.append(start(home / "n2", f"--address={address}"))
        wait_for(lambda: there.raylet_of_second() is not None, nodes)
        yield there
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            try:
                node.wait(timeout=10)
            except subprocess.TimeoutExpired:  # Ray may wait a minute for what was killed before
                node.kill()
                node.wait(timeout=10)


def wait_for(done: object, nodes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 60
    assert callable(done)
    while not done():
        assert time.monotonic() < deadline
        assert all(node.poll() is None for node in nodes)
        time.sleep(0.1)


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_token_that_is_missing_or_another_is_named(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FedgenError, match=r"requires a token, and this process has none: set RAY_AUTH_TOKEN_PATH"):
        admitted(cluster.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another-token-that-is-long-enough-for-ray")
    with pytest.raises(FedgenError, match=r"requires a token, and rejects the one of RAY_AUTH_TOKEN"):
        admitted(cluster.address)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(f"{TOKEN}\n")
    assert admitted(cluster.address) == {"RAY_AUTH_MODE": "token"}


def test_whoever_listens_but_is_no_cluster_is_named_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_door, "PROBE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(FedgenError, match="what listens there does not answer as Ray does"):
            admitted(f"127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < 10
    with pytest.raises(FedgenError, match="the address of a dashboard"):
        admitted("http://127.0.0.1:8265")


def test_run_goes_on_without_a_node_that_died(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RAY_ADDRESS as in a Ray job, one worker a CPU of the cluster, own modules: the hash of a serial run."""
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "beside.py").write_text("WIDTH = 32\n")
    file, folder = tmp_path / "experiment.toml", tmp_path / "run"
    file.write_text(FILE)
    words = [sys.executable, "-m", "fedgen.server", "run", str(file), "--out", str(folder)]
    environment = {**cluster.environment, "RAY_ADDRESS": cluster.address}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        while len(read_lines(folder / "metrics.jsonl")) < 3:
            assert process.poll() is None
            time.sleep(0.02)
        raylet = cluster.raylet_of_second()
        assert raylet is not None
        os.kill(raylet, signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert f"note: joined the Ray cluster at RAY_ADDRESS = {cluster.address}" in output
    told = [event for event in read_lines(folder / "events.jsonl") if event["event"] in ("retried", "workers")]
    assert "its blocks are computed again" in told[0]["reason"]
    monkeypatch.syspath_prepend(str(tmp_path))
    expected = run(
        load_experiment(file, {"runtime.backend": "serial"}), tmp_path / "serial", search_path=(str(tmp_path),)
    )
    assert (folder / "result.json").read_text().count(expected.sha256) == 1
