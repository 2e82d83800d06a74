"""Statistics that modules measure: they decide nothing, nobody steps them, and admission bounds them by themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedgen import aggregate, registry
from fedgen.admission import Limits, judge
from fedgen.aggregation.statistics import apply_rule, merged
from fedgen.config import Experiment
from fedgen.contracts import Context, Rule
from fedgen.federation import Federation
from fedgen.leaves import Held
from fedgen.parameters import Layout, Tensors
from fedgen.rows import LocalRows, columns_of
from fedgen.server.pools.pool import Interrupt, SerialPool
from fedgen.server.pools.sliced_rows import SlicedRows
from fedgen.server.run.start import Result
from fedgen.server.store.journal import read_lines
from fedgen.training.batches import draw_batches

LAYOUT = Layout(
    {"weight": (6, 10), "running_mean": (4,), "running_var": (4,), "control": (2,)},
    running={"running_var": "running_mean"},
)
"""Columns 60 to 67 are statistics, across the edge of a slice of 64."""


def rows_of(n: int, seed: int = 0) -> Tensor:
    rows = torch.randn(n, LAYOUT.size, generator=torch.Generator().manual_seed(seed))
    rows[:, LAYOUT.measured] = rows[:, LAYOUT.measured].abs()
    return rows


def context_of(n: int, f: int, root: Tensor | None = None) -> Context:
    return Context(torch.zeros(LAYOUT.size), LAYOUT, torch.arange(n), f, root=root)


RULES = [*registry.members("rule"), *(f"{wrapper} mean" for wrapper in registry.members("rule_wrapper"))]


@pytest.fixture(params=[*RULES, "nnm median", "delta_sum krum", "variance_correction flag"])
def rule(request: pytest.FixtureRequest, federation: Federation) -> Rule:
    *wrapper, part = request.param.split()
    built = registry.build("rule", part, {}, facts=federation.facts)
    return registry.build("rule_wrapper", wrapper[0], {}, inner=built) if wrapper else built  # type: ignore[no-any-return]


def test_a_rule_decides_by_parameters_and_keeps_statistics_among_those_sent(rule: Rule) -> None:
    n = rule.minimum(1) + 3
    rows, others, weights = rows_of(n), rows_of(n), torch.ones(n, dtype=torch.float64)
    others[:, LAYOUT.measured] = 50 * torch.rand(n, 8, generator=torch.Generator().manual_seed(3))
    one, other = (apply_rule(rule, LocalRows(each, 64), weights, context_of(n, 1, each[0])) for each in (rows, others))
    outside = torch.ones(LAYOUT.size, dtype=torch.bool)
    outside[LAYOUT.measured] = False
    assert torch.equal(one.aggregate[outside], other.aggregate[outside])
    assert not torch.equal(one.aggregate, other.aggregate)
    for sent, result in ((rows, one), (others, other)):
        part, held = result.aggregate[LAYOUT.measured], sent[:, LAYOUT.measured]
        assert (part >= held.amin(0) - 1e-5).all()
        between = held[:, :4].var(0, correction=0) if isinstance(rule.linear, bool) else 0  # the law of total variance
        assert (part[:4] <= held[:, :4].amax(0) + 1e-5).all()
        assert (part[4:] <= held[:, 4:].amax(0) + 4 * between + 1e-5).all()


def test_the_coefficients_weigh_statistics_and_a_rule_without_any_takes_the_median(rule: Rule) -> None:
    n = rule.minimum(1) + 3
    rows, weights = rows_of(n), torch.ones(n, dtype=torch.float64)
    result = apply_rule(rule, LocalRows(rows, 64), weights, context_of(n, 1, rows[0]))
    if getattr(rule, "merges_statistics", False):
        return
    sent = rows[:, LAYOUT.measured]
    if result.coefficients is None:
        expected = torch.from_numpy(np.median(sent.numpy(), axis=0))
    else:
        shares = result.coefficients.clamp_min(0)
        expected = (shares / shares.sum() @ sent.double()).float()
    torch.testing.assert_close(result.aggregate[LAYOUT.measured], expected)


def test_statistics_in_slices_at_the_workers_give_the_bits_of_local_rows(
    rule: Rule, federation: Federation, fingerprint: Callable[[Any], str]
) -> None:
    n = rule.minimum(1) + 3
    rows, weights = rows_of(n), torch.ones(n, dtype=torch.float64)
    parts = tuple((Held(rows[:, columns].contiguous()),) for columns in columns_of(LAYOUT.size, 64))
    sliced = SlicedRows(SerialPool(federation, Interrupt()), parts, LAYOUT.size, 64)
    here, there = (apply_rule(rule, each, weights, context_of(n, 1, rows[0])) for each in (LocalRows(rows, 64), sliced))
    assert fingerprint(here) == fingerprint(there)


def test_negative_coefficients_count_as_nothing() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0], [100.0, -100.0]])
    assert merged(values, torch.tensor([1.0, 3.0, -0.5])).tolist() == [2.5, 5.0]
    assert merged(values, torch.tensor([-1.0, 0.0, -2.0])).tolist() == [0.0, 0.0]


# Admission.

SOUND = [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        (62, nan, "statistic running_mean is not finite"),
        (65, inf, "statistic running_var is not finite"),
        (66, -1.5, "statistic running_var is -0.5, below 0"),
        (61, 2e3, "statistic running_mean is 2e+03, beyond 1e+03 (aggregation.statistics_limit)"),
        (60, -2e3, "statistic running_mean is -2e+03, beyond 1e+03 (aggregation.statistics_limit)"),
        (64, 2e6, "statistic running_var is 2e+06, beyond 1e+06 (aggregation.statistics_limit)"),
    ],
)
def test_statistics_are_judged_by_themselves(place: int, value: float, reason: str) -> None:
    """As the module would hold them, not as differences; the length of a row is of the rest."""
    reference = torch.zeros(LAYOUT.size)
    reference[LAYOUT.measured] = torch.tensor(SOUND)
    rows = torch.zeros(3, LAYOUT.size)
    rows[1, place] = value
    admission = judge(LocalRows(rows, 64), torch.ones(3).double(), reference, LAYOUT, Limits(1.0, 1e3))
    assert admission.mask.tolist() == [True, False, True]
    assert admission.reasons == {1: reason}


def test_statistics_within_their_limit_are_no_part_of_the_length() -> None:
    rows = torch.zeros(1, LAYOUT.size)
    rows[0, LAYOUT.measured] = 900.0
    assert judge(LocalRows(rows), torch.ones(1).double(), torch.zeros(LAYOUT.size), LAYOUT, Limits(1.0, 1e3)).mask.all()


def test_what_rounding_leaves_below_zero_is_a_variance_still() -> None:
    reference = torch.zeros(LAYOUT.size)
    rows = torch.zeros(1, LAYOUT.size)
    rows[0, 66] = -1e-7
    assert judge(LocalRows(rows), torch.ones(1).double(), reference, LAYOUT, Limits(1.0, 1e3)).mask.all()


# Runs.


def normalised(**tables: dict[str, Any]) -> Experiment:
    base: dict[str, dict[str, Any]] = {
        "experiment": {"seed": 2},
        "data": {"clients": 8, "partition": "iid"},
        "model": {"name": "mlp", "hidden": [12], "norm": "batch"},
        "training": {"steps": 2, "batch_size": 16},
        "federation": {"rounds": 3, "cohort": 8},
        "runtime": {"backend": "serial"},
        "tracking": {"report": False},
    }
    if tables.get("federation", {}).get("mode") == "gossip":
        base["federation"] = {"rounds": 3}
    return Experiment(**{name: base.get(name, {}) | tables.get(name, {}) for name in base | tables})


SERVER_OPTIMIZERS = {
    "sgd": {},
    "momentum": {"name": "sgd", "momentum": 0.9, "lr": 0.7},
    **{name: {"name": name, "lr": 0.05} for name in ("adagrad", "adam", "yogi")},
}


@pytest.mark.parametrize("name", SERVER_OPTIMIZERS)
def test_federated_averaging_with_batch_norm_is_the_plain_loop(name: str, run_in: Callable[..., Result]) -> None:
    """A loop of torch modules: parameters are stepped by the optimiser's formula, statistics are averaged."""
    server = {"name": "sgd", **SERVER_OPTIMIZERS[name]}
    experiment = normalised(federation={"rounds": 4, "cohort": 5, "server_optimizer": server})
    result = run_in(experiment)
    expected = plain_loop(Federation(experiment), server, rounds=4)
    saved = load_file(result.folder / "model.safetensors")
    assert saved.keys() == expected.keys()
    for key, value in expected.items():
        if "num_batches" not in key:
            torch.testing.assert_close(saved[key], value, rtol=1e-5, atol=1e-5)
    assert (saved["2.running_var"] > 0).all()


