"""Variance correction: the law of averaging, the way back, where it is left out, and who cannot abuse it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import exp, log
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedgen import Experiment, Result, registry
from fedgen.aggregation.mean import Mean
from fedgen.aggregation.trimmed_mean import TrimmedMean
from fedgen.aggregation.variance_correction import DRIFT, FACTOR, VarianceCorrection
from fedgen.aggregation.variances import RowMoments, rescale, variances
from fedgen.contracts import BatchedMerge, Context, Inboxes, Rule
from fedgen.federation import Federation
from fedgen.models.model import running_statistics, scale_free
from fedgen.parameters import Layout
from fedgen.rows import LocalRows
from fedgen.server.store.journal import read_lines
from fedgen.topology.mixing import Uniform, normalised
from fedgen.topology.network import Network, network_of

LAYOUT = Layout({"a.weight": (64, 64), "a.bias": (64,), "b.weight": (10, 64)})
PEERS = 64


def network(topology: Any, peers: int = PEERS) -> Network:
    return network_of(Experiment(data={"clients": peers}, federation={"mode": "gossip"}, gossip={"topology": topology}))


def strangers(peers: int = PEERS, seed: int = 0) -> Tensor:
    """[N, d]: models that have never met."""
    return torch.randn(peers, LAYOUT.size, generator=torch.Generator().manual_seed(seed))


def inboxes(graph: Any, models: Tensor, rule: Any, keep: float = 0.5, layout: Layout = LAYOUT, **more: Any) -> Inboxes:
    weights, received = normalised(graph.hears)
    seen = merging(rule).observe(models, layout)
    return Inboxes(models, models, weights, Uniform(keep).share(received), layout, seen, seen, **more)


def merging(rule: Rule) -> BatchedMerge:
    """How a rule merges many inboxes at once."""
    batched = rule.batched()
    assert batched is not None
    return batched


def spread(models: Tensor) -> float:
    """The mean variance of the larger weight."""
    return float(variances(models, LAYOUT)[:, 0].mean())


# The law.


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("degree", [2, 4, 8])
def test_one_mix_of_strangers_shrinks_the_variance_as_the_law_says(keep: float, degree: int) -> None:
    models, graph = strangers(), network({"name": "k_regular", "degree": degree}).graph(0)
    mixed = merging(Mean()).merge(inboxes(graph, models, Mean(), keep)).models
    assert spread(mixed) / spread(models) == pytest.approx(keep**2 + (1 - keep) ** 2 / degree, rel=0.03)


@pytest.mark.parametrize("topology", [{"name": "k_regular", "degree": 4}, "scale_free"])
def test_the_floor_is_that_of_the_stationary_distribution(topology: Any) -> None:
    """sigma^2 |v|^2, which is sigma^2 / N where all have as many neighbours."""
    drawn, models = network(topology), strangers()
    stationary = np.linalg.matrix_power(drawn.matrix(0).toarray(), 4096)[0]
    mixed = models
    for _ in range(200):
        mixed = merging(Mean()).merge(inboxes(drawn.graph(0), mixed, Mean())).models
    assert spread(mixed) / spread(models) == pytest.approx(float((stationary**2).sum()), rel=0.05)


@pytest.mark.parametrize("policy", ["paper", "auto"])
@pytest.mark.parametrize("topology", [{"name": "k_regular", "degree": 4}, "scale_free", "ring"])
def test_corrected_models_keep_their_variance(topology: Any, policy: Any) -> None:
    rule, graph = VarianceCorrection(inner=Mean(), policy=policy), network(topology).graph(0)
    models, memory = strangers(), {}
    first = spread(models)
    for _ in range(20):
        mixed = merging(rule).merge(inboxes(graph, models, rule, memory=memory))
        models, memory = mixed.models, mixed.memory
        assert abs(log(spread(models) / first)) < 0.1


def test_the_variance_is_kept_while_peers_train(run_in: Callable[..., Result]) -> None:
    def ratios(wrappers: list[str]) -> list[float]:
        experiment = Experiment(
            data={"clients": 32, "validation": 0.0, "standardise": True},
            model={"hidden": [64, 64], "init": "xavier"},
            training={"steps": 1, "batch_size": 16, "optimizer": {"lr": 0.01, "momentum": 0.9}},
            federation={"mode": "gossip", "rounds": 20},
            aggregation={"wrappers": wrappers},
            runtime={"backend": "serial"},
            tracking={"report": False},
        )
        records = read_lines(run_in(experiment, str(wrappers)).folder / "metrics.jsonl")
        return [log(record["variance"]["3.weight"] * 64) for record in records]

    assert max(map(abs, ratios(["variance_correction"]))) < 0.1
    assert min(ratios([])) < log(0.1)


# The paper's formula and ours.


def formula(models: Tensor, senders: list[int], receiver: int, keep: float) -> dict[str, Tensor]:
    """The corrected model of one receiver, tensor after tensor, as the paper has it."""
    views = LAYOUT.view(models.double())
    corrected = {}
    for name, tensor in views.items():
        merged = keep * tensor[receiver] + (1 - keep) * tensor[senders].mean(0)
        if tensor.dim() > 2:
            target = torch.stack([tensor[sender].var(correction=0) for sender in senders]).mean()
            merged = (merged - merged.mean()) * (target / merged.var(correction=0)).sqrt() + merged.mean()
        corrected[name] = merged
    return corrected


@given(
    seed=st.integers(0, 1000),
    keep=st.floats(0.0, 0.9, allow_subnormal=False),
    offset=st.floats(-2, 2, allow_subnormal=False),
)
def test_the_papers_policy_is_the_papers_formula(seed: int, keep: float, offset: float) -> None:
    models = strangers(6, seed) * torch.linspace(0.5, 2.0, 6)[:, None] + offset
    graph = network({"name": "k_regular", "degree": 3}, 6).graph(0)
    rule = VarianceCorrection(inner=Mean(), policy="paper")
    mixed = LAYOUT.view(merging(rule).merge(inboxes(graph, models, rule, keep)).models)
    for name, expected in formula(models, graph.inbox(2).tolist(), 2, keep).items():
        torch.testing.assert_close(mixed[name][2].double(), expected, rtol=1e-3, atol=2e-4)


@given(
    seed=st.integers(0, 1000),
    policy=st.sampled_from(["paper", "auto"]),
    topology=st.sampled_from(["ring", "star", "scale_free"]),
    drifted=st.booleans(),
)
def test_many_inboxes_at_once_are_corrected_as_one(seed: int, policy: Any, topology: str, drifted: bool) -> None:
    models = strangers(8, seed) * torch.linspace(0.5, 2.0, 8)[:, None]
    graph, rule = network(topology, 8).graph(0), VarianceCorrection(inner=Mean(), policy=policy)
    memory = {DRIFT: torch.full((8, 2), 0.015, dtype=torch.float64)} if drifted else {}
    together = merging(rule).merge(inboxes(graph, models, rule, memory=memory))
    for peer in range(8):
        senders = torch.from_numpy(graph.inbox(peer))
        own = {name: value[peer] for name, value in memory.items()}
        context = Context(models[peer], LAYOUT, senders, 0, own, share=0.5)
        rows, equal = LocalRows(models[senders] - models[peer], 64), torch.ones(len(senders)).double()
        alone = rule.aggregate(rows, equal, context)
        torch.testing.assert_close(models[peer] + 0.5 * alone.aggregate, together.models[peer], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            alone.diagnostics.by_weight[FACTOR], together.diagnostics.by_weight[FACTOR][peer], rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(alone.memory[DRIFT], together.memory[DRIFT][peer], rtol=1e-3, atol=1e-5)


@given(st.integers(0, 1000))
def test_moments_of_slices_are_those_of_rows(seed: int) -> None:
    rows, reference = strangers(3, seed), strangers(1, seed + 1)[0]
    whole = torch.from_numpy(variances(reference + rows, LAYOUT))
    sliced = torch.from_numpy(RowMoments(reference, LAYOUT).variances(LocalRows(rows, 192)))
    torch.testing.assert_close(sliced, whole, rtol=1e-4, atol=1e-6)


@given(factor=st.floats(0.1, 10.0), offset=st.floats(-3, 3, allow_subnormal=False))
def test_rescaling_multiplies_deviations_and_keeps_the_mean(factor: float, offset: float) -> None:
    models = strangers(2) + offset
    changed = models.clone()
    rescale(changed, np.array([[factor, 1.0], [1.0, 1.0]]), LAYOUT)
    before, after = LAYOUT.view(models), LAYOUT.view(changed)
    assert torch.equal(changed[1], models[1])
    assert torch.equal(after["b.weight"], before["b.weight"])
    assert torch.equal(after["a.bias"], before["a.bias"])
    mean = before["a.weight"][0].mean()
    expected = (before["a.weight"][0] - mean) * factor + mean
    torch.testing.assert_close(after["a.weight"][0], expected, rtol=1e-3, atol=1e-3)


# Where "auto" does not act.


def test_small_factors_are_skipped_until_their_product_is_worth_it() -> None:
    rule = VarianceCorrection(inner=Mean())
    own, drift, layout = np.ones((1, 2)), np.zeros((1, 2)), LAYOUT
    models, scales = strangers(1), []
    first = variances(models, layout)[0, 0]
    for _ in range(12):
        shrunk = models * exp(-0.004)
        own = variances(models, layout)
        told = rule._correct(shrunk, own, own, drift, layout)
        drift, models = told[DRIFT], shrunk
        scales.append(0.5 * log(variances(models, layout)[0, 0] / first))
    assert max(map(abs, scales)) < 0.021, "the drift stays within the tolerance"
    assert min(scales) < -0.015, "and is let be inside it"
    assert scales[4] == pytest.approx(0.0, abs=1e-4), "then all of it is made good"


def test_what_a_normalisation_follows_is_left_alone() -> None:
    layout = replace(LAYOUT, scale_free=frozenset({"a.weight"}))
    graph, models = network("ring", 8).graph(0), strangers(8)
    rule = VarianceCorrection(inner=Mean())
    plain = merging(Mean()).merge(inboxes(graph, models, Mean(), layout=layout)).models
    corrected = merging(rule).merge(inboxes(graph, models, rule, layout=layout))
    assert torch.equal(layout.view(corrected.models)["a.weight"], layout.view(plain)["a.weight"])
    assert (corrected.diagnostics.by_weight[FACTOR][:, 0] == 1).all()
    assert (corrected.diagnostics.by_weight[FACTOR][:, 1] > 1.3).all()
    papers = VarianceCorrection(inner=Mean(), policy="paper")
    assert (
        merging(papers).merge(inboxes(graph, models, papers, layout=layout)).diagnostics.by_weight[FACTOR] > 1.3
    ).all()


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_models_say_what_a_normalisation_follows(norm: str) -> None:
    mlp = registry.build("model", "mlp", {"hidden": (8, 8), "norm": norm}).module((4,), 3)
    assert scale_free(mlp) == {"1.weight", "1.bias", "4.weight", "4.bias"}
    nested = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.ReLU(), nn.Linear(3, 3))
    assert scale_free(nested) == {"0.0.weight", "0.0.bias"}
    declared = nn.Linear(2, 2)
    declared.scale_free = {"weight"}  # type: ignore[assignment]
    assert scale_free(declared) == {"weight"}


def test_constant_tensors_stay_as_they_are() -> None:
    models, graph = torch.zeros(4, LAYOUT.size), network("ring", 4).graph(0)
    for policy in ("paper", "auto"):
        rule = VarianceCorrection(inner=Mean(), policy=policy)
        assert torch.equal(merging(rule).merge(inboxes(graph, models, rule)).models, models)


# Running statistics.


@pytest.mark.parametrize("inner", ["mean", "median"])
def test_running_variances_are_those_of_all_samples(inner: str) -> None:
    """Three peers that hear one another, all of equal share: the mixture is the pool of what they have seen."""
    names = ["norm.running_mean", "norm.running_var"]
    layout = Layout(dict.fromkeys(names, (5,)), running=running_statistics(names))
    assert layout.running == {"norm.running_var": "norm.running_mean"}
    samples = torch.randn(3, 1000, 5, generator=torch.Generator().manual_seed(0)).double() * 2
    samples[:] -= samples.mean((1), keepdim=True)
    samples += torch.tensor([-1.0, 0.0, 1.0])[:, None, None]
    models = torch.cat([samples.mean(1), samples.var(1, correction=0)], dim=1).float()
    rule = VarianceCorrection(inner=registry.build("rule", inner, {}))
    context = Context(models[1], layout, torch.tensor([0, 2]), 0, share=2 / 3)
    aggregate = rule.aggregate(LocalRows(models[[0, 2]] - models[1]), torch.ones(2).double(), context).aggregate
    merged = layout.view(models[1] + 2 / 3 * aggregate)
    pool = samples.flatten(0, 1)
    torch.testing.assert_close(merged["norm.running_mean"], pool.mean(0).float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(merged["norm.running_var"], pool.var(0, correction=0).float(), atol=0.05, rtol=0.02)
    if inner == "mean":
        graph = network("complete", 3).graph(0)
        together = merging(rule).merge(inboxes(graph, models, rule, keep=1 / 3, layout=layout)).models[1]
        torch.testing.assert_close(layout.view(together)["norm.running_var"], merged["norm.running_var"])


# Byzantine clients.


@pytest.mark.parametrize("lie", [30.0, -2.0, 0.0], ids=["x30", "x-2", "zeros"])
def test_a_minority_of_liars_does_not_set_the_target(lie: float) -> None:
    def after(policy: Any) -> float:
        rule = VarianceCorrection(inner=TrimmedMean(), policy=policy)
        models = strangers(9)
        models[:2] = lie * models[:2] if lie else 0.0
        context = Context(models[8], LAYOUT, torch.arange(8), 2, share=0.5)
        aggregate = rule.aggregate(LocalRows(models[:8] - models[8]), torch.ones(8).double(), context).aggregate
        return abs(log(spread((models[8] + 0.5 * aggregate)[None])))

    assert after("auto") < 0.1
    assert after("paper") > 0.2


def test_the_target_stays_near_the_own_variance_where_liars_are_many() -> None:
    rule = VarianceCorrection(inner=TrimmedMean())
    models = strangers(5)
    models[:4] *= 1000
    context = Context(models[4], LAYOUT, torch.arange(4), 1, share=0.5)
    aggregate = rule.aggregate(LocalRows(models[:4] - models[4]), torch.ones(4).double(), context).aggregate
    assert spread((models[4] + 0.5 * aggregate)[None]) == pytest.approx(4 * spread(models[4:]), rel=0.01)


def test_in_a_star_too_the_model_keeps_its_variance(run_in: Callable[..., Result]) -> None:
    result = run_in(
        Experiment(
            data={"clients": 12},
            model={"hidden": [16]},
            federation={"rounds": 3, "cohort": 6},
            aggregation={"wrappers": ["variance_correction"], "rule": "median", "slice": 64},
            runtime={"backend": "serial"},
            tracking={"report": False},
        )
    )
    assert result.state == "completed"


def test_the_mean_inside_it_still_mixes() -> None:
    experiment = Experiment(aggregation={"wrappers": [{"name": "variance_correction", "policy": "paper"}]})
    rule = Federation(experiment).rule
    assert isinstance(rule, VarianceCorrection)
    assert rule.batched()
    assert rule.policy == "paper"
