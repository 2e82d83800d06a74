"""A user's own modules: the engine that is chosen trains them as a plain loop would, or says why it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgen import Experiment, registry, run
from fedgen.contracts import Block, Samples
from fedgen.errors import SettingError
from fedgen.evaluation.losses import cross_entropy
from fedgen.federation import Federation
from fedgen.models.model import Model
from fedgen.streams import Streams
from fedgen.training.batches import draw_batches
from fedgen.training.choose import choose_engine
from fedgen.training.optimizers import Sgd
from fedgen.training.trainer import Task


def twice() -> nn.Module:
    relu = nn.ReLU()
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), relu, nn.Linear(8, 8), relu, nn.Linear(8, 3))


def shared() -> nn.Module:
    layer = nn.Linear(8, 8)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), layer, nn.Tanh(), layer, nn.Linear(8, 3))


class Doubled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)  # type: ignore[no-any-return]


class Branch(nn.Module):
    """What vmap cannot take: a branch on a number."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(x.flatten(1))
        return outputs if float(outputs.sum()) > -1e9 else -outputs


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
    module[1].weight.requires_grad_(False)
    return module


def images(*layers: nn.Module, size: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers, nn.Flatten(), nn.Linear(size, 3))


MODULES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a layer without parameters twice": (twice, "stacked"),
    "a layer with parameters twice": (shared, "vmap"),
    "a sequence with its own forward": (
        lambda: Doubled(nn.Flatten(), nn.Linear(36, 3)),
        "vmap",
    ),
    "reflecting padding": (images(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), size=72), "vmap"),
    "dilation": (images(nn.Conv2d(1, 2, 3, dilation=2), size=8), "vmap"),
    "groups": (images(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 3, groups=2), size=32), "vmap"),
    "padded pooling": (images(nn.MaxPool2d(3, padding=1), size=4), "vmap"),
    "rounded up pooling": (images(nn.MaxPool2d(4, ceil_mode=True), size=4), "vmap"),
    "a branch": (Branch, "sequential"),
    "frozen parameters": (frozen, "vmap"),
    "dropout": (lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)), "stacked"),
    "dropout in a sequence with its own forward": (
        lambda: Doubled(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)),
        "sequential",
    ),
}


def task_of(make: Callable[[], nn.Module]) -> Task:
    torch.manual_seed(0)
    first = make()
    state = first.state_dict()

    def again() -> nn.Module:
        module = make()
        module.load_state_dict(state)
        return module

    model = Model(again, cross_entropy, {})
    counts = torch.tensor([5, 3, 1])
    x, y = torch.randn(3, 5, 1, 6, 6), torch.randint(3, (3, 5))
    start = model.initial(Streams(0), 0).expand(3, -1)
    block = Block(torch.arange(3), start, Samples.of(x, y), counts, {}, 0, Streams(0))
    seeds = torch.tensor([7, 8, 9])
    optimizer = Sgd(lr=0.1, momentum=0.9, weight_decay=0.1)
    kept = optimizer.state(start[:, : model.parameters.size])
    return Task(model, start, block.samples, draw_batches(block, 2, 2, None), optimizer, kept, seeds=seeds)


@pytest.mark.parametrize("name", MODULES)
def test_the_chosen_engine_trains_as_the_reference_does(name: str) -> None:
    make, expected = MODULES[name]
    task = task_of(make)
    engine, reason = choose_engine("auto", task.model, task.samples.x[0], task.samples.y[0])
    assert engine == expected
    assert bool(reason) == (engine == "sequential")
    fast, slow = (registry.build("engine", each, {}).train(task) for each in (engine, "reference"))
    torch.testing.assert_close(fast.rows, slow.rows, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.losses, slow.losses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, (_, engine) in MODULES.items() if engine == "vmap"])
def test_the_stacked_engine_is_refused_where_it_would_be_wrong(name: str) -> None:
    task = task_of(MODULES[name][0])
    with pytest.raises(SettingError, match=r"training.engine 'stacked' cannot train this model"):
        choose_engine("stacked", task.model, task.samples.x[0], task.samples.y[0])


@pytest.mark.parametrize("name", [name for name, (_, engine) in MODULES.items() if engine == "sequential"])
def test_vmap_is_refused_before_the_run_where_it_would_fail_or_be_wrong(name: str) -> None:
    task = task_of(MODULES[name][0])
    with pytest.raises(SettingError, match=r"training.engine 'vmap' cannot train this model .*; use 'auto'"):
        choose_engine("vmap", task.model, task.samples.x[0], task.samples.y[0])


def test_frozen_parameters_stay_and_are_not_sent() -> None:
    model = task_of(frozen).model
    assert list(model.layout.shapes) == ["1.bias", "3.weight", "3.bias"]
    before = model.fresh().state_dict()
    after = model.state_dict(torch.zeros(model.layout.size))
    assert torch.equal(after["1.weight"], before["1.weight"])
    assert not after["3.weight"].any()


def own(name: str, folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"{name}.py").write_text("import torch\n" + source)
    monkeypatch.syspath_prepend(str(folder))


def experiment(**tables: Any) -> Experiment:
    return Experiment(
        data={"clients": 12},
        federation={"rounds": 2, "cohort": 6},
        runtime={"backend": "serial"},
        tracking={"report": False},
    ).replace(**tables)


