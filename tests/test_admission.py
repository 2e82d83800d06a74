"""Admission: one client's garbage, or one client's exception, costs that client and nobody else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf, nan, nextafter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from fedgen.admission import admit, as_sent, check_update
from fedgen.attacks.base import BaseAttack, Replace
from fedgen.attacks.forged import Forged
from fedgen.attacks.garbage import NUMBERS, WEIGHTS, Garbage
from fedgen.clients.cohort import Members, Training, train_block
from fedgen.config import Experiment
from fedgen.contracts import Broadcast, Columns, Rows, Update, View
from fedgen.data.dataset import Dataset
from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.parameters import Layout, Tensors
from fedgen.registry import members, parameters
from fedgen.server.pools.pool import Interrupt, SerialPool
from fedgen.server.report.run_record import RunFolder
from fedgen.server.rounds.session import Session
from fedgen.server.rounds.star import Star
from fedgen.server.run.result import Result
from fedgen.server.store.checkpoint import Standing
from fedgen.server.store.journal import Journal, read_lines
from fedgen.wire.message import METADATA, unseal


@dataclass(frozen=True)
class Constant:
    """slab -> a slab full of one number."""

    value: float

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return torch.full_like(slab, self.value)


@dataclass(frozen=True, kw_only=True)
class Rubbish(BaseAttack):
    """Sends one number in every column, or a weight of its own."""

    value: float = nan
    weight: float = 1.0

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        weights = torch.where(view.byzantine, self.weight, view.weights)
        return rows.map(Replace(view.byzantine, Constant(self.value))), weights, view.memory


@dataclass(frozen=True, kw_only=True)
class RubbishFromAll(Rubbish):
    """The same, sent with a view of the whole round."""

    omniscient: ClassVar[bool] = True


GARBAGE = [
    *({"name": "garbage", "kind": kind} for kind in [*NUMBERS, *WEIGHTS]),
    *({"name": "forged", "kind": kind} for kind in parameters(Forged).model_fields["kind"].annotation.__args__),
]
"""Every kind of garbage and of forged message, as byzantine.attack."""


@dataclass(frozen=True, kw_only=True)
class EveryGarbage(BaseAttack):
    """Client k < 16 sends the k-th kind of GARBAGE."""

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        weights = view.weights
        for kind in [*NUMBERS, *WEIGHTS]:
            mine = view.context.clients == GARBAGE.index({"name": "garbage", "kind": kind})
            rows, weights, _ = Garbage(kind=kind).corrupt(rows, replace(view, byzantine=mine, weights=weights))
        return rows, weights, view.memory

    def forger(self) -> Callable[[bytes], bytes]:
        return self.forge

    def forge(self, message: bytes) -> bytes:
        header, _ = unseal(message)
        chosen = GARBAGE[int(header[METADATA]["client"])]
        return Forged(kind=chosen["kind"]).forge(message) if chosen["name"] == "forged" else message


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """Forty samples in two classes whose first feature is the sample's number; test samples are numbered from 1000."""

    def load(self, folder: Path) -> Dataset:
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        x[:, 0] = torch.arange(40)
        test_x = x + torch.tensor([1000.0, 0, 0])
        y = torch.arange(40) % 2
        return Dataset(name="numbered", x=x, y=y, test_x=test_x, test_y=y, classes=("even", "odd"))


@pytest.fixture
def parts(registered: Callable[..., Any]) -> None:
    registered("attack", "rubbish")(Rubbish)
    registered("attack", "rubbish_from_all")(RubbishFromAll)
    registered("attack", "every_garbage")(EveryGarbage)
    registered("dataset", "numbered")(Numbered)


