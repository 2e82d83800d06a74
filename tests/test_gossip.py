"""Gossip in rounds: merging equals a per-receiver reference, attacks reach inboxes, one hash, errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedgen import Experiment, Result, registry, resume, run
from fedgen.clients.mail import Messages, observe
from fedgen.clients.merging import Delivery, Memories, Merge, merge_peers
from fedgen.contracts import Broadcast, Context, Inbox, Update
from fedgen.errors import FedgenError, SettingError
from fedgen.federation import Federation
from fedgen.methods.wrapper import MethodWrapper
from fedgen.parameters import Layout, Tensors
from fedgen.rows import LocalRows
from fedgen.server.rounds.peer_metrics import consensus_distance
from fedgen.server.store.checkpoint import load_newest
from fedgen.server.store.journal import read_lines
from fedgen.streams import Streams
from fedgen.topology.network import Churn

PEERS = 12
ROUNDS = 4

BASE: dict[str, dict[str, Any]] = {
    "data": {"clients": PEERS},
    "model": {"hidden": [8]},
    "training": {"steps": 1, "batch_size": 8, "block": 5, "optimizer": {"name": "sgd", "momentum": 0.5}},
    "federation": {"mode": "gossip", "rounds": ROUNDS, "evaluate_every": 2},
    "aggregation": {"slice": 64},
    "runtime": {"backend": "serial", "checkpoint_every": 2},
    "tracking": {"report": False},
}


def gossip(**tables: dict[str, Any]) -> Experiment:
    """Twelve peers on a random 4-regular graph, some keys of some tables changed."""
    return Experiment(**{name: BASE.get(name, {}) | tables.get(name, {}) for name in BASE | tables})


def own_model(name: str, **tables: dict[str, Any]) -> Experiment:
    """The same with a model of the user's own."""
    return Experiment(**{**BASE, **tables, "model": {"name": name}})


# Merging.


def models(seed: int, size: int) -> tuple[Tensor, Tensor]:
    """(own[N, d], sent[N, d]): what two peers send is not their own."""
    own = torch.randn(PEERS, size, generator=torch.Generator().manual_seed(seed))
    sent = own.clone()
    sent[3], sent[7] = -2 * sent[3], torch.nan
    return own, sent


def reference(federation: Federation, own: Tensor, sent: Tensor, heard: Any, counts: Tensor) -> Tensor:
    """The merged models, one receiver and one message after another, straight from the formula."""
    section, f = federation.experiment.gossip, federation.experiment.aggregation.f
    merged = own.clone()
    for receiver in range(len(own)):
        arrived = [sender for sender in range(len(own)) if heard[receiver, sender] > 0]
        senders = [sender for sender in arrived if sent[sender].isfinite().all()]
        allowed = max(0, f - (len(arrived) - len(senders)))
        if len(senders) < max(1, federation.rule.minimum(allowed)):
            continue
        weights = torch.tensor([float(heard[receiver, sender] * counts[sender]) for sender in senders]).double()
        uniform = section.mixing == "uniform"
        share = (0.5 if section.keep is None else 1 - section.keep) if uniform else float(weights.sum())
        rows = torch.stack([sent[sender] - own[receiver] for sender in senders])
        context = Context(
            own[receiver],
            federation.method.layout,
            torch.tensor(senders),
            allowed,
            streams=federation.streams,
            share=share,
        )
        aggregate = federation.rule.aggregate(LocalRows(rows, federation.slice_width), weights, context).aggregate
        merged[receiver] = own[receiver] + share * aggregate
    return merged


def merged(federation: Federation, own: Tensor, sent: Tensor, counts: Tensor, blocks: int = 5) -> Tensor:
    heard = federation.network.mixing.weights(federation.network.graph(0))
    own_seen, seen = observe(federation, own), observe(federation, sent)
    messages = Messages(sent, np.arange(PEERS), counts.numpy(), seen)
    merge = Merge(0, federation.method.layout, own, {}, messages, own_seen)
    result = torch.empty_like(own)
    for receivers in torch.arange(PEERS).split(blocks):
        report = merge_peers(federation, merge, Delivery(receivers, heard[receivers.numpy()], {}, Memories()))
        result[report.receivers] = report.state["model"]
    return result


ROOTED = [name for name, rule in registry.members("rule").items() if registry.build("rule", name, {}).root_samples]
RULES = [
    *(name for name in registry.members("rule") if name not in ROOTED),
    *(f"{wrapper} median" for wrapper in registry.members("rule_wrapper")),
]