def plain_loop(federation: Federation, server: dict[str, Any], rounds: int) -> Tensors:
    """State of the server's module after some rounds, as one would write it with torch alone."""
    model = federation.learner.model
    module = model.fresh()
    module.load_state_dict(model.state_dict(federation.method.initial_state(0)["model"]))
    trained = [key for key, parameter in module.named_parameters() if parameter.requires_grad]
    first = {key: torch.zeros_like(module.get_parameter(key)) for key in trained}
    second = {key: torch.full_like(module.get_parameter(key), 1e-6) for key in trained}
    for round in range(rounds):
        clients = torch.cat(federation.cohort(round, everyone=False))
        sent = [client_of(federation, module, int(client), round) for client in clients]
        weights = federation.counts[clients].double()
        for key, held in module.state_dict().items():
            if "num_batches" in key:
                continue
            mean = sum(w * state[key].double() for w, state in zip(weights, sent, strict=True)) / weights.sum()
            change = mean.float() - held
            if key in trained:
                change = stepped(server, first, second, key, change)
            held.add_(change)
    return module.state_dict()


def client_of(federation: Federation, server: nn.Module, client: int, round: int) -> Tensors:
    module = federation.learner.model.fresh()
    module.load_state_dict(server.state_dict())
    block = federation.block(torch.tensor([client]), torch.zeros(1), {}, round)
    batches = draw_batches(block, 16, None, 2, smallest=2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for index, size in zip(batches.index[0], batches.sizes[0], strict=True):
        optimizer.zero_grad()
        x, y = block.x[0, index[:size]], block.y[0, index[:size]]
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return {key: value.clone() for key, value in module.state_dict().items()}


def stepped(server: dict[str, Any], first: Tensors, second: Tensors, key: str, change: Tensor) -> Tensor:
    """What the server adds to a parameter: FedAvgM, and algorithm 2 of Reddi et al."""
    if server["name"] == "sgd":
        first[key] = server.get("momentum", 0.0) * first[key] + change
        return server.get("lr", 1.0) * first[key]
    beta, square = (0.0 if server["name"] == "adagrad" else 0.9), change**2
    first[key] = beta * first[key] + (1 - beta) * change
    second[key] = {
        "adagrad": lambda v: v + square,
        "adam": lambda v: 0.99 * v + 0.01 * square,
        "yogi": lambda v: v - 0.01 * square * (v - square).sign(),
    }[server["name"]](second[key])
    moved: Tensor = server["lr"] * first[key] / (second[key].sqrt() + 1e-3)
    return moved


@pytest.mark.parametrize("server", [{"momentum": 0.9}, {"name": "adam", "lr": 0.02}], ids=["momentum", "adam"])
def test_batch_norm_learns_under_server_momentum_and_adam(
    server: dict[str, Any], run_in: Callable[..., Result]
) -> None:
    federation = {"rounds": 40, "cohort": 8, "server_optimizer": server, "evaluate_every": 40}
    result = run_in(normalised(federation=federation, training={"steps": 4}))
    assert result.state == "completed"
    assert result.metrics["accuracy"] > 0.8


@pytest.mark.parametrize("mode", ["star", "gossip"])
def test_worker_momentum_is_of_parameters(mode: str, run_in: Callable[..., Result]) -> None:
    """Statistics are sent as they were measured."""
    tables: dict[str, dict[str, Any]] = {"federation": {"mode": mode, "rounds": 1}}
    if mode == "gossip":
        tables["gossip"] = {"seed_agreement": True, "topology": "complete"}
    results = {}
    for name, wrappers in {"plain": [], "momentum": ["worker_momentum"]}.items():
        result = run_in(normalised(**tables, training={"wrappers": wrappers}), name)
        results[name] = load_file(result.folder / "model.safetensors")
    assert torch.equal(results["plain"]["2.running_mean"], results["momentum"]["2.running_mean"])
    assert not torch.allclose(results["plain"]["1.weight"], results["momentum"]["1.weight"])


@pytest.mark.parametrize("name", ["mean", "median", "krum", "flag", "fltrust", "monna"])
@pytest.mark.parametrize("scale", [100.0, -100.0, 1e20])
def test_an_attack_on_statistics_alone_is_turned_away_or_bounded(
    name: str, scale: float, run_in: Callable[..., Result]
) -> None:
    """Whatever the rule: the model stays finite, variances stay above 0, and what is refused is refused by name."""
    attackers = {"attack": {"name": "statistics", "scale": scale}, "clients": [1]}
    rule: Any = {"name": name, "root_samples": 20} if name == "fltrust" else name
    result = run_in(normalised(aggregation={"rule": rule, "f": int(name != "mean")}, byzantine=attackers))
    saved = load_file(result.folder / "model.safetensors")
    assert all(value.isfinite().all() for value in saved.values())
    assert (saved["2.running_var"] >= 0).all()
    reasons = {event["reason"] for event in read_lines(result.folder / "events.jsonl") if event["event"] == "rejected"}
    assert bool(reasons) == (scale > 0), (
        "a variance that falls a hundredfold would be below 0, one that rises would not"
    )
    assert all(reason.startswith("statistic 2.running_") for reason in reasons)
    if scale > 0:
        assert result.metrics["loss"] < 5


@pytest.mark.parametrize(("rule", "scale"), [("mean", -100.0), ("median", 1e20), ("krum", -100.0)])
def test_in_gossip_too(rule: str, scale: float, run_in: Callable[..., Result]) -> None:
    attackers = {"attack": {"name": "statistics", "scale": scale}, "clients": [1]}
    network = {"federation": {"mode": "gossip"}, "gossip": {"topology": "complete"}}
    settings: dict[str, Any] = {"rule": rule, "f": int(rule != "mean")}
    result = run_in(normalised(**network, aggregation=settings, byzantine=attackers))
    assert all(value.isfinite().all() for value in load_file(result.folder / "model.safetensors").values())
    events = read_lines(result.folder / "events.jsonl")
    rejected = [event for event in events if event["event"] == "rejected"]
    assert {event["client"] for event in rejected} == {1}
    assert all(event["reason"].startswith("statistic 2.running_") for event in rejected)


@pytest.mark.parametrize("attack", ["sign_flip", "gaussian", "alie", "constant"])
def test_published_attacks_leave_statistics_as_they_were_measured(attack: str, run_in: Callable[..., Result]) -> None:
    """They are of gradients: nobody is turned away for a variance that an attack never spoke of."""
    result = run_in(normalised(aggregation={"rule": "median", "f": 2}, byzantine={"attack": attack, "clients": 2}))
    assert not [event for event in read_lines(result.folder / "events.jsonl") if event["event"] == "rejected"]


MASKED = """
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.out, self.fixed = nn.Linear(64, 8), nn.Linear(8, 10), nn.Linear(64, 8)
        self.fixed.requires_grad_(False)
        self.register_buffer("mask", torch.full((3, 3), float("-inf")).triu(1))
        self.register_buffer("order", torch.arange(3))
        self.register_buffer("scratch", torch.rand(4), persistent=False)
        self.tied = nn.Linear(64, 8)
        self.tied.weight = self.a.weight
    def forward(self, x):
        x = x.flatten(1)
        return self.out((self.a(x) + self.tied(x) + self.fixed(x)).relu())
"""


@pytest.mark.parametrize("mode", ["star", "gossip"])
def test_constants_do_not_travel_and_are_saved(
    mode: str, user_module: Callable[[str, str], Path], run_in: Callable[..., Result]
) -> None:
    """A mask of -inf makes no update "not finite"; all peers have the frozen weights of replica 0."""
    user_module("masked", MASKED)
    gossip = {"topology": "complete"} if mode == "gossip" else {}
    tables = normalised(federation={"mode": mode}, gossip=gossip).model_dump()
    experiment = Experiment(**{**tables, "model": {"name": "masked:Net"}})
    result = run_in(experiment)
    assert result.state == "completed"
    federation = Federation(experiment)
    assert federation.method.layout.size == 64 * 8 + 8 + 8 * 10 + 10 + 8
    saved = load_file(result.folder / "model.safetensors")
    module = federation.learner.model.fresh()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.load_state_dict(saved, strict=True)
    assert torch.equal(saved["fixed.weight"], before["fixed.weight"])
    assert torch.equal(saved["tied.weight"], saved["a.weight"])
    assert not torch.equal(saved["a.weight"], before["a.weight"])
    assert saved["order"].dtype == torch.int64


def test_what_training_changes_stays_with_its_client_through_checkpoints(run_in: Callable[..., Result]) -> None:
    """The counter of BatchNorm: of those that took part, once a step, and found again after a resume."""
    from fedgen.server.run.start import resume

    result = run_in(normalised(federation={"rounds": 2, "cohort": 3}, runtime={"checkpoint_every": 1}))
    from fedgen.server.store.checkpoint import load_newest

    loaded = load_newest(result.folder)
    assert loaded is not None
    held = loaded[0].clients.tensors()
    assert (held["buffer.2.num_batches_tracked"] >= 2).all()
    whole = run_in(normalised(federation={"rounds": 3, "cohort": 3}), "whole")
    assert resume(result.folder, rounds=3).client_sha256 == whole.client_sha256


def test_a_layout_says_what_is_a_statistic() -> None:
    layout = replace(LAYOUT)
    assert layout.statistics == {"running_mean", "running_var"}
    assert (layout.parameters, layout.measured) == (slice(0, 60), slice(60, 68))
    assert layout.variances == ["running_var"]
    assert layout.weights == ["weight"]
    assert Layout({"weight": (2,)}).measured == slice(2, 2)


@pytest.mark.parametrize("rule", ["krum", "median", "flag", "mean"])
def test_statistics_of_state_dicts_decide_nothing(rule: str) -> None:
    """What an update with odd statistics is worth is its weights, where plain state dicts are aggregated too."""
    plain = [{"w": torch.full((2, 2), 0.1 * place), "norm.running_var": torch.ones(2)} for place in range(7)]
    variances = [torch.full((2,), 1.0 + 1e3 * (place == 3)) for place in range(7)]
    odd = [{**each, "norm.running_var": variance} for each, variance in zip(plain, variances, strict=True)]
    f = int(rule != "mean")
    one, other = (aggregate(updates, rule, f=f).aggregate for updates in (plain, odd))
    torch.testing.assert_close(one["w"], other["w"])
    assert list(one) == ["w", "norm.running_var"]
