"""Attacks one by one: by hand, and against slow float64 references."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fedgen import registry
from fedgen.aggregation.mean import Mean
from fedgen.attacks.dropped import Dropped
from fedgen.attacks.free_rider import FreeRider
from fedgen.attacks.noise import Gaussian, Uniform
from fedgen.contracts import Rule, View
from fedgen.errors import SettingError
from fedgen.parameters import Layout
from fedgen.rows import LocalRows
from fedgen.streams import Streams


def view_of(n: int, d: int, liars: list[int], rule: Rule | None = None, round: int = 0) -> View:
    byzantine = torch.zeros(n, dtype=torch.bool)
    byzantine[liars] = True
    return View(
        byzantine=byzantine,
        clients=torch.arange(n),
        weights=torch.ones(n, dtype=torch.float64),
        round=round,
        streams=Streams(0),
        reference=torch.zeros(d),
        rule=rule or Mean(),
        f=len(liars),
        layout=Layout({"row": (d,)}),
    )


def rows_of(n: int, d: int, seed: int = 0) -> Tensor:
    """Rows with a common direction, so that their mean is not all noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) + 0.5 * torch.randn(d, generator=generator)


# Row-wise.


def test_noise_is_the_clients_stream_of_the_round() -> None:
    """By absolute column, so a slice that begins at column 64 goes on where the one before it ended."""
    clients = torch.tensor([1, 3])
    sent = Gaussian(scale=3.0)(torch.zeros(4, 100), [1, 3], round=7, seed=5)
    assert torch.equal(sent[[1, 3]], 3 * Streams(5).normal("attack.gaussian", 7, clients, 100))
    sent = Uniform(low=-1.0, high=3.0)(torch.zeros(4, 100), [1, 3], round=7, seed=5)
    assert torch.equal(sent[[1, 3]], -1 + 4 * Streams(5).uniform("attack.uniform", 7, clients, 100))


def test_uniform_bounds_that_are_no_interval_are_refused() -> None:
    with pytest.raises(SettingError, match=r"'uniform': low = 2.0 must be less than high = 1.0"):
        Uniform(low=2.0)


def test_a_share_of_the_coordinates_is_dropped_and_the_others_are_kept() -> None:
    rows = rows_of(3, 20_000)
    sent = Dropped(share=0.3)(rows, [1])
    dropped = sent[1] == 0
    assert abs(float(dropped.double().mean()) - 0.3) < 5 * (0.3 * 0.7 / 20_000) ** 0.5
    assert torch.equal(sent[1][~dropped], rows[1][~dropped])


def test_a_free_rider_sends_the_last_step_of_the_model() -> None:
    """Two rounds: it remembers the model it saw first, and sends what has become of it since."""
    attack, rows = FreeRider(), rows_of(3, 4)
    view = replace(view_of(3, 4, [2]), reference=torch.tensor([1.0, 2, 3, 4]))
    first, _, memory = attack.corrupt(LocalRows(rows), view)
    assert first.collect()[2].tolist() == [0, 0, 0, 0]
    later = replace(view, reference=torch.tensor([1.5, 1, 3, 6]), memory=memory, round=1)
    second, _, memory = attack.corrupt(LocalRows(rows), later)
    assert second.collect()[2].tolist() == [0.5, -1, 0, 2]
    assert memory["reference"].tolist() == [1.5, 1, 3, 6]


def test_the_disguise_of_a_free_rider_shrinks_with_the_rounds() -> None:
    attack, rows = FreeRider(update="zeros", noise=2.0, decay=1.0), torch.zeros(1, 64)
    sent, _, _ = attack.corrupt(LocalRows(rows), view_of(1, 64, [0], round=3))
    noise = Streams(0).normal("attack.free_rider", 3, torch.tensor([0]), 64)
    assert torch.equal(sent.collect(), 0.5 * noise)


@pytest.mark.parametrize("name", registry.members("attack"))
def test_an_attack_can_be_called_on_plain_arrays(name: str, federation: object) -> None:
    attack = registry.build("attack", name, {}, facts=federation.facts)  # type: ignore[attr-defined]
    rows = rows_of(7, 10)
    sent = attack(rows.numpy(), [2, 5])
    assert torch.equal(sent[[0, 1, 3, 4, 6]], rows[[0, 1, 3, 4, 6]])
