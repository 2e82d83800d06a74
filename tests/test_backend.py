"""`runtime.backend = "auto"`: where a run trains, why, and that it is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedgen.config import Experiment
from fedgen.federation import Federation
from fedgen.models.model import Model
from fedgen.server.report import run_record
from fedgen.server.report.tables import event_rows
from fedgen.server.run import backend
from fedgen.server.run.backend import START_S, Load, backend_of, decided, load_of
from fedgen.server.run.result import Result
from fedgen.server.run.start import resume, run
from fedgen.server.store.journal import read_lines
from fedgen.tracking.observer import Observer
from fedgen.training.cost import sample_flops

LARGE = Load(blocks=8, block_s=1.0, sending_s=0.01, rounds=100, workers=4)


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.sum(-1)


# What a sample costs.


@pytest.mark.parametrize(
    ("make", "shape", "forward"),
    [
        (lambda: nn.Linear(64, 10), (64,), 2 * 64 * 10),
        (lambda: nn.Conv2d(1, 4, 3, bias=False), (1, 8, 8), 2 * 9 * 4 * 36),
        (lambda: nn.Embedding(50, 8), (6,), 2 * 50 * 8),
    ],
    ids=["a product", "a convolution", "no product: two a parameter"],
)
def test_operations_are_counted(make: Callable[[], nn.Module], shape: tuple[int, ...], forward: int) -> None:
    x = torch.zeros(4, *shape, dtype=torch.int64 if shape == (6,) else torch.float32)
    assert sample_flops(Model(make, loss, {}), x) == pytest.approx(3 * forward, rel=0.02)


def test_a_module_that_fails_counts_its_parameters() -> None:
    assert sample_flops(Model(lambda: nn.Linear(4, 2), loss, {}), torch.zeros(2, 5)) == 3 * 2 * 10


# The decision.


def test_a_large_load_is_for_ray() -> None:
    found = decided(LARGE)
    assert found.name == "ray"
    assert found.reason == "8 blocks per round of about 1.0 s each in 100 rounds: workers save about 9 min 52 s"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blocks": 1}, "a round is one block"),
        ({"workers": 1}, "there is one CPU core"),
        ({"block_s": 0.001}, "8 blocks per round of about 1 ms each are too small to be sent"),
        ({"rounds": 1}, "in 1 round: workers would save about 5.9 s, but Ray takes 10 s to start"),
    ],
    ids=["one block", "one core", "small blocks", "a short run"],
)
def test_others_stay_in_the_process(change: dict[str, Any], words: str) -> None:
    found = decided(replace(LARGE, **change))
    assert found.name == "serial"
    assert words in found.reason


@given(
    blocks=st.integers(1, 50), block_ms=st.integers(0, 10_000), sending_ms=st.integers(0, 1_000),
    rounds=st.integers(0, 1_000), workers=st.integers(1, 64),
)  # fmt: skip
def test_ray_is_chosen_where_it_saves_its_start(
    blocks: int, block_ms: int, sending_ms: int, rounds: int, workers: int
) -> None:
    block_s, sending_s = block_ms / 1000, sending_ms / 1000
    load = Load(blocks, block_s, sending_s, rounds, workers)
    alone, beside = blocks * block_s, -(-blocks // workers) * block_s + blocks * sending_s
    assert (decided(load).name == "ray") == (rounds * (alone - beside) > START_S + 1e-6)


@pytest.mark.parametrize(("block", "cores"), [(100, 2), (1, 1)], ids=["one block", "one core"])
def test_nothing_is_counted_where_workers_cannot_save_time(
    block: int, cores: int, tiny: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counting takes a second when it is done first, as long as the whole of a small run."""
    counted: list[Any] = []
    monkeypatch.setattr(backend, "sample_flops", lambda *given: counted.append(given) or 1.0)
    monkeypatch.setattr(backend, "default_workers", lambda: cores)
    federation = Federation(tiny(training={"block": block}, runtime={"backend": "auto"}))
    assert backend_of(federation, 5, {}).name == "serial"
    assert counted == []
    monkeypatch.setattr(backend, "default_workers", lambda: 2)
    assert backend_of(Federation(tiny(training={"block": 1}, runtime={"backend": "auto"})), 5, {}).name == "serial"
    assert len(counted) == 1


# What a federation has to do.


def test_the_load_of_a_star(tiny: Callable[..., Experiment]) -> None:
    """12 clients in blocks of 5, each with its share of the samples three times."""
    federation = Federation(tiny(training={"steps": None, "epochs": 3, "block": 5}, federation={"cohort": 12}))
    load = load_of(federation, 7)
    samples = 3 * sum(map(len, federation.shards)) / 12
    assert (load.blocks, load.rounds) == (3, 7)
    assert load.block_s == pytest.approx(5 * samples * 3 * 2 * 650 / backend.FLOPS_A_SECOND, rel=0.05)
    steps = load_of(Federation(tiny(training={"steps": 4, "batch_size": 16, "block": 5})), 7)
    assert steps.blocks == 1, "four of the twelve clients take part"
    assert steps.block_s == pytest.approx(4 * 64 * 3 * 2 * 650 / backend.FLOPS_A_SECOND, rel=0.05)