FRAGILE = """
import torch

class Fragile(torch.nn.Linear):
    '''Fails where it is trained on the sample with this number.'''

    def __init__(self, marker: float = 7.0) -> None:
        super().__init__(3, 2)
        self.marker = marker

    def forward(self, x):
        if self.training and (x[:, 0] == self.marker).any():
            raise ValueError(f"cannot look at sample {self.marker:g}")
        return super().forward(x / 1000)

class Broken(torch.nn.Linear):
    '''Fails whenever it is trained.'''

    def __init__(self) -> None:
        super().__init__(3, 2)

    def forward(self, x):
        if self.training:
            raise ValueError("cannot train")
        return super().forward(x)
"""


@pytest.fixture
def fragile(parts: None, user_module: Callable[[str, str], Path], tiny: Callable[..., Experiment]) -> Any:
    """fragile(**tables) -> an experiment on `numbered` whose model fails at sample 7, which one client holds."""
    user_module("fragile_model", FRAGILE)

    def make(**tables: dict[str, Any]) -> Experiment:
        base: dict[str, dict[str, Any]] = {
            "data": {"dataset": "numbered", "clients": 8, "validation": 0.0},
            "model": {"name": "fragile_model:Fragile"},
            "training": {"engine": "reference", "batch_size": 2, "steps": None, "epochs": 1, "block": 3},
            "federation": {"cohort": 8},
        }
        return tiny(**{name: base.get(name, {}) | tables.get(name, {}) for name in base | tables})

    return make


def owner(federation: Federation, sample: int) -> int:
    """The client who holds this sample."""
    return next(client for client, shard in enumerate(federation.shards) if sample in shard.tolist())


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_every_reason() -> None:
    admission = admit(
        column(1, nan, inf, 10.5, 10, 1, 1, 1, 1, 1, 0),
        column(1, 1, 1, 1, 1, nan, 0, -3, 1e9, 1.1e9, inf),
        norm_limit=10,
    )
    assert admission.mask.tolist() == [True, False, False, False, True, False, False, False, True, False, False]
    assert admission.reasons == {
        1: "update is not finite",
        2: "update is not finite",
        3: "norm 10.5 is above aggregation.norm_limit 10",
        5: "weight nan is not in 0 .. 1e+09",
        6: "weight 0 is not in 0 .. 1e+09",
        7: "weight -3 is not in 0 .. 1e+09",
        9: "weight 1.1e+09 is not in 0 .. 1e+09",
        10: "weight inf is not in 0 .. 1e+09",
    }


@pytest.mark.parametrize("limit", [0.35, 1e6, 0.1 + 0.2])
def test_a_norm_just_above_the_limit_is_told_apart_from_it(limit: float) -> None:
    for norm in (nextafter(limit, inf), limit * (1 + 1e-9), limit * 1.001, limit * 2):
        words = admit(column(norm), column(1), limit).reasons[0].split()
        assert float(words[1]) > float(words[-1]), words


def test_without_a_limit_every_finite_length_passes() -> None:
    assert admit(column(1e300, inf, 0), column(1, 1, 1), inf).mask.tolist() == [True, False, True]


def test_nobody_is_admitted_of_nobody() -> None:
    admission = admit(column(), column(), 1.0)
    assert admission.mask.shape == (0,)
    assert admission.reasons == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_floats_carry(dtype: torch.dtype) -> None:
    rows = torch.tensor([[0.5, nan, inf, -1e30]], dtype=torch.float64)
    sent = as_sent(rows, dtype)
    assert sent.dtype == dtype
    assert (
        torch.equal(
            sent,
            rows.to(dtype),
        )
        or sent[0, 1].isnan()
    )
    assert sent[0].isnan().tolist() == [False, True, False, False]
    assert sent[0].isinf().tolist() == [False, False, True, False]


def test_what_integers_carry() -> None:
    """Rounded half to even, clamped to -128 .. 127; NaN is 0."""
    rows = torch.tensor([[0.4, 0.5, 1.5, -1.6, 127.6, 1e30, -1e30, nan, inf, -inf]])
    sent = as_sent(rows, torch.int8)
    assert sent.dtype == torch.int8
    assert sent.tolist() == [[0, 0, 2, -2, 127, 127, -128, 0, 127, -128]]
    assert as_sent(torch.tensor([[-5.0, 300.0]]), torch.uint8).tolist() == [[0, 255]]
    assert as_sent(sent, torch.int8).tolist() == sent.tolist()


