"""A peer that comes back pulls a neighbour's model; a Byzantine peer answers with an attacked one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedgen import Experiment
from fedgen.federation import Federation
from fedgen.parameters import Tensors
from fedgen.server.rounds.rejoin import pulled, returning

PEERS = 12


def leaving(**byzantine: Any) -> Federation:
    tables: dict[str, dict[str, Any]] = {
        "data": {"clients": PEERS},
        "model": {"hidden": [8]},
        "federation": {"mode": "gossip"},
        "faults": {"churn": 0.2, "away": 2},
        "byzantine": byzantine,
    }
    return Federation(Experiment(**tables))


def some_return(federation: Federation) -> tuple[int, list[int]]:
    """(the first round in which peers come back, those peers)."""
    back = {round: returning(federation, round).tolist() for round in range(1, 20)}
    return next((round, peers) for round, peers in back.items() if peers)


def models(federation: Federation) -> Tensors:
    size = federation.method.layout.size
    return {"model": torch.randn(PEERS, size, generator=torch.Generator().manual_seed(0))}


def honest_source(federation: Federation, state: Tensors, round: int, peer: int) -> int:
    """The neighbour whose model this peer takes without an attack."""
    taken = pulled(federation, state, round)["model"][peer]
    return int((state["model"] == taken).all(1).nonzero())


def test_who_was_there_all_the_time_keeps_its_model() -> None:
    federation = leaving()
    round, back = some_return(federation)
    state = models(federation)
    after = pulled(federation, state, round)["model"]
    stayed = torch.tensor([peer for peer in range(PEERS) if peer not in back])
    assert torch.equal(after[stayed], state["model"][stayed])
    for peer in back:
        source = honest_source(federation, state, round, peer)
        assert source in federation.network.graph(round).inbox(peer)
        assert not federation.network.gone(round)[source]
    assert pulled(federation, state, 0) is state


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        ({"name": "sign_flip", "scale": 3.0}, lambda model: -3 * model),
        ("zeros", torch.zeros_like),
        ("garbage", None),
    ],
)
def test_a_liar_answers_what_its_attack_makes_of_its_model(attack: Any, told: Any) -> None:
    honest = leaving()
    round, (peer, *_) = some_return(honest)
    state = models(honest)
    attacker = honest_source(honest, state, round, peer)
    after = pulled(leaving(attack=attack, clients=[attacker]), state, round)["model"][peer]
    own: Tensor = state["model"][peer]
    torch.testing.assert_close(after, own if told is None else told(state["model"][attacker]))


def test_an_answer_that_cannot_be_read_changes_nothing() -> None:
    honest = leaving()
    round, (peer, *_) = some_return(honest)
    state = models(honest)
    attacker = honest_source(honest, state, round, peer)
    federation = leaving(attack="forged", clients=[attacker])
    after = pulled(federation, state, round)["model"][peer]
    assert torch.equal(after, state["model"][peer])


@pytest.mark.parametrize("attack", ["ipm", "alie", "min_max"])
def test_attacks_that_see_everybody_see_those_that_are_there(attack: str) -> None:
    honest = leaving()
    round, (peer, *_) = some_return(honest)
    state = models(honest)
    attacker = honest_source(honest, state, round, peer)
    after = pulled(leaving(attack=attack, clients=[attacker]), state, round)["model"][peer]
    assert after.isfinite().all()
    assert not (state["model"] == after).all(1).any()