def test_the_load_of_gossip(tiny: Callable[..., Experiment]) -> None:
    """All peers in rounds; in virtual time, those whose training of ten ticks ends in one; models go both ways."""
    training = {"block": 1}
    rounds = load_of(Federation(tiny(training=training, federation={"mode": "gossip"})), 1)
    ticks = load_of(Federation(tiny(training=training, federation={"mode": "gossip"}, gossip={"clock": "events"})), 1)
    star = load_of(Federation(tiny(training=training)), 1)
    assert (rounds.blocks, ticks.blocks, star.blocks) == (12, 2, 4)
    assert rounds.sending_s > star.sending_s


@pytest.mark.parametrize(
    ("runtime", "variables", "asked"),
    [
        ({"address": "10.0.0.5:6379"}, {}, "runtime.address"),
        ({"address": "local"}, {"RAY_ADDRESS": "10.0.0.5:6379"}, "runtime.address"),
        ({}, {"RAY_ADDRESS": "10.0.0.5:6379"}, "RAY_ADDRESS"),
        ({"workers": 2}, {}, "runtime.workers"),
        ({}, {"RAY_ADDRESS": ""}, ""),
        ({}, {}, ""),
    ],
)
def test_who_names_a_ray_gets_it(
    runtime: dict[str, Any], variables: dict[str, str], asked: str, tiny: Callable[..., Experiment]
) -> None:
    found = backend_of(Federation(tiny(runtime={"backend": "auto", **runtime})), 2, variables)
    assert (found.name, found.reason) == (
        ("ray", f"{asked} is given")
        if asked
        else ("serial", "a round is one block, which one worker would train alone")
    )


@pytest.mark.parametrize("name", ["serial", "ray"])
def test_who_names_a_backend_gets_it(name: str, tiny: Callable[..., Experiment]) -> None:
    federation = Federation(tiny(runtime={"backend": name, "workers": 2}))
    assert backend_of(federation, 2, {"RAY_ADDRESS": "x"}) == backend.Backend(name)  # type: ignore[arg-type]


def test_a_heavy_experiment_goes_to_ray(tiny: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "default_workers", lambda: 4)
    heavy = tiny(
        model={"name": "mlp", "hidden": [2000]},
        training={"steps": 100, "block": 1},
        federation={"rounds": 100},
        runtime={"backend": "auto"},
    )
    assert backend_of(Federation(heavy), 100, {}).name == "ray"
    assert backend_of(Federation(heavy), 1, {}).name == "serial", "the rounds that are left count"
    monkeypatch.setattr(backend, "default_workers", lambda: 1)
    assert backend_of(Federation(heavy), 100, {}).name == "serial"


# A run says it.


class Listening(Observer):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, message: str) -> None:
        self.told.append(message)


REASON = "serial, as a round is one block, which one worker would train alone"


def said(folder: Path) -> list[str]:
    return [event["reason"] for event in read_lines(folder / "events.jsonl") if event["event"] == "backend"]


def test_view_and_log_say_what_was_decided(
    tiny: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    view = Listening()
    result = run(tiny(runtime={"backend": "auto"}), tmp_path / "run", observers=[view])
    assert result.state == "completed"
    assert view.told == [f"backend: {REASON}"]
    assert said(result.folder) == [REASON]
    assert event_rows(run_record.RunFolder.read(result.folder)) == [], "nothing out of the ordinary"


def test_who_has_chosen_is_told_nothing(tiny: Callable[..., Experiment], run_in: Callable[..., Result]) -> None:
    assert said(run_in(tiny()).folder) == []


def test_resume_decides_anew(tiny: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From "auto" to a backend that is named and back, with one hash; a run that is over has nothing to decide."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder, experiment = tmp_path / "run", tiny(runtime={"backend": "auto"})
    run(experiment, folder)
    assert 'backend = "auto"' in (folder / "resolved.toml").read_text()
    resume(folder, rounds=3, overrides={"runtime.backend": "serial"})
    assert 'backend = "serial"' in (folder / "resolved.toml").read_text()
    resumed = resume(folder, rounds=4, overrides={"runtime.backend": "auto"})
    assert said(folder) == [REASON, REASON]
    resume(folder)
    assert said(folder) == [REASON, REASON]
    assert resumed.sha256 == run(experiment.replace(federation={"rounds": 4}), tmp_path / "whole").sha256


def test_ray_is_started_where_it_is_asked_for(tiny: Callable[..., Experiment], tmp_path: Path, cluster: None) -> None:
    experiment = tiny(training={"block": 2}, runtime={"backend": "auto", "workers": 2})
    view = Listening()
    spread = run(experiment, tmp_path / "ray", observers=[view])
    assert view.told[0] == "backend: ray, as runtime.workers is given"
    assert spread.sha256 == run(experiment.replace(runtime={"backend": "serial"}), tmp_path / "serial").sha256