def ruled(name: str) -> Federation:
    *wrappers, rule = name.split()
    section = {"rule": rule, "wrappers": wrappers, "f": 1}
    return Federation(gossip(aggregation=section, gossip={"topology": {"name": "k_regular", "degree": 8}}))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_merges_as_the_reference_of_one_receiver_says(rule: str) -> None:
    federation = ruled(rule)
    own, sent = models(1, federation.method.layout.size)
    counts = torch.ones(PEERS, dtype=torch.float64)
    heard = federation.network.mixing.weights(federation.network.graph(0)).toarray()
    expected = reference(federation, own, sent, heard, counts)
    torch.testing.assert_close(merged(federation, own, sent, counts), expected, rtol=1e-4, atol=1e-5)


@cache
def sparse(mixing: str, topology: str) -> Federation:
    return Federation(gossip(gossip={"topology": topology, "mixing": mixing, "protocol": "push_pull"}))


@given(
    seed=st.integers(0, 1000),
    topology=st.sampled_from(["ring", "star", "scale_free", "complete", "epidemic", "exponential"]),
    mixing=st.sampled_from(["uniform", "metropolis_hastings"]),
    weighted=st.booleans(),
    blocks=st.integers(1, PEERS),
)
def test_the_sparse_product_is_the_mean_of_every_inbox(
    seed: int, topology: str, mixing: str, weighted: bool, blocks: int
) -> None:
    federation = sparse(mixing, topology)
    own, sent = models(seed, federation.method.layout.size)
    uniform = mixing == "uniform"
    counts = torch.arange(1.0, PEERS + 1).double() if weighted and uniform else torch.ones(PEERS).double()
    heard = federation.network.mixing.weights(federation.network.graph(0)).toarray()
    expected = reference(federation, own, sent, heard, counts)
    torch.testing.assert_close(merged(federation, own, sent, counts, blocks), expected, rtol=1e-5, atol=1e-5)


def test_a_message_is_refused_by_its_distance_from_the_receiver() -> None:
    """Nobody else's is: the bound that spares computing a distance never decides one."""
    federation = Federation(gossip(aggregation={"norm_limit": 3.0}, gossip={"topology": "ring"}))
    size = federation.method.layout.size
    own = torch.zeros(PEERS, size)
    own[:, 0] = torch.arange(float(PEERS)) * 2.0  # neighbours are 2 apart, and long themselves; the ring closes with 22
    ones, heard = torch.ones(PEERS).double(), federation.network.graph(0).hears
    seen = observe(federation, own)
    messages = Messages(own, np.arange(PEERS), ones.numpy(), seen)
    merge = Merge(0, federation.method.layout, own, {}, messages)
    report = merge_peers(federation, merge, Delivery(torch.arange(PEERS), heard, {}, Memories()))
    assert {sender: times for sender, (_, times) in report.refused.items()} == {0: 1, PEERS - 1: 1}
    assert "above aggregation.norm_limit 3" in report.refused[0][0]
    assert report.state["model"][0, 0] == pytest.approx(1.0), "half own, half the one neighbour that is left"


# Rounds.


def peers_of(result: Result) -> Tensors:
    loaded = load_newest(result.folder)
    assert loaded is not None
    return loaded[0].state


def test_without_training_a_round_is_the_mixing_matrix(run_in: Callable[..., Result]) -> None:
    experiment = gossip(training={"optimizer": {"name": "sgd", "lr": 1e-30}})
    federation = Federation(experiment)
    start = torch.stack([federation.method.initial_state(peer)["model"] for peer in range(PEERS)])
    power = np.linalg.matrix_power(federation.network.matrix(0).toarray(), 3)
    expected = torch.from_numpy(power).float() @ start
    result = run_in(experiment.replace(federation={"rounds": 3}))
    torch.testing.assert_close(peers_of(result)["model"], expected, rtol=1e-4, atol=1e-5)
    record = read_lines(result.folder / "metrics.jsonl")[-1]
    assert record["messages"] == 4 * PEERS
    assert record["bytes"]["up"] == record["bytes"]["down"] == 4 * PEERS * start[0].nbytes
    assert record["clients"] == {"admitted": PEERS, "rejected": 0, "failed": 0, "late": 0}


