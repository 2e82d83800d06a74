"""training.device: what is on a GPU stays there, and what is of the host is brought to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import fedgen.training.learner
from fedgen import registry
from fedgen.aggregation.base import BaseRule
from fedgen.config import Experiment
from fedgen.contracts import Aggregation, Context, Rows
from fedgen.device import HOST, device_of, on_host
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.server.run.backend import backend_of
from fedgen.server.run.result import Result, RunFailed
from fedgen.server.run.start import resume
from fedgen.server.store.checkpoint import load_newest

RunIn = Callable[..., Result]
Tiny = Callable[..., Experiment]


def _pretended() -> ModuleType:
    spec = spec_from_file_location("pretended", Path(__file__).with_name("pretended.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PRETENDED = _pretended()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Experiments with device = "cuda" find a pretended GPU."""

    def chosen(name: str) -> torch.device:
        return PRETENDED.GPU if name == "cuda" else HOST

    monkeypatch.setattr(fedgen.training.learner, "device_of", chosen)
    with PRETENDED.PretendedGpu():
        yield PRETENDED.GPU


def test_the_pretended_gpu_refuses_tensors_of_the_host(gpu: torch.device) -> None:
    there, here = torch.ones(3, device=gpu), torch.ones(3)
    assert there.device == gpu
    assert on_host(there).device == HOST
    with pytest.raises(RuntimeError, match="one device"):
        there + here
    with pytest.raises(RuntimeError, match="numpy"):
        there.numpy()
    there.add_(1)
    assert there.tolist() == [2, 2, 2]


def both(tiny: Tiny, run_in: RunIn, **tables: dict[str, Any]) -> tuple[Result, Result]:
    """The same experiment on the host and on the GPU, by an engine that both have."""
    training = {"engine": "sequential", **tables.pop("training", {})}
    return (
        run_in(tiny(**tables, training={**training, "device": "cpu"}), "cpu"),
        run_in(tiny(**tables, training={**training, "device": "cuda"}), "cuda"),
    )


def same(on_cpu: Result, on_gpu: Result) -> None:
    """The pretended GPU computes as the CPU does, so that only the order of some sums differs."""
    assert on_gpu.state == on_cpu.state
    assert on_gpu.metrics.keys() == on_cpu.metrics.keys()
    for name, value in on_cpu.metrics.items():
        assert on_gpu.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


STAR: dict[str, dict[str, Any]] = {
    "aggregation": {"f": 1},
    "byzantine": {"clients": 3},
    "federation": {"cohort": 8},
    "data": {"validation": 0.2},
}