EXPECTS = Layout({"w": (3,)})


def test_a_proper_update_passes() -> None:
    check_update(Update(torch.zeros(2, 3), torch.ones(2, dtype=torch.float64)), EXPECTS, 2)


@pytest.mark.parametrize(
    ("rows", "weights", "message"),
    [
        (
            torch.zeros(2, 4),
            torch.ones(2, dtype=torch.float64),
            r"rows \(2, 4\) of torch.float32, .*\(2, 3\) of torch.float32",
        ),
        (torch.zeros(1, 3), torch.ones(1, dtype=torch.float64), r"rows \(1, 3\) of torch.float32, .*\(2, 3\)"),
        (
            torch.zeros(2, 3).double(),
            torch.ones(2, dtype=torch.float64),
            r"rows \(2, 3\) of torch.float64, the broadcast expects .*float32",
        ),
        (torch.zeros(2, 3), torch.ones(3, dtype=torch.float64), r"weights \(3,\) of torch.float64, expected \(2,\)"),
        (
            torch.zeros(2, 3),
            torch.ones(2, 1, dtype=torch.float64),
            r"weights \(2, 1\) of torch.float64, expected \(2,\)",
        ),
        pytest.param(torch.zeros(2, 3), torch.ones(2), r"weights .*float32"),
    ],
    ids=["columns", "rows", "dtype", "weights", "shape of weights", "dtype of weights"],
)
def test_a_method_that_breaks_its_promise_is_named(rows: Tensor, weights: Tensor, message: str) -> None:
    with pytest.raises(FedgenError, match=f"training.method: client_update returned {message}"):
        check_update(Update(rows, weights), EXPECTS, 2)


def one_block(experiment: Experiment, *, summed: bool = False, federation: Federation | None = None) -> Any:
    """(report, the admitted rows or None) of all clients in one block."""
    federation = federation or Federation(experiment)
    method = federation.method
    training = Training(0, Broadcast(method.initial_state(0)["model"], federation.method.layout), summed)
    trained = train_block(federation, training, Members(torch.arange(experiment.data.clients), {}))
    slabs = [slab.value for slab in trained.slabs]
    return trained.report, torch.cat(slabs, dim=1) if slabs else trained.total


FORGED = [
    ({"value": nan}, "not finite"),
    ({"value": inf}, "not finite"),
    ({"value": -inf}, "not finite"),
    ({"value": 1e30}, "above aggregation.norm_limit"),
    ({"value": 3e38}, "above aggregation.norm_limit"),
    ({"value": 0.0, "weight": nan}, "weight nan"),
    ({"value": 0.0, "weight": -1.0}, "weight -1"),
    ({"value": 0.0, "weight": 0.0}, "weight 0"),
    ({"value": 0.0, "weight": 1e10}, "weight 1e+10"),
]


@pytest.mark.parametrize(("lie", "reason"), FORGED, ids=str)
@pytest.mark.parametrize("summed", [False, True], ids=["rows", "sums"])
def test_garbage_costs_the_liar_and_nobody_else(
    lie: dict[str, float], reason: str, summed: bool, parts: None, tiny: Callable[..., Experiment]
) -> None:
    attack = {"attack": {"name": "rubbish", **lie}, "clients": [2, 9]}
    report, rows = one_block(tiny(byzantine=attack), summed=summed)
    _, honest = one_block(tiny())
    assert set(report.rejected) == {2, 9}
    assert all(reason in why for why in report.rejected.values())
    assert report.failed == {}
    others = [client for client in range(12) if client not in (2, 9)]
    assert report.clients.tolist() == others
    assert all(len(value) == 10 for value in (report.weights, *report.metrics.values()))
    if summed:
        assert torch.equal(rows, report.weights @ honest[others].double())
    else:
        assert torch.equal(rows, honest[others]), "who is honest sends the same bits as without attackers"