def test_metrics_are_of_the_honest_peers(run_in: Callable[..., Result]) -> None:
    attackers = [0, 5]
    experiment = gossip(byzantine={"attack": "sign_flip", "clients": attackers})
    result = run_in(experiment)
    federation = Federation(experiment)
    models, honest = peers_of(result)["model"], [peer for peer in range(PEERS) if peer not in attackers]
    data = federation.dataset
    accuracies = federation.method.evaluate({"model": models[honest]}, data.test_x, data.test_y)["accuracy"]
    assert result.metrics["accuracy"] == pytest.approx(float(accuracies.mean()))
    assert result.metrics["worst_accuracy"] == pytest.approx(float(accuracies.min()))
    assert result.metrics["p10_accuracy"] == pytest.approx(float(accuracies.quantile(0.1)))
    spread = (models[honest] - models[honest].mean(0)).norm(dim=1).square().mean().sqrt()
    assert result.metrics["consensus_distance"] == pytest.approx(float(spread), rel=1e-5)
    assert consensus_distance(federation, models, ROUNDS) == pytest.approx(float(spread), rel=1e-5)


def test_the_result_is_the_mean_of_the_honest_peers(run_in: Callable[..., Result]) -> None:
    from safetensors.torch import load_file

    result = run_in(gossip(byzantine={"attack": "sign_flip", "clients": [1]}))
    honest = [peer for peer in range(PEERS) if peer != 1]
    expected = Federation(gossip()).method.layout.view(peers_of(result)["model"][honest].mean(0))
    for name, tensor in load_file(result.folder / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name])


