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


@given(st.floats(0.3, 20), st.sampled_from([1e-3, 1e-5, 1e-8]))
@settings(max_examples=50)
def test_the_gaussian_mechanism_is_cheaper_than_its_textbook_bound(multiplier: float, delta: float) -> None:
    """zCDP: rho = 1 / (2 sigma^2) gives at most rho + 2 sqrt(rho log(1 / delta)) (Bun and Steinke 2016)."""
    rho = 1 / (2 * multiplier**2)
    best = min(rho * order + log(1 / delta) / (order - 1) for order in ORDERS)
    spent = epsilon(multiplier, delta)
    assert spent <= best
    assert spent <= (rho + 2 * sqrt(rho * log(1 / delta))) * 1.2
    assert epsilon(2 * multiplier, delta) <= spent


def test_no_noise_is_no_privacy() -> None:
    assert rdp(0.0, 2.5) == epsilon(0.0, 1e-5) == inf


@pytest.mark.parametrize("wanted", [0.1, 1.0, 8.0, 50.0])
def test_the_multiplier_is_the_least_that_keeps_the_promise(wanted: float) -> None:
    multiplier = multiplier_for(wanted, 1e-5)
    assert epsilon(multiplier, 1e-5) <= wanted
    assert epsilon(0.999 * multiplier, 1e-5) > wanted


WHOLE_ORDERS = [float(order) for order in range(2, 129)]
OF_DP_ACCOUNTING = {
    (0.5, 1e-3): 8.49910638704885, (0.5, 1e-5): 10.801691480042894, (0.5, 1e-8): 13.390446721825711,
    (1.0, 1e-3): 3.552804900168968, (1.0, 1e-5): 4.752728336819822, (1.0, 1e-8): 6.09164441932225,
    (2.0, 1e-3): 1.547823508493879, (2.0, 1e-5): 2.1680106367839715, (2.0, 1e-8): 2.8616953588434946,
    (4.0, 1e-3): 0.6881077857865137, (4.0, 1e-5): 1.0125506277526433, (4.0, 1e-8): 1.3690794432484032,
    (16.0, 1e-3): 0.13524009271657422, (16.0, 1e-5): 0.22591177142207441, (16.0, 1e-8): 0.3205825155038541,
}  # fmt: skip
"""(multiplier, delta) -> epsilon by dp-accounting 0.6.0, in an environment of its own, as it asks for attrs < 24:

from dp_accounting import GaussianDpEvent
from dp_accounting.rdp import RdpAccountant
accountant = RdpAccountant([float(order) for order in range(2, 129)])
accountant.compose(GaussianDpEvent(multiplier))
accountant.get_epsilon(delta)
"""


@pytest.mark.parametrize(("multiplier", "delta"), OF_DP_ACCOUNTING)
def test_the_accountant_has_the_figures_of_dp_accounting(multiplier: float, delta: float) -> None:
    assert epsilon(multiplier, delta, WHOLE_ORDERS) == pytest.approx(OF_DP_ACCOUNTING[multiplier, delta], rel=1e-9)


@pytest.mark.parametrize(("multiplier", "delta"), OF_DP_ACCOUNTING)
def test_dp_accounting_still_has_these_figures(multiplier: float, delta: float) -> None:
    dp_accounting = pytest.importorskip("dp_accounting", reason="pip install dp-accounting runs this test")
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(WHOLE_ORDERS)
    accountant.compose(dp_accounting.GaussianDpEvent(multiplier))
    assert accountant.get_epsilon(delta) == pytest.approx(OF_DP_ACCOUNTING[multiplier, delta], rel=1e-9)


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
