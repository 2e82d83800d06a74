"""Attacks on single inboxes: a reference of one receiver, different messages for different neighbours, one hash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgen import Experiment, Result, registry, resume, run
from fedgen.clients.inbox_attacks import AttackKnowledge, attack_inboxes
from fedgen.clients.mail import Mail, Messages, observe
from fedgen.clients.merging import Delivery, Memories, Merge, merge_peers
from fedgen.contracts import Context, View
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.rows import LocalRows
from fedgen.server.store.checkpoint import load_newest

PEERS = 12
ATTACKERS = [3, 7]

BASE: dict[str, dict[str, Any]] = {
    "data": {"clients": PEERS},
    "model": {"hidden": [8]},
    "training": {"steps": 1, "batch_size": 8, "block": 5},
    "federation": {"mode": "gossip", "rounds": 4},
    "gossip": {"topology": {"name": "k_regular", "degree": 6}},
    "runtime": {"backend": "serial", "checkpoint_every": 2},
    "tracking": {"report": False},
}


def attacked(attack: Any, rule: str = "mean", *wrappers: str, **tables: dict[str, Any]) -> Experiment:
    """Twelve peers of which two attack every inbox by itself, some keys of some tables changed."""
    base = {
        **BASE,
        "aggregation": {"rule": rule, "wrappers": list(wrappers), "f": 1},
        "byzantine": {"attack": attack, "clients": ATTACKERS, "per_neighbour": True},
    }
    return Experiment(**{name: base.get(name, {}) | tables.get(name, {}) for name in base | tables})


def models(federation: Federation) -> tuple[Tensor, Tensor]:
    """(own[N, d], weights[N]): models of peers that have trained, and what their messages weigh."""
    own = torch.randn(PEERS, federation.method.layout.size, generator=torch.Generator().manual_seed(0))
    return own, torch.linspace(1, 2, PEERS, dtype=torch.float64)


def inbox_of(federation: Federation, receiver: int, own: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, View]:
    """(senders, rows, view) of one attacked inbox, straight from the definition."""
    senders = torch.from_numpy(federation.network.graph(0).inbox(receiver))
    layout = federation.method.layout
    context = Context(own[receiver], layout, senders, 1, streams=federation.streams, share=0.5)
    byzantine = torch.isin(senders, torch.tensor(ATTACKERS))
    view = View(byzantine, weights[senders], context, federation.rule, receiver=receiver)
    return senders, own[senders] - own[receiver], view


@pytest.mark.parametrize("rule", [("mean",), ("median",), ("mean", "variance_correction"), ("krum", "nnm")])
@pytest.mark.parametrize("attack", ["ipm", "alie", "gaussian", "sign_flip", {"name": "ipm", "optimize": True}])
def test_every_inbox_is_attacked_as_the_reference_of_one_receiver_says(attack: Any, rule: tuple[str, ...]) -> None:
    federation = Federation(attacked(attack, *rule))
    own, weights = models(federation)
    heard = federation.network.mixing.weights(federation.network.graph(0))
    seen = observe(federation, own)
    messages = Messages(own, np.arange(PEERS), weights.numpy(), seen)
    merge = Merge(0, federation.method.layout, own, {}, messages, seen)
    for receivers in torch.arange(PEERS).split(5):
        report = merge_peers(federation, merge, Delivery(receivers, heard[receivers.numpy()], {}, Memories()))
        for receiver, merged in zip(receivers.tolist(), report.state["model"], strict=True):
            senders, rows, view = inbox_of(federation, receiver, own, weights)
            if view.byzantine.any():
                lies, _, _ = federation.attack.corrupt(LocalRows(rows), view)
                rows = torch.where(view.byzantine[:, None], lies.collect(), rows)
            expected = federation.rule.aggregate(LocalRows(rows), weights[senders], view.context).aggregate
            torch.testing.assert_close(merged, own[receiver] + 0.5 * expected, rtol=1e-4, atol=1e-5)


def test_every_neighbour_hears_other_noise_and_honest_peers_say_one_thing() -> None:
    federation = Federation(attacked("gaussian"))
    own, weights = models(federation)
    graph = federation.network.graph(0)
    mail = Mail(Messages(own, np.arange(PEERS), weights.numpy(), observe(federation, own)), graph.hears)
    nothing: list[Any] = [{}] * PEERS
    known = AttackKnowledge(
        torch.arange(PEERS), own, np.full(PEERS, 0.5), 0, federation.method.layout, memory=nothing, rule_memory=nothing
    )
    lies = attack_inboxes(federation, mail, known)
    told = graph.hears.indices[lies.places]
    assert sorted(told.tolist()) == sorted(np.repeat(ATTACKERS, 6).tolist())
    receivers = np.repeat(np.arange(PEERS), np.diff(graph.hears.indptr))[lies.places]
    noise = lies.sent - own[torch.from_numpy(receivers)]
    assert torch.pdist(noise).min() > 1
    assert noise.std() == pytest.approx(1, abs=0.05)


def test_mail_keeps_what_is_heard_and_who_said_it() -> None:
    federation = Federation(attacked("gaussian"))
    own, weights = models(federation)
    hears = federation.network.graph(0).hears[[2, 5]]
    mail = Mail(Messages(own, np.arange(PEERS), weights.numpy(), {"sum": own.sum(1)}), hears)
    only = mail.heard_only()
    assert sorted(only.messages.senders.tolist()) == sorted(set(hears.indices.tolist()))
    torch.testing.assert_close(
        torch.from_numpy(only.heard @ only.messages.models.numpy()), torch.from_numpy(hears @ own.numpy())
    )
    reply = torch.ones(1, own.shape[1])
    answered = only.with_replies(np.array([6]), reply, np.array([5.0]), {"sum": reply.sum(1)})
    message = int(answered.heard.indices[6])
    assert answered.messages.senders[message] == only.messages.senders[only.heard.indices[6]]
    assert (answered.messages.models[message] == 1).all()
    assert answered.messages.weights[message] == 5
    assert answered.heard.indices[:6].tolist() == only.heard.indices[:6].tolist()


@pytest.mark.parametrize("clock", ["rounds", "events"])
@pytest.mark.parametrize("attack", registry.members("attack"))
def test_every_attack_runs_on_single_inboxes(attack: str, clock: str, run_in: Callable[..., Result]) -> None:
    rounds = 3 if clock == "rounds" else 25
    tables = {"federation": {"rounds": rounds}, "gossip": {"clock": clock}}
    result = run_in(attacked(attack, "median", "variance_correction", **tables))
    assert result.state == "completed"
    assert np.isfinite(result.metrics["consensus_distance"])


@pytest.mark.parametrize(
    ("backend", "clock"),
    [
        ("serial", "rounds"),
        ("serial", "events"),
        pytest.param("ray", "rounds", marks=pytest.mark.slow),
        ("ray", "events"),
    ],
)
def test_what_an_attack_remembers_of_each_neighbour_survives(
    backend: str, clock: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if backend == "ray":
        request.getfixturevalue("cluster")
    rounds = 4 if clock == "rounds" else 30
    tables = {"federation": {"rounds": rounds}, "gossip": {"clock": clock}}
    experiment = attacked("free_rider", "mean", "variance_correction", **tables)
    whole = run(experiment, tmp_path / "whole")
    split = experiment.replace(federation={"rounds": rounds // 2}, runtime={"backend": backend, "workers": 2})
    run(split, tmp_path / "resumed")
    assert resume(tmp_path / "resumed", rounds=rounds).sha256 == whole.sha256
    remembered = load_newest(tmp_path / "resumed")[0].memories.attack
    assert {name for memory in remembered.values() for name in memory} == {"reference"}
    assert len(remembered) > 1


def test_a_star_has_no_neighbours() -> None:
    with pytest.raises(SettingError, match=r"byzantine\.per_neighbour = true are of gossip; set federation\.mode"):
        attacked("ipm", federation={"mode": "star", "cohort": 1.0})


def test_inboxes_of_different_sizes_may_tell_different_things(run_in: Callable[..., Result]) -> None:
    """What a rule says of every sender has another shape in every inbox, and is no matter of the peers."""
    experiment = attacked("gaussian", "flag", faults={"loss": 0.3})
    assert run_in(experiment.replace(training={"block": 1})).state == "completed"
