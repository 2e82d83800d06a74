"""One SHA-256 for serial and for any number of Ray workers, whole or resumed half-way."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from fedgen import Experiment, Result, registry, resume, run
from fedgen.federation import Federation

RULES = ["mean", "median", "trimmed_mean"]
ATTACKS = ["none", "sign_flip", "ipm"]
ROUNDS = 4


def experiment(rule: str, attack: str | dict[str, Any], **runtime: object) -> Experiment:
    return Experiment(
        data={"clients": 30},
        model={"hidden": [16]},
        training={"block": 3, "batch_size": 8, "optimizer": {"name": "sgd", "momentum": 0.5}, "keep_optimizer": True},
        federation={"rounds": ROUNDS, "cohort": 12, "server_optimizer": {"name": "sgd", "momentum": 0.5}},
        aggregation={"rule": rule, "f": 2, "slice": 64},
        byzantine={"attack": attack, "clients": 4},
        runtime={"checkpoint_every": 2, **runtime},
        tracking={"report": False},
    )


METHODS = ["sgd", "scaffold"]
OPTIMIZERS = [{"name": "sgd"}, {"name": "sgd", "momentum": 0.5, "nesterov": True}, {"name": "adam", "lr": 0.01}]
ENGINES = list(registry.members("engine"))


def trainings() -> list[dict[str, Any]]:
    """Every method with every optimiser it takes, on every engine; momentum of the workers around one of them."""
    combinations = [
        {"method": method, "optimizer": optimizer, "engine": engine, "batch_size": 8, "block": 5}
        for method, optimizer, engine in product(METHODS, OPTIMIZERS, ENGINES)
        if method != "scaffold" or optimizer == {"name": "sgd"}
    ]
    return [*combinations, {**combinations[0], "wrappers": ["worker_momentum"], "proximal": 0.1, "clip_norm": 1.0}]


def named(training: dict[str, Any]) -> str:
    parts = [training["method"], *training["optimizer"].values(), training["engine"], *training.get("wrappers", [])]
    return "-".join(map(str, parts))


def trained(training: dict[str, Any], **runtime: object) -> Experiment:
    """With the optimiser's state kept, blocks of five and a schedule."""
    kept = {**training, "keep_optimizer": True, "schedule": {"name": "cosine", "rounds": 10}}
    return experiment("mean", "none", **runtime).replace(training=kept)


def on_ray(folder: Path, rule: str, attack: str, workers: int) -> Result:
    return run(experiment(rule, attack, backend="ray", workers=workers), folder)


def serial(folder: Path, rule: str, attack: str) -> Result:
    return run(experiment(rule, attack, backend="serial"), folder)


