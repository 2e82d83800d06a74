"""The accountant against closed forms and dp-accounting, and noise on statistics against its promise."""

from __future__ import annotations

from math import inf, log, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen import Experiment, run
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.geometry.statistics import statistics_of
from fedgen.geometry.uploads import Sums
from fedgen.privacy.accountant import ORDERS, epsilon, multiplier_for, rdp
from fedgen.privacy.noisy_sums import NoisySums


@given(st.floats(0.3, 20), st.sampled_from([1e-3, 1e-5, 1e-8]), st.integers(1, 50))
@settings(max_examples=50)
def test_the_gaussian_mechanism_is_cheaper_than_its_textbook_bound(
    multiplier: float, delta: float, releases: int
) -> None:
    """zCDP: rho = T / (2 sigma^2) gives at most rho + 2 sqrt(rho log(1 / delta)) (Bun and Steinke 2016)."""
    rho = releases / (2 * multiplier**2)
    best = min(rho * order + log(1 / delta) / (order - 1) for order in ORDERS)
    spent = epsilon(multiplier, delta, releases=releases)
    assert spent <= best
    assert spent <= (rho + 2 * sqrt(rho * log(1 / delta))) * 1.2
    assert epsilon(2 * multiplier, delta, releases=releases) <= spent
    assert epsilon(multiplier, delta, releases=releases + 1) >= spent


@pytest.mark.parametrize("order", [2.0, 5.0, 32.0])
def test_sampling_amplifies_between_nothing_and_all(order: float) -> None:
    whole = rdp(1.5, order)
    costs = [rdp(1.5, order, sampling) for sampling in (0.0, 0.01, 0.1, 0.5, 0.999999, 1.0)]
    assert costs == sorted(costs)
    assert costs[0] == 0
    assert costs[-2] == pytest.approx(whole, rel=1e-4)
    assert rdp(1.5, 2.5, 0.1) == rdp(0.0, order) == inf


@pytest.mark.parametrize("wanted", [0.1, 1.0, 8.0, 50.0])
@pytest.mark.parametrize("sampling", [1.0, 0.05])
def test_the_multiplier_is_the_least_that_keeps_the_promise(wanted: float, sampling: float) -> None:
    multiplier = multiplier_for(wanted, 1e-5, sampling, releases=10)
    assert epsilon(multiplier, 1e-5, sampling, releases=10) <= wanted
    assert epsilon(0.999 * multiplier, 1e-5, sampling, releases=10) > wanted


@pytest.mark.parametrize("multiplier", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("sampling", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("releases", [1, 100])
def test_the_accountant_agrees_with_dp_accounting(multiplier: float, sampling: float, releases: int) -> None:
    dp_accounting = pytest.importorskip("dp_accounting", reason="pip install dp-accounting runs this test")
    from dp_accounting.rdp import RdpAccountant

    orders = [float(order) for order in range(2, 129)]
    event: Any = dp_accounting.GaussianDpEvent(multiplier)
    if sampling < 1:
        event = dp_accounting.PoissonSampledDpEvent(sampling, event)
    accountant = RdpAccountant(orders)
    accountant.compose(event, releases)
    expected = accountant.get_epsilon(1e-5)
    assert epsilon(multiplier, 1e-5, sampling, releases, orders) == pytest.approx(expected, rel=1e-6)


def noisy(participants: int = 5, wanted: float = 2.0) -> NoisySums:
    return NoisySums(Sums(3, 4, shared=True), epsilon=wanted, delta=1e-5, clip=2.0, participants=participants)


def test_one_sample_moves_the_sums_by_no_more_than_the_noise_allows() -> None:
    """In units of the noise's deviations a sample's row has a length of at most 1 / multiplier."""
    noise, generator = noisy(), torch.Generator().manual_seed(0)
    for _ in range(50):
        x = noise.clipped(5 * torch.randn(1, 4, generator=generator, dtype=torch.float64))
        row = noise.sums.encode(statistics_of(x, torch.tensor([1]), 3))
        assert (row / noise.deviations).norm() <= 1 / noise.multiplier + 1e-9
    longest = torch.tensor([[2.0, 0, 0, 0]])
    row = noise.sums.encode(statistics_of(longest, torch.tensor([1]), 3))
    assert (row / noise.deviations).norm() == pytest.approx(1 / noise.multiplier)


def test_the_parts_of_all_participants_add_up_to_the_noise() -> None:
    noise = noisy(participants=4)
    normal = torch.randn(4, 4_000, noise.sums.layout.size, generator=torch.Generator().manual_seed(0)).double()
    zeros = torch.zeros(noise.sums.layout.size, dtype=torch.float64)
    total = sum(noise.with_noise(zeros, normal[participant]) for participant in range(4))
    assert isinstance(total, torch.Tensor)
    torch.testing.assert_close(total.std(0), noise.deviations, rtol=0.06, atol=0)


def experiment(**ggeur: Any) -> Experiment:
    chosen = {"name": "ggeur", "upload": "second_moment", "clip": 6.0, **ggeur}
    return Experiment(
        data={"clients": 8, "partition": {"name": "label_skew"}},
        model={"name": "logistic"},
        training={"wrappers": [chosen]},
        federation={"rounds": 0},
        runtime={"backend": "serial"},
        tracking={"report": False},
    )


def test_privacy_costs_accuracy_and_less_of_it_more(tmp_path: Path) -> None:
    accuracies = [
        run(experiment(epsilon=wanted), tmp_path / str(wanted)).metrics["accuracy"] for wanted in (1e6, 8.0, 0.01)
    ]
    assert accuracies[0] > 0.85
    assert accuracies[0] > accuracies[1] > 0.5
    assert accuracies[2] < accuracies[1]


def test_epsilon_needs_sums() -> None:
    for wrong in ({"clip": None}, {"precision": "float16"}, {"pooling": "bounded"}, {"prototypes": 3}):
        with pytest.raises(SettingError, match=r"epsilon = 8\.0 is of sums of samples no longer than clip"):
            Federation(experiment(**{"epsilon": 8.0, **wrong}))


def test_the_report_names_epsilon(tmp_path: Path) -> None:
    chosen = experiment(epsilon=8.0).replace(federation={"rounds": 0}, tracking={"report": True})
    page = (run(chosen, tmp_path / "run").folder / "report.html").read_text()
    assert "are (8, 1e-05)-differentially private for every sample" in page