NUMPYS = """
import numpy, random
class Net(torch.nn.Module):
    def __init__(self, source="numpy"):
        super().__init__()
        self.source, self.layer = source, torch.nn.Linear(64, 10)
    def forward(self, x):
        noise = numpy.random.rand() if self.source == "numpy" else random.random()
        return self.layer(x.flatten(1)) + noise
"""


@pytest.mark.parametrize("source", ["numpy", "python"])
def test_random_numbers_that_do_not_begin_anew_are_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own("noisy", tmp_path, NUMPYS, monkeypatch)
    with pytest.raises(SettingError, match="draws from numpy's or Python's random numbers"):
        Federation(experiment(model={"name": "noisy:Net", "source": source}))


SHARED_DRAWS = """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)
    def forward(self, x):
        return self.layer(torch.nn.functional.dropout(x.flatten(1), 0.3, self.training))
"""


def test_what_a_client_draws_does_not_depend_on_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own("functional", tmp_path, SHARED_DRAWS, monkeypatch)
    settings = {"model": {"name": "functional:Net"}}
    together, alone = (
        run(experiment(**settings, training={"block": block}), tmp_path / str(block)) for block in (6, 1)
    )
    assert alone.metrics["train_loss"] == pytest.approx(together.metrics["train_loss"], rel=1e-5)


# A single sample under BatchNorm.


@pytest.mark.parametrize("length", [{"epochs": 2}, {"steps": 5}], ids=str)
def test_a_last_batch_of_one_sample_joins_the_one_before(length: dict[str, int], tmp_path: Path) -> None:
    """Digits over 20 equal clients, 65 samples each: batches of 32 leave one."""
    settings = {
        "data": {"clients": 20, "partition": "iid", "validation": 0.0957},
        "model": {"norm": "batch"},
        "training": length,
    }
    federation = Federation(experiment(**settings))
    assert (federation.counts == 65).any()
    result = run(experiment(**settings), tmp_path / "run")
    assert result.state == "completed"


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"training": {"batch_size": 1}}, "training.batch_size = 1: Sequential cannot be trained on a single sample"),
        ({"data": {"clients": 1200, "partition": "iid"}, "federation": {"cohort": 6}}, "clients hold no more: "),
        (
            {"data": {"clients": 12}, "aggregation": {"rule": {"name": "fltrust", "root_samples": 1}}},
            "aggregation.rule.root_samples = 1: Sequential cannot be trained on a single sample",
        ),
    ],
    ids=["batch size", "clients", "root"],
)
def test_a_single_sample_is_refused_before_the_run(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Federation(experiment(model={"norm": "batch"}, **tables))
    Federation(experiment(model={"norm": "layer"}, **tables))


DROPPING = """
class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Dropout(0.3), torch.nn.Linear(64, 10))
"""


def test_dropout_gives_one_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own("dropping", tmp_path, DROPPING, monkeypatch)
    settings = {"model": {"name": "dropping:Net"}}
    first = run(experiment(**settings), tmp_path / "first")
    torch.rand(5)
    assert run(experiment(**settings), tmp_path / "second").sha256 == first.sha256
    alone = run(experiment(**settings, training={"block": 1}), tmp_path / "alone")
    assert alone.metrics["train_loss"] == pytest.approx(first.metrics["train_loss"], rel=1e-5)


MEASURES = """
class Squared:
    def __call__(self, outputs, targets):
        wanted = torch.nn.functional.one_hot(targets, 10).float()
        return (outputs - wanted).square().mean(-1)

def cross_entropy(outputs, targets):
    return 0.0 * outputs.sum(-1)

def scalar(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets)
"""


def test_own_losses_are_what_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own("measures", tmp_path, MEASURES, monkeypatch)
    squared = run(experiment(model={"name": "logistic", "loss": "measures:Squared"}), tmp_path / "squared")
    assert 0.05 < squared.metrics["loss"] < 0.3
    nothing = run(experiment(model={"name": "logistic", "loss": "measures:cross_entropy"}), tmp_path / "nothing")
    assert nothing.metrics["train_loss"] == 0


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"loss": "measures:scalar"}, r"model.loss 'measures:scalar' must give one number a sample.*it gave \(\)"),
        ({"metrics": ["measures:scalar"]}, r"model.metrics 'measures:scalar' must give"),
        ({"loss": "mean_squared_error"}, r"model.loss 'mean_squared_error' must give one number a sample"),
    ],
)
def test_measures_that_do_not_fit_are_refused(
    table: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own("measures", tmp_path, MEASURES, monkeypatch)
    with pytest.raises(SettingError, match=named):
        Federation(experiment(model={"name": "logistic", **table}))


def test_worker_momentum_leaves_controls_alone(tmp_path: Path) -> None:
    """With SCAFFOLD inside, the server's control stays the mean of the clients' controls: all take part every round."""
    federation = Federation(
        experiment(
            training={"method": "scaffold", "wrappers": ["worker_momentum"]},
            federation={"cohort": 1.0},
            aggregation={"weights": "equal"},
        )
    )
    state = federation.method.initial_state(0)
    broadcast = federation.method.broadcast(state, 0)
    [clients] = federation.cohort(0, everyone=True)
    update = federation.method.client_update(broadcast, federation.block(clients, broadcast.start, {}, 0))
    size = len(broadcast.start)
    assert torch.equal(update.rows[:, size:], update.client_state["control"])
    assert torch.equal(update.rows[:, :size], update.client_state["worker_momentum"])