REASONS = {
    "nan": "update is not finite",
    "inf": "update is not finite",
    "huge": "is above aggregation.norm_limit",
    "weight_nan": "weight nan is not in",
    "weight_inf": "weight inf is not in",
    "weight_huge": "weight 1e+12 is not in",
    "weight_zero": "weight 0 is not in",
    "weight_negative": "weight -1 is not in",
    "names": "message has no tensor '1.weight'",
    "shape": "tensor '1.weight' has shape [1, 10, 64], expected [10, 64]",
    "dtype": "tensor '1.weight' has dtype 'I32', expected F32",
    "round": "message is of round '-1', expected '0'",
    "client": "message is of client '",
    "duplicate": "bytes: a client sends one a round",
    "truncated": "message is cut short: 2599 bytes of numbers, expected 2600",
    "garbled": "has no header",
}


@pytest.mark.parametrize("attack", GARBAGE, ids=lambda attack: attack["kind"])
@pytest.mark.parametrize("summed", [False, True], ids=["rows", "sums"])
def test_every_kind_of_garbage_is_turned_away_with_its_reason(
    attack: dict[str, Any], summed: bool, parts: None, tiny: Callable[..., Experiment]
) -> None:
    report, rows = one_block(tiny(byzantine={"attack": attack, "clients": [2, 9]}), summed=summed)
    _, honest = one_block(tiny())
    others = [client for client in range(12) if client not in (2, 9)]
    assert set(report.rejected) == {2, 9}
    assert all(REASONS[attack["kind"]] in reason for reason in report.rejected.values())
    assert report.failed == {}
    if summed:
        assert torch.equal(rows, report.weights @ honest[others].double())
    else:
        assert torch.equal(rows, honest[others]), "encoding and decoding change no bit of who is honest"