def test_lies_are_about_the_model_that_is_sent(run_in: Callable[..., Result]) -> None:
    """Zeros are a model of zeros, not a model that did not move; and a Byzantine peer keeps its own model."""
    still = gossip(training={"optimizer": {"name": "sgd", "lr": 1e-30}}, federation={"mode": "gossip", "rounds": 1})
    result = run_in(still.replace(byzantine={"attack": "zeros", "clients": [4]}, federation={"rounds": 1}))
    federation = Federation(still)
    own = torch.stack([federation.method.initial_state(peer)["model"] for peer in range(PEERS)])
    sent = own.clone()
    sent[4] = 0
    expected = reference(federation, own, sent, federation.network.graph(0).hears.toarray(), torch.ones(PEERS).double())
    torch.testing.assert_close(peers_of(result)["model"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attack", registry.members("attack"))
@pytest.mark.parametrize("rule", ["mean", "median"])
def test_every_attack_runs_on_a_graph(attack: str, rule: str, run_in: Callable[..., Result]) -> None:
    result = run_in(gossip(byzantine={"attack": attack, "clients": 2}, aggregation={"rule": rule, "f": 1, "slice": 64}))
    assert result.state == "completed"
    assert np.isfinite(result.metrics["consensus_distance"])


def test_garbage_rejects_its_sender_and_nobody_else(run_in: Callable[..., Result]) -> None:
    result = run_in(gossip(byzantine={"attack": "garbage", "clients": [2]}))
    assert result.state == "completed"
    events = [event for event in read_lines(result.folder / "events.jsonl") if event["event"] == "rejected"]
    assert {event["client"] for event in events} == {2}
    assert all(event["receivers"] == 4 for event in events)
    assert peers_of(result)["model"].isfinite().all()


FRAGILE = """
import torch
from fedgen.models.networks import Mlp
class Fragile(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Mlp(hidden=(8,)).module((1, 8, 8), 10)
    def forward(self, x):
        if self.training and {condition}:
            raise ValueError("no")
        return self.inner(x)
"""


def test_a_peer_that_fails_is_silent_and_still_hears(
    run_in: Callable[..., Result], user_module: Callable[[str, str], Path]
) -> None:
    federation = Federation(gossip())
    ramp = torch.arange(64.0)
    sums = federation.dataset.x.flatten(1) @ ramp
    unlucky = next(peer for peer, shard in enumerate(federation.shards) if (sums == sums[shard[0]]).sum() == 1)
    value = float(sums[federation.shards[unlucky][0]])
    user_module("fragile_peer", FRAGILE.format(condition=f"(x.flatten(1) @ torch.arange(64.0) == {value!r}).any()"))
    training = {"engine": "reference", "steps": 1, "batch_size": 1000}
    result = run_in(own_model("fragile_peer:Fragile", training=training))
    assert result.state == "degraded"
    events = [event for event in read_lines(result.folder / "events.jsonl") if event["event"] == "failed"]
    assert [event["client"] for event in events] == [unlucky] * ROUNDS
    records = read_lines(result.folder / "metrics.jsonl")
    assert {record["messages"] for record in records} == {4 * (PEERS - 1)}
    assert records[0]["clients"] == {"admitted": PEERS - 1, "rejected": 0, "failed": 1, "late": 0}
    models = peers_of(result)["model"]
    first = Federation(own_model("fragile_peer:Fragile", training=training)).method.initial_state(unlucky)["model"]
    assert (models[unlucky] - models.mean(0)).norm() < (first - models.mean(0)).norm()


def test_all_peers_failing_fails_the_run(
    run_in: Callable[..., Result], user_module: Callable[[str, str], Path]
) -> None:
    user_module("broken_peer", FRAGILE.format(condition="True"))
    with pytest.raises(FedgenError, match="all 12 peers failed"):
        run_in(own_model("broken_peer:Fragile", training={"engine": "reference", "steps": 1}))


# Losses and churn.


def test_lost_messages_do_not_arrive(run_in: Callable[..., Result]) -> None:
    result = run_in(gossip(federation={"rounds": 12}, faults={"loss": 0.5}))
    messages = [record["messages"] for record in read_lines(result.folder / "metrics.jsonl")]
    assert sum(messages) == pytest.approx(12 * 4 * PEERS / 2, rel=0.1)
    assert len(set(messages)) > 1


@given(seed=st.integers(0, 100), away=st.integers(1, 5), first=st.integers(0, 5))
def test_who_leaves_is_away_for_so_long(seed: int, away: int, first: int) -> None:
    churn, streams = Churn(0.2, away, first, first + 8), Streams(seed)
    gone = np.array([churn.gone(streams, 40, round) for round in range(first + 8 + away)])
    assert not gone[:first].any()
    assert not churn.gone(streams, 40, first + 8 + away).any()
    left = gone & ~np.vstack([np.zeros(40, bool), gone[:-1]])
    for round, peer in np.argwhere(left):
        assert gone[round : round + away, peer].all()


def test_who_is_gone_keeps_its_model_and_who_returns_pulls_one(tmp_path: Path) -> None:
    still = {"optimizer": {"name": "sgd", "lr": 1e-30}, "steps": 1}
    churning = {"churn": 0.1, "away": 3, "loss": 0.999999}
    experiment = gossip(training=still, federation={"rounds": 30}, faults=churning)
    federation = Federation(experiment)
    network, states = federation.network, []
    for rounds in range(1, 12):
        result = (
            run(experiment.replace(federation={"rounds": rounds}), tmp_path / "run")
            if rounds == 1
            else resume(tmp_path / "run", rounds=rounds)
        )
        states.append(peers_of(result)["model"])
    returned = 0
    for round in range(1, 11):
        back = network.gone(round - 1) & ~network.gone(round)
        for peer in range(PEERS):
            near = [states[round - 1][each] for each in network.graph(round).inbox(peer)]
            same = torch.equal(states[round][peer], states[round - 1][peer])
            assert same or (back[peer] and any(torch.equal(states[round][peer], each) for each in near))
        returned += int(back.sum())
    assert returned > 0


# Defaults and errors.


def test_defaults_depend_on_the_mode() -> None:
    peers, star = Federation(gossip()).experiment, Federation(Experiment(data={"clients": 12})).experiment
    assert (peers.training.keep_optimizer, peers.aggregation.weights) == (True, "equal")
    assert (star.training.keep_optimizer, star.aggregation.weights) == (False, "samples")
    assert peers.cohort_size == PEERS


def test_agreed_peers_begin_alike() -> None:
    from fedgen.server.rounds.gossip import Gossip

    own, agreed = (
        Gossip().initial_state(Federation(gossip(gossip={"seed_agreement": agree})))["model"] for agree in (False, True)
    )
    assert (agreed == agreed[0]).all()
    assert (own[0] == agreed[0]).all()
    assert len({tuple(row.tolist()) for row in own}) == PEERS


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"training": {"method": "scaffold", "optimizer": "sgd"}}, "runs in .'star'., not in federation"),
        (
            {"aggregation": {"rule": "median", "f": 2}},
            "needs 5 messages in an inbox to tolerate .* 12 peers have fewer",
        ),
        (
            {"gossip": {"mixing": "metropolis_hastings"}, "aggregation": {"weights": "samples"}},
            "fixes the weights",
        ),
        ({"gossip": {"topology": {"name": "erdos_renyi", "degree": 0.5}}}, "cannot reach"),
        ({"aggregation": {"rule": "fltrust"}}, "gossip has no server"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    tables: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingError, match=words):
        run(gossip(**tables), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# One hash.

VARIANTS: dict[str, dict[str, Any]] = {
    "mean": {},
    "weighted": {"aggregation": {"weights": "samples"}},
    "median": {"aggregation": {"rule": "median", "f": 1, "slice": 64}, "byzantine": {"attack": "ipm", "clients": 2}},
    "memory": {
        "aggregation": {"rule": "centred_clipping", "slice": 64},
        "byzantine": {"attack": {"name": "free_rider", "noise": 0.01}, "clients": 2, "redraw": True},
    },
    "corrected": {"aggregation": {"wrappers": ["variance_correction"]}},
    "corrected median": {"aggregation": {"rule": "median", "wrappers": ["nnm", "variance_correction"], "slice": 64}},
    "lossy": {
        "faults": {"loss": 0.3, "churn": 0.1, "away": 2},
        "aggregation": {"wrappers": ["variance_correction"]},
    },
    "epidemic": {"gossip": {"topology": "epidemic", "protocol": "push_pull"}},
    "forged": {"byzantine": {"attack": "forged", "clients": 2}},
}


def hashes(result: Result) -> tuple[str, str | None]:
    assert result.state == "completed"
    assert result.client_sha256 is not None
    return result.sha256, result.client_sha256


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_runs_have_the_hash_of_whole_ones(variant: str, tmp_path: Path) -> None:
    experiment = gossip(**VARIANTS[variant])
    expected = hashes(run(experiment, tmp_path / "whole"))
    run(experiment.replace(federation={"rounds": 1}), tmp_path / "resumed")
    assert hashes(resume(tmp_path / "resumed", rounds=ROUNDS)) == expected


@pytest.mark.parametrize("variant", ["corrected"])
def test_two_workers_have_the_hash_of_none(variant: str, cluster: None, tmp_path: Path) -> None:
    experiment = gossip(**VARIANTS[variant])
    expected = hashes(run(experiment, tmp_path / "serial"))
    assert hashes(run(experiment.replace(runtime={"backend": "ray", "workers": 2}), tmp_path / "ray")) == expected


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_has_the_hash_of_none(variant: str, workers: int, cluster: None, tmp_path: Path) -> None:
    experiment = gossip(**VARIANTS[variant])
    expected = hashes(run(experiment, tmp_path / "serial"))
    spread = experiment.replace(runtime={"backend": "ray", "workers": workers})
    assert hashes(run(spread, tmp_path / "ray")) == expected


# Exchanges of what is no model.


class Counting(MethodWrapper):
    """Before round 0 all peers learn how many samples there are."""

    @property
    def setup_rounds(self) -> int:
        return 1

    def initial_state(self, replica: int) -> Tensors:
        return {**self.inner.initial_state(replica), "samples": torch.zeros(1, dtype=torch.float64)}

    def broadcast(self, state: Tensors, round: int) -> Broadcast:
        if round >= 0:
            return self.inner.broadcast(state, round)
        expects = Layout({"samples": (1,)}, torch.float64)
        return Broadcast(state["model"], expects, phase="count", reduce="sum", everyone=True)

    def client_update(self, broadcast: Broadcast, block: Any) -> Update:
        if broadcast.phase == "train":
            return self.inner.client_update(broadcast, block)
        return Update(block.counts.double()[:, None], block.counts.double())

    def server_update(self, state: Tensors, inbox: Inbox, round: int) -> Tensors:
        if round >= 0:
            return self.inner.server_update(state, inbox, round)
        return {**state, "samples": inbox.aggregate.expand_as(state["samples"])}


def test_sums_are_flooded_to_all_peers(registered: Callable[..., Any], run_in: Callable[..., Result]) -> None:
    registered("wrapper", "counting")(dataclass(frozen=True, kw_only=True)(Counting))
    experiment = gossip(training={**BASE["training"], "wrappers": ["counting"]})
    result = run_in(experiment)
    total = float(len(Federation(experiment).training))
    assert peers_of(result)["samples"].flatten().tolist() == [total] * PEERS
    assert result.rounds == ROUNDS
