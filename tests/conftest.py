"""What the tests share: hypothesis' settings, the data directory, a tiny experiment, parts that live for one test."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from fedgen import registry
from fedgen.config import Experiment
from fedgen.federation import Federation
from fedgen.process import prepare_process
from fedgen.server.run.result import Result
from fedgen.server.run.start import run

settings.register_profile("fedgen", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("fedgen")


RAY = {
    "test_delta_sum": 1,
    "test_gossip_survives": 1,
    "test_inbox_attacks": 1,
    "test_ray_nodes": 0,
    "test_ray_pool": 0,
    "test_surroundings": 0,
}
"""File whose tests start a Ray, or ask for `cluster` by case -> which of two processes runs them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that wait for Ray run in two processes, one after another in each."""
    for item in items:
        if item.path.stem in RAY or "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group(f"ray {RAY.get(item.path.stem, 1)}"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: two mostly wait for Ray."""
    return (os.cpu_count() or 1) + 1


@pytest.fixture(scope="session", autouse=True)
def process() -> None:
    """Threads and denormals as in every process of a run."""
    prepare_process(threads=1)


@pytest.fixture
def data_dir(request: pytest.FixtureRequest) -> Path:
    """The data directory, which holds the files that the test names: @pytest.mark.data("mnist/mnist.npz")."""
    marker = request.node.get_closest_marker("data")
    assert marker is not None, "a test that uses data_dir is marked data, with the files it reads"
    setting = os.environ.get("FEDGEN_DATA_DIR")
    if not setting:
        pytest.skip("FEDGEN_DATA_DIR is not set; `make test DATA=DIR` runs this test")
    for name in marker.args:
        if not (Path(setting) / name).exists():
            pytest.skip(f"FEDGEN_DATA_DIR={setting} does not hold {name}")
    return Path(setting)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Experiment]:
    """tiny(**tables) -> an experiment of two short serial rounds without a report, some keys of some tables changed."""
    base: dict[str, dict[str, Any]] = {
        "experiment": {"name": "tiny", "seed": 3},
        "data": {"clients": 12, "partition": "iid"},
        "model": {"name": "logistic"},
        "training": {"steps": 1, "batch_size": 16},
        "federation": {"rounds": 2, "cohort": 4},
        "runtime": {"backend": "serial"},
        "tracking": {"report": False},
    }

    def make(**tables: dict[str, Any]) -> Experiment:
        merged = {name: base.get(name, {}) | tables.get(name, {}) for name in base | tables}
        if merged["federation"].get("mode") == "gossip" and "cohort" not in tables["federation"]:
            del merged["federation"]["cohort"]  # of a star
        return Experiment(**merged)

    return make


@pytest.fixture(scope="session")
def federation(tiny: Callable[..., Experiment]) -> Federation:
    """What a worker of the tiny experiment holds; nothing changes it."""
    return Federation(tiny())


@pytest.fixture
def run_in(tmp_path: Path) -> Callable[..., Result]:
    """run_in(experiment, name) -> its result; the run folder is tmp_path / name."""

    def start(experiment: Experiment, name: str = "run") -> Result:
        return run(experiment, tmp_path / name)

    return start


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all runs of a file, for up to four workers, larger than the machine where that must be."""
    from fedgen.server.pools.ray_cluster import connect

    connection = connect(None, 4)
    yield
    connection.leave()


@pytest.fixture
def registered() -> Iterator[Callable[..., Any]]:
    """registry.register, for parts that are known during this test only."""
    before = {kind: dict(registry.members(kind)) for kind in registry.HOMES}
    yield registry.register
    for kind, members in before.items():
        registry._MEMBERS[kind] = members


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Path]]:
    """user_module(name, source) -> the file of a module of the user's own, which can be imported during this test."""
    written = []

    def write(name: str, source: str) -> Path:
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        written.append(name)
        return path

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in written:
        sys.modules.pop(name, None)


@pytest.fixture(scope="session")
def fingerprint() -> Callable[[Any], str]:
    """fingerprint(value) -> SHA-256 of every bit of the tensors in tensors, mappings, sequences and dataclasses."""

    def feed(sha: Any, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            sha.update(f"{value.dtype}{tuple(value.shape)}".encode())
            sha.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key, item in value.items():
                sha.update(str(key).encode())
                feed(sha, item)
        elif isinstance(value, list | tuple):
            for item in value:
                feed(sha, item)
        elif hasattr(value, "__dataclass_fields__"):
            feed(sha, {name: getattr(value, name) for name in value.__dataclass_fields__})
        elif isinstance(value, int | float | str | None):
            sha.update(repr(value).encode())

    def take(value: Any) -> str:
        sha = hashlib.sha256()
        feed(sha, value)
        return sha.hexdigest()

    return take
