"""Where methods stand still: on strongly convex quadratics with exact gradients every fixed point is known.

Client i holds n_i copies of one sample (a_i, b_i): f_i(w) = a_i (w - b_i)^2 / 2, two columns of w with the same a_i.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedgen import Experiment
from fedgen.server.run.start import Result
from fedgen.server.store.checkpoint import load_newest

PARTS = """
import torch
import numpy as np
from dataclasses import dataclass
from fedgen.data.dataset import Dataset

COUNTS = np.array([1, 2, 3, 6, 8])
CURVATURES = np.array([0.5, 1.0, 2.0, 1.5, 0.8])
CENTRES = np.array([[-3.0, 1.0], [2.0, 0.5], [5.0, -2.0], [0.0, 4.0], [1.0, -1.0]])


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return 0.5 * x[:, :1] * (self.w - x[:, 1:]) ** 2


def loss(outputs, targets):
    return outputs.sum(1)


@dataclass(frozen=True)
class Data:
    def load(self, folder):
        rows = np.concatenate([CURVATURES[:, None], CENTRES], axis=1).repeat(COUNTS, axis=0)
        x, y = torch.tensor(rows, dtype=torch.float32), torch.zeros(len(rows), dtype=torch.int64)
        return Dataset("quadratics", x, y, x[:1], y[:1], ("only",))


@dataclass(frozen=True)
class Split:
    def split(self, labels, clients, generator):
        ends = np.cumsum(COUNTS)
        return [np.arange(end - count, end) for end, count in zip(ends, COUNTS)]
"""
COUNTS = np.array([1.0, 2.0, 3.0, 6.0, 8.0])
CURVATURES = np.array([0.5, 1.0, 2.0, 1.5, 0.8])
CENTRES = np.array([[-3.0, 1.0], [2.0, 0.5], [5.0, -2.0], [0.0, 4.0], [1.0, -1.0]])
LR, STEPS = 0.1, 4


@pytest.fixture
def played(user_module: Callable[[str, str], Path], run_in: Callable[..., Result]) -> Callable[..., Result]:
    """played(name, **tables) -> the result of a run on the quadratics."""
    user_module("quadratics", PARTS)

    def play(name: str = "run", **tables: dict[str, Any]) -> Result:
        base: dict[str, dict[str, Any]] = {
            "experiment": {"seed": 4},
            "data": {"dataset": "quadratics:Data", "partition": "quadratics:Split", "clients": 5, "validation": 0.0},
            "model": {"name": "quadratics:Net", "loss": "quadratics:loss", "metrics": []},
            "training": {"steps": STEPS, "batch_size": 64, "optimizer": {"lr": LR}},
            "federation": {"rounds": 100, "cohort": 5, "evaluate_every": 100},
            "runtime": {"backend": "serial"},
            "tracking": {"report": False},
        }
        return run_in(Experiment(**{key: base.get(key, {}) | tables.get(key, {}) for key in base | tables}), name)

    return play


def model_of(result: Result) -> np.ndarray[Any, Any]:
    return load_file(result.folder / "model.safetensors")["w"].double().numpy()


def shares_of(weights: str) -> np.ndarray[Any, Any]:
    shares = COUNTS if weights == "samples" else np.ones(5)
    return shares / shares.sum()


def gradient(w: np.ndarray[Any, Any], shares: np.ndarray[Any, Any]) -> float:
    """Of the mean of all clients' losses, its largest coordinate."""
    return float(np.abs((shares * CURVATURES) @ (w - CENTRES)).max())