@pytest.mark.parametrize("engine", ["sequential", "vmap", "reference"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_engines_and_optimizers_train_on_the_gpu(
    engine: str, optimizer: str, tiny: Tiny, run_in: RunIn, gpu: torch.device
) -> None:
    chosen = {"name": optimizer, **({"momentum": 0.9} if optimizer == "sgd" else {})}
    training = {"engine": engine, "optimizer": chosen, "keep_optimizer": True, "clip_norm": 1.0, "proximal": 0.1}
    same(*both(tiny, run_in, training={**training, "epochs": 2, "steps": None}))


@pytest.mark.parametrize("method", list(registry.members("method")))
def test_methods_run_on_the_gpu(method: str, tiny: Tiny, run_in: RunIn, gpu: torch.device) -> None:
    same(*both(tiny, run_in, training={"method": method, "wrappers": ["worker_momentum"]}))


@pytest.mark.parametrize("optimizer", list(registry.members("server_optimizer")))
def test_server_optimizers_run_on_the_gpu(optimizer: str, tiny: Tiny, run_in: RunIn, gpu: torch.device) -> None:
    same(*both(tiny, run_in, federation={"server_optimizer": optimizer}))


@pytest.mark.parametrize("rule", list(registry.members("rule")))
def test_rules_run_on_the_gpu(rule: str, tiny: Tiny, run_in: RunIn, gpu: torch.device) -> None:
    same(*both(tiny, run_in, **(STAR | {"aggregation": {"f": 1, "rule": rule}})))


@dataclass(frozen=True, kw_only=True)
class WithNumpy(BaseRule):
    """The mean, by numpy; `host` is a field so that both can be tried."""

    host: bool = True

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        last = context.memory.get("last", context.reference * 0)
        mean = torch.from_numpy(rows.collect().numpy().mean(0)) + 0 * last
        return Aggregation(mean, memory={"last": mean})


def test_a_rule_of_the_host_gets_copies_and_another_may_not_use_numpy(
    tiny: Tiny, run_in: RunIn, gpu: torch.device, registered: Callable[..., Any]
) -> None:
    registered("rule", "with_numpy")(WithNumpy)
    same(*both(tiny, run_in, aggregation={"rule": "with_numpy"}))
    on_gpu = tiny(aggregation={"rule": {"name": "with_numpy", "host": False}}, training={"device": "cuda"})
    with pytest.raises(RunFailed, match="numpy"):
        run_in(on_gpu, "without")


@pytest.mark.parametrize("wrapper", sorted(set(registry.members("rule_wrapper")) - {"delta_sum"}))
def test_rule_wrappers_run_on_the_gpu(wrapper: str, tiny: Tiny, run_in: RunIn, gpu: torch.device) -> None:
    same(*both(tiny, run_in, **(STAR | {"aggregation": {"f": 1, "rule": "median", "wrappers": [wrapper]}})))


@pytest.mark.parametrize("attack", list(registry.members("attack")))
def test_attacks_run_on_the_gpu(attack: str, tiny: Tiny, run_in: RunIn, gpu: torch.device) -> None:
    tables = STAR | {"aggregation": {"f": 1, "rule": "median"}, "byzantine": {"clients": 3, "attack": attack}}
    same(*both(tiny, run_in, **tables))


def test_ggeur_runs_on_the_gpu(tiny: Tiny, run_in: RunIn, gpu: torch.device) -> None:
    wrapper = {"name": "ggeur", "prototypes": 2, "target": 20, "minimum_count": 2}
    same(*both(tiny, run_in, training={"wrappers": [wrapper]}, tracking={"report": False}))


@pytest.mark.parametrize(
    "model", [{"name": "cnn", "padding": 1}, {"name": "mlp", "dropout": 0.1}, {"name": "mlp", "norm": "batch"}]
)
def test_models_run_on_the_gpu(model: dict[str, Any], tiny: Tiny, run_in: RunIn, gpu: torch.device) -> None:
    same(*both(tiny, run_in, model=model))


def test_what_is_saved_is_of_the_host_and_a_run_goes_on_from_it(tiny: Tiny, run_in: RunIn, gpu: torch.device) -> None:

    tables: dict[str, dict[str, Any]] = {
        "training": {"method": "scaffold", "engine": "sequential", "device": "cuda"},
        "federation": {"rounds": 2, "cohort": 4, "server_optimizer": "adam"},
    }
    whole = run_in(tiny(**tables | {"federation": {**tables["federation"], "rounds": 4}}), "whole")
    half = run_in(tiny(**tables), "half")
    loaded = load_newest(half.folder)
    assert loaded is not None
    assert {each.device for each in loaded[0].tensors().values()} == {HOST}
    assert resume(half.folder, rounds=4).sha256 == whole.sha256


def test_samples_rows_and_models_are_on_the_device(tiny: Tiny, gpu: torch.device) -> None:
    federation = Federation(tiny(training={"device": "cuda"}))
    clients = federation.cohort(0, everyone=False)[0]
    state = federation.method.initial_state(0)
    block = federation.block(clients, state["model"], {}, 0)
    assert {each.device for each in (state["model"], block.start, block.x, block.y, block.mask)} == {gpu}
    assert {block.clients.device, block.counts.device} == {HOST}
    assert federation.evaluations[0].x.device == gpu
    assert federation.engine == "vmap"


def test_replicas_begin_on_the_gpu_as_on_the_host(tiny: Tiny, gpu: torch.device) -> None:
    here, there = (Federation(tiny(training={"device": name})).method.initial_state(3) for name in ("cpu", "cuda"))
    assert torch.equal(here["model"], on_host(there["model"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="is of machines without a GPU")
def test_a_gpu_that_is_not_there_is_refused_with_the_fix(tiny: Tiny) -> None:
    with pytest.raises(SettingError, match=r'^training\.device = "cuda": .*torch sees none here.*"cpu"'):
        Federation(tiny(training={"device": "cuda"}))
    assert device_of("cpu") == HOST


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"runtime": {"backend": "ray"}}, r'got runtime\.backend = "ray"; set runtime\.backend = "serial"'),
        ({"runtime": {"workers": 2}}, r'got runtime\.workers = "2"'),
        ({"runtime": {"address": "local"}}, r'got runtime\.address = "local"'),
        ({"federation": {"mode": "gossip"}}, r'expected federation\.mode = "star", got "gossip"'),
    ],
)
def test_a_gpu_is_of_one_process_and_of_a_star(tables: dict[str, dict[str, Any]], told: str, tiny: Tiny) -> None:
    with pytest.raises(SettingError, match=f'training\\.device = "cuda": .*{told}'):
        tiny(training={"device": "cuda"}, **tables)


def test_the_stacked_engine_is_refused_on_a_gpu(tiny: Tiny, gpu: torch.device) -> None:
    with pytest.raises(SettingError, match=r"'stacked' computes with numpy on the host.*'auto'"):
        Federation(tiny(training={"device": "cuda", "engine": "stacked"}))


def test_auto_trains_in_this_process_where_there_is_a_gpu(tiny: Tiny, gpu: torch.device) -> None:

    chosen = backend_of(Federation(tiny(training={"device": "cuda"}, runtime={"backend": "auto"})), 100)
    assert chosen.name == "serial"
    assert "cuda" in chosen.reason
