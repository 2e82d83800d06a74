"""Free riders in gossip send the model that training began from: a model of zeros would give them away at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedgen import Experiment
from fedgen.attacks.free_rider import FreeRider
from fedgen.federation import Federation
from fedgen.server.pools.pool import Interrupt, SerialPool
from fedgen.server.rounds.gossip import Gossip
from fedgen.server.rounds.peers import send
from fedgen.server.rounds.rejoin import pulled, returning
from fedgen.server.rounds.session import Session
from fedgen.server.rounds.virtual_time import VirtualTime
from fedgen.server.store.checkpoint import Standing

PEERS = 8


def riding(wrappers: list[str], **attack: Any) -> Federation:
    tables: dict[str, dict[str, Any]] = {
        "data": {"clients": PEERS},
        "model": {"hidden": [8]},
        "federation": {"mode": "gossip"},
        "faults": {"churn": 0.2, "away": 2},
        "aggregation": {"wrappers": wrappers},
        "byzantine": {"attack": {"name": "free_rider", **attack}, "clients": [2, 5]},
    }
    return Federation(Experiment(**tables))


class Quiet:
    """A journal that keeps nothing."""

    def event(self, *words: Any, **details: Any) -> None:
        pass


def session_of(federation: Federation, loop: Any) -> Session:
    standing = Standing(0, loop.initial_state(federation))
    return Session(federation, SerialPool(federation, Interrupt()), standing, Quiet())  # type: ignore[arg-type]


@pytest.mark.parametrize("loop", [Gossip(), VirtualTime()], ids=["rounds", "virtual time"])
@pytest.mark.parametrize("wrappers", [[], ["delta_sum"]], ids=str)
@pytest.mark.parametrize("update", ["last", "zeros"])
def test_what_is_sent_is_what_training_began_from(update: str, wrappers: list[str], loop: Any) -> None:
    federation = riding(wrappers, update=update)
    session = session_of(federation, loop)
    for round in range(2):
        broadcast = federation.method.broadcast(session.standing.state, round)
        sending = send(session, broadcast, federation.cohort(round, everyone=True))
        size = broadcast.start.shape[1]
        assert torch.equal(sending.sent.models[[2, 5], :size], broadcast.start[[2, 5]])
        assert not sending.sent.models[[2, 5], size:].any(), "nothing was learnt"
        assert not torch.equal(sending.sent.models[1, :size], broadcast.start[1])
        loop.play_round(session, evaluate=False)


def test_a_free_rider_that_is_asked_by_who_comes_back_answers_with_its_model() -> None:
    federation = riding([])
    models = {"model": torch.randn(PEERS, federation.method.layout.size, generator=torch.Generator().manual_seed(0))}
    for round in range(1, 20):
        if len(returning(federation, round)):
            after = pulled(federation, models, round)["model"]
            assert all((row == models["model"]).all(1).any() for row in after), "every model is somebody's"


def test_the_disguise_lies_on_the_model() -> None:
    federation = riding([], noise=0.1)
    session = session_of(federation, Gossip())
    state = session.standing.state
    sending = send(session, federation.method.broadcast(state, 0), federation.cohort(0, everyone=True))
    disguise = sending.sent.models[2] - state["model"][2]
    assert 0.09 < float(disguise.std()) < 0.11


def test_in_a_star_nothing_is_no_difference() -> None:
    sent = FreeRider(update="zeros")(torch.ones(3, 4), byzantine=[0])
    assert not sent[0].any()
    assert (sent[1:] == 1).all()
