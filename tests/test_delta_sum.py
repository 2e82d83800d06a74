"""Delta-Sum: the formula, any rule inside it and correction around it, both clocks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fedgen import Experiment, Result, resume, run
from fedgen.aggregation.delta_sum import DeltaSum, with_delta
from fedgen.aggregation.mean import Mean
from fedgen.clients.mail import Messages, observe
from fedgen.clients.merging import Delivery, Memories, Merge, merge_peers
from fedgen.contracts import Broadcast, Context, Inboxes
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.parameters import Layout
from fedgen.rows import LocalRows
from fedgen.server.run.loops import checked
from fedgen.server.store.checkpoint import load_newest
from fedgen.server.store.journal import read_lines

PEERS = 12
SCALE = 0.5

BASE: dict[str, dict[str, Any]] = {
    "data": {"clients": PEERS},
    "model": {"hidden": [8]},
    "training": {"steps": 1, "batch_size": 8, "block": 5},
    "federation": {"mode": "gossip", "rounds": 4},
    "gossip": {"keep": 0.25, "topology": {"name": "k_regular", "degree": 4}},
    "runtime": {"backend": "serial", "checkpoint_every": 2},
    "tracking": {"report": False},
}


def summing(rule: str = "mean", *wrappers: str, f: int = 0, **tables: dict[str, Any]) -> Experiment:
    section = {"rule": rule, "wrappers": [{"name": "delta_sum", "scale": SCALE}, *wrappers], "f": f}
    base = {**BASE, "aggregation": section}
    return Experiment(**{name: base.get(name, {}) | tables.get(name, {}) for name in base | tables})


def summed(model: Tensor, delta: Tensor, models: Tensor, deltas: Tensor, keep: float) -> Tensor:
    """One merge by means, from the paper's formula: models[k, d] and deltas[k, d] are the neighbours'."""
    base = keep * (model - delta) + (1 - keep) * (models - deltas).mean(0)
    return base + SCALE * (delta + deltas.sum(0))


def rows_of(federation: Federation) -> Tensor:
    """[N, 2 d]: a model and a smaller delta for every peer."""
    size = federation.method.layout.size
    rows = torch.randn(PEERS, 2 * size, generator=torch.Generator().manual_seed(0))
    rows[:, size:] *= 0.1
    return rows


@pytest.mark.parametrize("wrappers", [(), ("variance_correction",)])
@pytest.mark.parametrize("rule", ["mean", "median", "krum"])
def test_peers_merge_as_the_reference_of_one_receiver_says(rule: str, wrappers: tuple[str, ...]) -> None:
    federation = Federation(summing(rule, *wrappers))
    rows, graph, size = rows_of(federation), federation.network.graph(0), federation.method.layout.size
    layout = with_delta(federation.method.layout)
    seen = observe(federation, rows)
    merge = Merge(0, layout, rows, {}, Messages(rows, np.arange(PEERS), np.ones(PEERS), seen), seen)
    for receivers in torch.arange(PEERS).split(5):
        report = merge_peers(federation, merge, Delivery(receivers, graph.hears[receivers.numpy()], {}, Memories()))
        for receiver, merged in zip(receivers.tolist(), report.state["model"], strict=True):
            near = torch.from_numpy(graph.inbox(receiver))
            own = rows[receiver]
            context = Context(own, layout, near, 0, share=0.75)
            ones = torch.ones(len(near), dtype=torch.float64)
            expected = federation.rule.aggregate(LocalRows(rows[near] - own), ones, context).aggregate[:size]
            torch.testing.assert_close(merged, own[:size] + 0.75 * expected, rtol=1e-4, atol=1e-5)
            if rule == "mean" and not wrappers:
                by_hand = summed(own[:size], own[size:], rows[near][:, :size], rows[near][:, size:], keep=0.25)
                torch.testing.assert_close(merged, by_hand, rtol=1e-4, atol=1e-5)


def test_many_inboxes_at_once_are_each_alone() -> None:
    """With inboxes of all sizes; one without a message keeps its model."""
    layout = Layout({"weight": (2, 3), "bias": (2,)})
    own = torch.randn(4, 16, generator=torch.Generator().manual_seed(1))
    sent = torch.randn(4, 16, generator=torch.Generator().manual_seed(2))
    counts = csr_array(np.array([[1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1]], float))
    weights = csr_array(counts / np.maximum(counts.sum(axis=1), 1)[:, None])
    share = np.array([0.5, 0.0, 0.3, 0.9])
    rule = DeltaSum(inner=Mean(), scale=SCALE)
    batched = rule.batched()
    assert batched is not None
    mixed = batched.merge(Inboxes(own, sent, weights, share, with_delta(layout))).models[:, :8]
    torch.testing.assert_close(mixed[1], own[1, :8])
    for peer, near in ((0, [0, 1, 2]), (2, [1]), (3, [0, 1, 2, 3])):
        expected = summed(own[peer, :8], own[peer, 8:], sent[near, :8], sent[near, 8:], keep=1 - share[peer])
        torch.testing.assert_close(mixed[peer], expected)


def test_running_statistics_are_averaged() -> None:
    layout = Layout({"weight": (2, 2), "mean": (2,), "var": (2,)}, running={"var": "mean"})
    own, sent = torch.randn(1, 16), torch.randn(3, 16)
    context = Context(own[0], with_delta(layout), torch.arange(3), 0, share=0.5)
    ones = torch.ones(3, dtype=torch.float64)
    result = DeltaSum(inner=Mean()).aggregate(LocalRows(sent - own), ones, context).aggregate
    torch.testing.assert_close(result[4:8], sent.mean(0)[4:8] - own[0, 4:8])
    assert not torch.allclose(result[:4], sent.mean(0)[:4] - own[0, :4])


def test_a_round_sums_what_its_training_changed(run_in: Callable[..., Result]) -> None:
    federation = Federation(summing())
    start = torch.stack([federation.method.initial_state(peer)["model"] for peer in range(PEERS)])
    everyone, layout = torch.arange(PEERS), federation.method.layout
    block = federation.block(everyone, start, {}, 0)
    delta = federation.method.client_update(Broadcast(start, layout), block).rows
    result = run_in(summing(federation={"rounds": 1}))
    models = load_newest(result.folder)[0].state["model"]
    graph = federation.network.graph(0)
    for peer in range(PEERS):
        near = torch.from_numpy(graph.inbox(peer))
        expected = summed(start[peer] + delta[peer], delta[peer], (start + delta)[near], delta[near], keep=0.25)
        torch.testing.assert_close(models[peer], expected, rtol=1e-4, atol=1e-5)
    (record,) = read_lines(result.folder / "metrics.jsonl")
    assert record["bytes"]["up"] == record["messages"] * 2 * 4 * layout.size


CASES: dict[str, dict[str, dict[str, Any]]] = {
    "rounds": {"faults": {"loss": 0.2, "churn": 0.2, "away": 1}},
    "events": {
        "federation": {"rounds": 40},
        "gossip": {"clock": "events"},
        "virtual_time": {"delay": [0, 5]},
        "faults": {"churn": 0.05, "away": 3},
    },
}


@pytest.mark.parametrize("rule", ["mean", "median"])
@pytest.mark.parametrize("case", [pytest.param("rounds", marks=pytest.mark.slow), "events"])
def test_one_hash_whatever_stops_it(
    case: str, rule: str, run_in: Callable[..., Result], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if rule == "mean":
        request.getfixturevalue("cluster")
    experiment = summing(rule, "variance_correction", **CASES[case])
    whole = run_in(experiment)
    split = experiment.replace(federation={"rounds": experiment.federation.rounds // 2})
    run(split.replace(runtime={"backend": "ray" if rule == "mean" else "serial", "workers": 2}), tmp_path / "split")
    assert resume(tmp_path / "split", rounds=experiment.federation.rounds).sha256 == whole.sha256


def test_in_virtual_time_a_change_is_summed_once(run_in: Callable[..., Result]) -> None:
    """Whoever has merged, and not trained since, has nothing left to add."""
    result = run_in(summing(federation={"rounds": 30}, gossip={"clock": "events"}))
    standing = load_newest(result.folder)[0]
    idle = standing.post["trained"] == 0
    changed = standing.post["changed"].norm(dim=1) > 0
    assert not changed[idle].any()
    assert 0 < changed.sum() < PEERS


def test_a_server_does_not_sum() -> None:
    section = {"mode": "star", "cohort": 1.0}
    tables = {**BASE, "aggregation": {"wrappers": ["delta_sum"]}, "federation": section, "gossip": {}}
    with pytest.raises(SettingError, match=r'"delta_sum" requires federation\.mode = "gossip"; in a star raise'):
        checked(Experiment(**tables))