def resumed(folder: Path, rule: str, attack: str) -> Result:
    run(experiment(rule, attack, backend="serial").replace(federation={"rounds": ROUNDS // 2}), folder)
    return resume(folder, rounds=ROUNDS)


def hashes(result: Result) -> tuple[str, str | None]:
    assert result.state == "completed"
    assert result.client_sha256 is not None
    return result.sha256, result.client_sha256


QUICK = {("mean", "none"), ("mean", "ipm"), ("median", "sign_flip")}
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
    for case in product(["mean", "median"], ATTACKS)
]


@pytest.mark.parametrize(("rule", "attack"), CASES)
def test_serial_two_workers_and_resumed(cluster: None, tmp_path: Path, rule: str, attack: str) -> None:
    expected = hashes(serial(tmp_path / "serial", rule, attack))
    assert hashes(on_ray(tmp_path / "ray", rule, attack, 2)) == expected
    assert hashes(resumed(tmp_path / "resumed", rule, attack)) == expected


SEARCHED: list[dict[str, Any]] = [{"name": "alie", "optimize": True}, {"name": "ipm", "optimize": True}]
REMEMBERING: dict[str, Any] = {"name": "free_rider", "noise": 0.01}


def attack_name(attack: dict[str, Any]) -> str:
    return "-".join([attack["name"], *(key for key in attack if key != "name")])


@pytest.mark.parametrize(
    "attack", [*({"name": name} for name in registry.members("attack")), *SEARCHED], ids=attack_name
)
def test_every_attack_resumes_to_the_same_hash(tmp_path: Path, attack: dict[str, Any]) -> None:
    """With Byzantine clients that are redrawn every round; an attack's memory is in the checkpoint."""
    whole = experiment("median", attack, backend="serial").replace(byzantine={"redraw": True})
    expected = hashes(run(whole, tmp_path / "whole"))
    run(whole.replace(federation={"rounds": 1}), tmp_path / "resumed")
    assert hashes(resume(tmp_path / "resumed", rounds=ROUNDS)) == expected


@pytest.mark.parametrize("attack", [SEARCHED[0], REMEMBERING, {"name": "forged"}], ids=attack_name)
def test_attacks_that_need_the_driver_or_the_wire_on_two_workers(
    cluster: None, tmp_path: Path, attack: dict[str, Any]
) -> None:
    whole = experiment("krum", attack, backend="serial")
    expected = hashes(run(whole, tmp_path / "serial"))
    assert hashes(run(experiment("krum", attack, backend="ray", workers=2), tmp_path / "ray")) == expected


@pytest.mark.parametrize("training", trainings(), ids=named)
def test_every_training_resumes_to_the_same_hash(tmp_path: Path, training: dict[str, Any]) -> None:
    whole = run(trained(training, backend="serial"), tmp_path / "whole")
    run(trained(training, backend="serial").replace(federation={"rounds": 2}), tmp_path / "resumed")
    again = resume(tmp_path / "resumed", rounds=ROUNDS)
    assert (again.sha256, again.client_sha256) == (whole.sha256, whole.client_sha256)


@pytest.mark.slow
@pytest.mark.parametrize("training", trainings(), ids=named)
def test_every_training_on_one_and_two_workers(cluster: None, tmp_path: Path, training: dict[str, Any]) -> None:
    whole = run(trained(training, backend="serial"), tmp_path / "whole")
    for workers in (1, 2):
        spread = run(trained(training, backend="ray", workers=workers), tmp_path / f"ray-{workers}")
        assert (spread.sha256, spread.client_sha256) == (whole.sha256, whole.client_sha256)


def test_a_setup_exchange_on_two_workers(cluster: None, tmp_path: Path) -> None:
    """Rows of statistics in half precision, gathered, then training on what they make; tests/test_ggeur.py has more."""
    ggeur = {"name": "ggeur", "target": 20, "prototypes": 4, "precision": "float16", "mode": "code", "start": "none"}
    changes = {"training": {"wrappers": [ggeur]}, "federation": {"rounds": 2}}
    expected = hashes(run(experiment("median", "ipm", backend="serial").replace(**changes), tmp_path / "serial"))
    spread = run(experiment("median", "ipm", backend="ray", workers=2).replace(**changes), tmp_path / "ray")
    assert hashes(spread) == expected


def test_the_work_is_spread_over_blocks() -> None:
    federation = Federation(experiment("mean", "none"))
    assert len(federation.cohort(0, everyone=False)) == 4


def test_experiments_differ(tmp_path: Path) -> None:
    seen = {hashes(serial(tmp_path / f"{rule}-{attack}", rule, attack)) for rule, attack in product(RULES, ATTACKS)}
    assert len(seen) == len(RULES) * len(ATTACKS)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "attack"), [*product(RULES, ATTACKS)])
def test_any_number_of_workers_three_times(cluster: None, tmp_path: Path, rule: str, attack: str) -> None:
    expected = hashes(serial(tmp_path / "serial", rule, attack))
    for workers, repeat in product([1, 2, 4], range(3)):
        assert hashes(on_ray(tmp_path / f"ray-{workers}-{repeat}", rule, attack, workers)) == expected
    run(experiment(rule, attack, workers=2).replace(federation={"rounds": 2}), tmp_path / "resumed")
    result = resume(tmp_path / "resumed", rounds=ROUNDS, overrides={"runtime.workers": 4})
    assert hashes(result) == expected