@pytest.mark.parametrize("rule", members("rule"))
def test_no_rule_sees_any_garbage(
    rule: str, parts: None, tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    """One Byzantine client of every kind and as many honest ones as the rule needs: every round rejects the 16."""
    attackers = list(range(len(GARBAGE)))
    result = run_in(
        tiny(
            data={"clients": 32},
            federation={"cohort": 32},
            aggregation={"rule": rule, "f": 1},
            byzantine={"attack": "every_garbage", "clients": attackers},
        )
    )
    assert (result.state, result.rounds) == ("completed", 2)
    for record in read_lines(result.folder / "metrics.jsonl"):
        assert (record["clients"]["rejected"], record["clients"]["admitted"]) == (16, 16)
        assert not record["skipped"]
    rejected = [event for event in read_lines(result.folder / "events.jsonl") if event["event"] == "rejected"]
    assert sorted((event["round"], event["client"]) for event in rejected) == [
        (round, client) for round in (0, 1) for client in attackers
    ]
    for event in rejected[:16]:
        assert REASONS[GARBAGE[event["client"]]["kind"]] in event["reason"]


@pytest.mark.parametrize("attack", ["rubbish", "rubbish_from_all"])
@pytest.mark.parametrize("rule", ["mean", "median"])
def test_a_round_of_garbage_and_honest_rows_counts(
    attack: str, rule: str, parts: None, tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    result = run_in(
        tiny(
            federation={"cohort": 12},
            aggregation={"rule": rule, "f": 2},
            byzantine={"attack": {"name": attack, "value": inf}, "clients": [2, 9], "start": 1},
        )
    )
    assert (result.state, result.rounds) == ("completed", 2)
    rounds = read_lines(result.folder / "metrics.jsonl")
    assert [record["clients"]["rejected"] for record in rounds] == [0, 2]
    assert [record["clients"]["admitted"] for record in rounds] == [12, 10]
    assert not any(record["skipped"] for record in rounds)
    rejected = [event for event in read_lines(result.folder / "events.jsonl") if event["event"] == "rejected"]
    assert sorted((event["round"], event["client"]) for event in rejected) == [(1, 2), (1, 9)]
    assert {event["reason"] for event in rejected} == {"update is not finite"}


def test_a_round_of_garbage_alone_is_skipped_and_keeps_the_state(
    parts: None, tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    federation = Federation(tiny())
    attackers = [client for round in (0, 1) for block in federation.cohort(round, False) for client in block.tolist()]
    result = run_in(tiny(byzantine={"attack": {"name": "rubbish"}, "clients": attackers}))
    untrained = run_in(
        tiny(byzantine={"attack": {"name": "rubbish"}, "clients": attackers}, federation={"rounds": 1}), "one"
    )
    assert (result.state, result.rounds) == ("degraded", 2)
    assert result.message.startswith(
        "2 rounds skipped (0 updates were admitted, aggregation needs 1 to tolerate f = 0 (aggregation.f = "
    )
    assert result.sha256 == untrained.sha256
    assert [record["skipped"] for record in read_lines(result.folder / "metrics.jsonl")] == [True, True]


@pytest.mark.parametrize(("lr", "reason"), [(3e38, "update is not finite"), (1e20, "is above aggregation.norm_limit")])
def test_a_run_whose_training_diverges_says_what_to_do(
    lr: float, reason: str, tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    training = {"optimizer": {"name": "sgd", "lr": lr}, "steps": 8, "engine": "sequential"}
    result = run_in(tiny(training=training))
    assert result.state == "degraded"
    for said in (result.message, read_lines(result.folder / "events.jsonl")[-1]["reason"]):
        assert reason in said
        assert "lower training.optimizer.lr or set training.clip_norm" in said


def test_who_is_redrawn_to_lie_is_logged_every_round(
    parts: None, tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    """Three of six clients lie in each round, all six take part: the three named are those rejected."""
    byzantine = {"attack": "garbage", "clients": 3, "redraw": True}
    result = run_in(tiny(data={"clients": 6}, federation={"cohort": 6, "rounds": 4}, byzantine=byzantine))
    events = read_lines(result.folder / "events.jsonl")
    named = {event["round"]: event["clients"] for event in events if event["event"] == "byzantine"}
    rejected = {
        round: sorted(event["client"] for event in events if event["event"] == "rejected" and event["round"] == round)
        for round in range(4)
    }
    assert named == rejected
    assert {len(clients) for clients in named.values()} == {3}
    assert len({tuple(clients) for clients in named.values()}) > 1
    assert json.loads((result.folder / "partition.json").read_text())["byzantine"] == []
    assert RunFolder.read(result.folder).byzantine == set().union(*named.values())


def session_of(experiment: Experiment, folder: Path) -> Session:
    federation = Federation(experiment)
    standing = Standing(0, federation.method.initial_state(0))
    return Session(federation, SerialPool(federation, Interrupt()), standing, Journal(folder))


@pytest.mark.parametrize("attack", ["rubbish", "rubbish_from_all"])
def test_client_state_is_kept_for_admitted_clients_only(
    attack: str, parts: None, tiny: Callable[..., Experiment], tmp_path: Path
) -> None:
    optimizer = {"name": "sgd", "momentum": 0.9}
    session = session_of(
        tiny(
            training={"optimizer": optimizer, "keep_optimizer": True},
            federation={"cohort": 12},
            byzantine={"attack": attack, "clients": [2, 9], "start": 1},
        ),
        tmp_path,
    )
    Star().play_round(session, evaluate=False)
    first = session.standing.clients.take(torch.arange(12))["optimizer.momentum"]
    assert (first.norm(dim=1) > 0).all()
    Star().play_round(session, evaluate=False)
    second = session.standing.clients.take(torch.arange(12))["optimizer.momentum"]
    unchanged = (first == second).all(1)
    assert unchanged.nonzero().flatten().tolist() == [2, 9]
    session.journal.close()


def test_a_skipped_round_keeps_no_client_state(parts: None, tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    session = session_of(
        tiny(
            training={"optimizer": {"name": "sgd", "momentum": 0.9}, "keep_optimizer": True},
            aggregation={"rule": "median", "f": 1},
            byzantine={
                "attack": {"name": "rubbish", "value": 0.0, "weight": -1.0},
                "clients": torch.cat(Federation(tiny()).cohort(0, False)).tolist(),
            },
        ),
        tmp_path,
    )
    record = Star().play_round(session, evaluate=False)
    assert record.skipped
    assert session.standing.clients.tensors() == {}
    assert session.standing.round == 1
    session.journal.close()


def test_an_exception_costs_its_client_and_nobody_else(fragile: Callable[..., Experiment]) -> None:
    experiment = fragile()
    federation = Federation(experiment)
    unlucky = owner(federation, 7)
    report, rows = one_block(experiment, federation=federation)
    assert report.failed == {unlucky: "fragile_model.py:13: ValueError: cannot look at sample 7"}
    assert report.rejected == {}
    others = [client for client in range(8) if client != unlucky]
    assert report.clients.tolist() == others
    sound = fragile(model={"name": "fragile_model:Fragile", "marker": -1.0})
    _, expected = one_block(sound)
    assert torch.equal(rows, expected[others])


def test_where_every_client_of_a_block_fails_its_report_is_empty(fragile: Callable[..., Experiment]) -> None:
    report, rows = one_block(fragile(model={"name": "fragile_model:Broken"}))
    assert report.failed == dict.fromkeys(range(8), "fragile_model.py:24: ValueError: cannot train")
    assert report.clients.tolist() == []
    assert rows.shape == (0, 8)


def test_a_defect_of_a_method_is_no_clients_fault(tiny: Callable[..., Experiment]) -> None:
    """An update of the wrong shape is a FedgenError, which ends the run instead of rejecting everyone."""
    federation = Federation(tiny())

    method = federation.method

    class Short:
        layout, initial_state = method.layout, method.initial_state

        def client_update(self, broadcast: Any, block: Any) -> Update:
            update = method.client_update(broadcast, block)
            return replace(update, rows=update.rows[:, 1:])

    federation.method = Short()  # type: ignore[assignment]
    with pytest.raises(FedgenError, match="client_update returned rows"):
        one_block(tiny(), federation=federation)


def test_a_run_with_a_failing_client_is_degraded_and_says_why(
    fragile: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    experiment = fragile()
    unlucky = owner(Federation(experiment), 7)
    result = run_in(experiment)
    assert (result.state, result.exit_code, result.rounds) == ("degraded", 3, 2)
    failures = [event for event in read_lines(result.folder / "events.jsonl") if event["event"] == "failed"]
    assert failures == [
        {
            "event": "failed",
            "round": round,
            "client": unlucky,
            "reason": "fragile_model.py:13: ValueError: cannot look at sample 7",
        }
        for round in (0, 1)
    ]
    assert json.loads((result.folder / "result.json").read_text())["state"] == "degraded"


@pytest.mark.parametrize(
    "position",
    [
        pytest.param("first"),
        "last",
    ],
)
def test_a_failed_block_does_not_hide_the_others_metrics(
    position: str, fragile: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    """Blocks of one client, most samples first; the marked sample is one of the first or of the last client."""
    federation = Federation(fragile(training={"block": 1}))
    blocks = federation.cohort(0, everyone=False)
    marker = int(federation.shards[int(blocks[0 if position == "first" else -1])][0])
    result = run_in(fragile(model={"name": "fragile_model:Fragile", "marker": float(marker)}, training={"block": 1}))
    for record in read_lines(result.folder / "metrics.jsonl"):
        assert record["clients"]["failed"] == 1
        assert "train_loss" in record["metrics"]