def pulled_to(shares: np.ndarray[Any, Any], pull: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Where updates pull_i (b_i - w) add up to nothing."""
    return (shares * pull) @ CENTRES / (shares @ pull)


# SCAFFOLD: the gradient goes to 0. In float32 w is known to 1e-7 of its size, and the gradient with it.


@pytest.mark.parametrize(("weights", "cohort"), [("samples", 1), ("samples", 3), ("equal", 2), ("samples", 5)])
def test_scaffold_reaches_the_optimum_for_any_cohort(weights: str, cohort: int, played: Callable[..., Result]) -> None:
    result = played(
        training={"method": "scaffold"},
        aggregation={"weights": weights},
        federation={"rounds": 150, "cohort": cohort, "evaluate_every": 150},
    )
    assert gradient(model_of(result), shares_of(weights)) < 1e-5


@pytest.mark.parametrize("weights", ["samples", "equal"])
def test_the_servers_control_is_the_mean_of_the_clients(weights: str, played: Callable[..., Result]) -> None:
    """After every round, with clients that were never admitted at zero."""
    for rounds in (1, 2, 7):
        result = played(
            f"run{rounds}",
            training={"method": "scaffold"},
            aggregation={"weights": weights},
            federation={"rounds": rounds, "cohort": 2},
            byzantine={"attack": "garbage", "clients": [3]},
        )
        loaded = load_newest(result.folder)
        assert loaded is not None
        controls = loaded[0].clients.take(torch.arange(5))["control"].double().numpy()
        assert not controls[3].any()
        np.testing.assert_allclose(loaded[0].state["control"].numpy(), shares_of(weights) @ controls, atol=1e-6)


@pytest.mark.parametrize("weights", ["samples", "equal"])
def test_who_is_always_rejected_leaves_scaffold_the_optimum_of_the_others(
    weights: str, played: Callable[..., Result]
) -> None:
    result = played(
        training={"method": "scaffold"},
        aggregation={"weights": weights},
        federation={"rounds": 150, "cohort": 3, "evaluate_every": 150},
        byzantine={"attack": "garbage", "clients": [2]},
    )
    others = shares_of(weights).copy()
    others[2] = 0
    assert gradient(model_of(result), others) < 1e-5
    assert gradient(model_of(result), shares_of(weights)) > 0.1


def test_scaffold_keeps_its_controls_where_the_schedule_has_come_to_rest(played: Callable[..., Result]) -> None:
    """A learning rate of 0 divides nothing by 0."""
    schedule = {"name": "cosine", "rounds": 3}
    result = played(training={"method": "scaffold", "schedule": schedule}, federation={"rounds": 6, "cohort": 2})
    assert result.state == "completed"
    assert np.isfinite(model_of(result)).all()


# Local SGD: each client moves a share of its way, 1 - (1 - lr a_i)^K; FedProx a share of another way.


@pytest.mark.parametrize(
    ("server", "weights"),
    [
        ({}, "samples"),
        ({}, "equal"),
        ({"momentum": 0.8, "lr": 0.5}, "samples"),
        ({"name": "adagrad", "tau": 0.1, "lr": 1.0}, "samples"),
        ({"name": "yogi", "tau": 1.0, "lr": 0.5}, "equal"),
        ({"name": "adam", "tau": 1.0, "lr": 0.5}, "samples"),
    ],
    ids=str,
)
def test_federated_averaging_comes_to_rest_where_its_updates_cancel(
    server: dict[str, Any], weights: str, played: Callable[..., Result]
) -> None:
    """Whatever the server optimiser: where the mean update is 0, none of them moves."""
    federation = {"rounds": 150, "cohort": 5, "server_optimizer": server, "evaluate_every": 150}
    result = played(aggregation={"weights": weights}, federation=federation)
    expected = pulled_to(shares_of(weights), 1 - (1 - LR * CURVATURES) ** STEPS)
    np.testing.assert_allclose(
        model_of(result), expected, atol=1e-3 if server.get("name") in ("adam", "yogi") else 1e-5
    )


def test_fedprox_comes_to_rest_where_its_updates_cancel(played: Callable[..., Result]) -> None:
    """A step contracts the way to (a_i b_i + mu w) / (a_i + mu) by 1 - lr (a_i + mu)."""
    mu = 0.7
    result = played(training={"proximal": mu})
    stiff = CURVATURES + mu
    pull = CURVATURES / stiff * (1 - (1 - LR * stiff) ** STEPS)
    np.testing.assert_allclose(model_of(result), pulled_to(shares_of("samples"), pull), atol=1e-5)


def test_worker_momentum_rests_where_local_sgd_does(played: Callable[..., Result]) -> None:
    federation = {"rounds": 220, "cohort": 5, "evaluate_every": 220}
    plain, wrapped = (
        played(f"run{len(wrappers)}", federation=federation, training={"wrappers": wrappers})
        for wrappers in ([], ["worker_momentum"])
    )
    np.testing.assert_allclose(model_of(wrapped), model_of(plain), atol=1e-5)


# Gossip: among peers that all hear one another, one exact step between averages leads to the optimum.


@pytest.mark.parametrize("wrapper", ["", "variance_correction", "delta_sum"])
def test_gossip_comes_to_rest_at_the_optimum(wrapper: str, played: Callable[..., Result]) -> None:
    result = played(
        training={"steps": 1},
        federation={"mode": "gossip", "cohort": 0.1, "rounds": 120, "evaluate_every": 120},
        gossip={"topology": "complete", "keep": 0.2},
        aggregation={"wrappers": [wrapper] if wrapper else []},
    )
    assert gradient(model_of(result), shares_of("equal")) < 1e-3
