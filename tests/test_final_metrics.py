"""What a run says of its numbers: of the last evaluated round, and never one word for three things."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgen.config import Experiment
from fedgen.server.run.start import resume, run
from fedgen.server.store.journal import read_lines
from fedgen.tracking.observer import Observer
from fedgen.tracking.record import Outcomes, RoundRecord, Traffic, final_metrics, strict
from fedgen.tracking.result import Result

Tables = dict[str, dict[str, Any]]

GOSSIP: Tables = {"federation": {"mode": "gossip", "evaluate_every": 2}, "gossip": {"topology": "ring"}}
EVENTS: Tables = {
    "federation": GOSSIP["federation"],
    "gossip": {"topology": "ring", "clock": "events"},
    "virtual_time": {"training_ticks": [2, 3]},
}
MODES: dict[str, Tables] = {
    "star": {"federation": {"evaluate_every": 2}},
    "gossip": GOSSIP,
    "virtual time": EVENTS,
}


def events(result: Result, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_lines(result.folder / "events.jsonl") if event["event"] == kind]


class Stopping(Observer):
    """Stops the run after its second round."""

    def round(self, record: RoundRecord) -> None:
        if record.round == 1:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def broken(registered: Callable[..., Any]) -> Callable[..., Experiment]:
    """broken(value, tiny, mode) -> an experiment with a metric that is `value` everywhere."""

    def make(value: float, tiny: Callable[..., Experiment], mode: str) -> Experiment:
        def odd(outputs: Tensor, targets: Tensor) -> Tensor:
            return torch.full(targets.shape, value, dtype=torch.float64)

        registered("metric", "odd")(odd)
        return tiny(model={"name": "logistic", "metrics": ["accuracy", "odd"]}, **MODES[mode])

    return make


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
def test_a_metric_that_is_not_finite_is_said_and_degrades(
    mode: str, value: float, word: str, broken: Any, tiny: Any, run_in: Callable[..., Result]
) -> None:
    result = run_in(broken(value, tiny, mode))
    assert (result.state, result.exit_code) == ("degraded", 3)
    assert "odd" in result.message
    last = read_lines(result.folder / "metrics.jsonl")[-1]["metrics"]
    assert last["odd"] == word
    assert json.dumps(result.to_json(), allow_nan=False)
    assert result.to_json()["metrics"]["odd"] == word
    assert json.loads((result.folder / "result.json").read_text())["metrics"]["odd"] == word
    np.testing.assert_equal(result.metrics["odd"], value)
    assert result.kinds["odd"].tolist() == ["not evaluated", "not finite"]
    np.testing.assert_equal(result.history["odd"][-1], value)
    assert [event["round"] for event in events(result, "not_finite")] == [1]
    assert "odd" in events(result, "not_finite")[0]["metrics"]


def test_a_training_loss_that_is_not_finite_names_the_honest_clients(
    registered: Callable[..., Any], tiny: Any, run_in: Callable[..., Result]
) -> None:
    """Client 1 is honest, client 0 is Byzantine; the rows of both stay finite, so that both are admitted."""
    from fedgen.methods.sgd import LocalSgd

    class Shy(LocalSgd):
        def client_update(self, broadcast: Any, block: Any) -> Any:
            update = super().client_update(broadcast, block)
            update.metrics["train_loss"][block.clients <= 1] = torch.nan
            return update

    registered("method", "shy")(Shy)
    for mode in ("star", "gossip"):
        tables = {"federation": {"evaluate_every": 2, "cohort": 12}} if mode == "star" else MODES[mode]
        lying = {"clients": [0], "attack": "sign_flip"}
        result = run_in(tiny(training={"method": "shy"}, **tables, byzantine=lying), mode)
        assert [event["clients"] for event in events(result, "not_finite")] == [[1], [1]]
        assert result.state == "degraded"
        assert math.isnan(result.metrics["train_loss"] or 0.0)


def test_the_loss_of_a_liar_is_no_ones_business(
    registered: Callable[..., Any], tiny: Any, run_in: Callable[..., Result]
) -> None:
    from fedgen.methods.sgd import LocalSgd

    class Boast(LocalSgd):
        def client_update(self, broadcast: Any, block: Any) -> Any:
            update = super().client_update(broadcast, block)
            update.metrics["train_loss"][block.clients == 0] = torch.inf
            return update

    registered("method", "boast")(Boast)
    lying = {"clients": [0], "attack": "sign_flip"}
    result = run_in(tiny(training={"method": "boast"}, federation={"cohort": 12}, byzantine=lying))
    assert result.state == "completed"
    assert math.isfinite(result.metrics["train_loss"] or math.nan)


def test_a_round_without_admitted_clients_has_no_training_loss(tiny: Any, run_in: Callable[..., Result]) -> None:
    """Undefined, which is null and neither an old value nor an event of its own."""
    result = run_in(tiny(aggregation={"norm_limit": 1e-12}))
    assert result.metrics["train_loss"] is None
    assert result.to_json()["metrics"]["train_loss"] is None
    assert result.kinds["train_loss"].tolist() == ["undefined", "undefined"]
    assert np.isnan(result.history["train_loss"]).all()
    assert events(result, "not_finite") == []
    assert math.isfinite(result.metrics["loss"] or math.nan)


def test_a_tick_in_which_nobody_trained_has_no_training_loss(tiny: Any, run_in: Callable[..., Result]) -> None:
    """Trainings of four ticks end in ticks 4, 8, ...; the fifth tick is the last, and none ends in the sixth."""
    federation = {"mode": "gossip", "rounds": 6, "evaluate_every": 1}
    result = run_in(tiny(**{**EVENTS, "federation": federation, "virtual_time": {"training_ticks": [4, 4]}}))
    assert result.kinds["train_loss"].tolist() == ["not evaluated"] * 4 + ["finite", "not evaluated"]
    assert result.metrics["train_loss"] is None
    assert result.metrics["accuracy"] is not None


def test_a_stopped_run_tells_of_its_last_evaluated_round(tiny: Any, run_in: Callable[..., Result]) -> None:
    folder = run_in(tiny(federation={"rounds": 4}), "whole").folder.parent / "run"
    stopped = run(tiny(federation={"rounds": 4, "evaluate_every": 4}), folder, observers=[Stopping()])
    assert (stopped.state, stopped.metrics) == ("stopped", {})
    assert resume(folder).metrics["accuracy"] is not None


def test_final_metrics_are_never_stale() -> None:
    rows: list[tuple[bool, dict[str, float | None]]] = [
        (True, {"loss": 1.0, "train_loss": 3.0}),
        (True, {"loss": math.nan, "train_loss": None}),
        (False, {"train_loss": 2.0}),
    ]
    records = [
        RoundRecord(number, evaluated, metrics, Outcomes(), False, Traffic(), {})
        for number, (evaluated, metrics) in enumerate(rows)
    ]
    final = final_metrics(records)
    assert math.isnan(final["loss"] or 0.0)
    assert final["train_loss"] is None
    assert final_metrics(records[2:]) == {}


def test_the_log_keeps_what_json_cannot() -> None:
    assert strict({"a": [math.nan, (-math.inf, 1.5)], "b": None}) == {"a": ["NaN", ["-Infinity", 1.5]], "b": None}


@pytest.mark.parametrize("clock", ["rounds", "events"])
def test_a_gossip_without_rounds_is_evaluated(clock: str, tiny: Any, run_in: Callable[..., Result]) -> None:
    """Heads in closed form: what the exchange before training made is all there is."""
    tables = {"federation": {"rounds": 0, "mode": "gossip"}, "gossip": {"clock": clock}}
    result = run_in(tiny(training={"wrappers": [{"name": "ggeur", "start": "ridge"}]}, **tables))
    assert (result.metrics["accuracy"] or 0) > 0.5
    assert result.round_numbers.tolist() == [-1]


def test_a_metric_says_itself_which_way_is_better(
    registered: Callable[..., Any], tiny: Any, run_in: Callable[..., Result]
) -> None:
    """Not its name: this "error" is better when higher, and the undeclared one has no direction at all."""

    class Error:
        lower_is_better = False

        def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return (outputs.argmax(-1) == targets).double()

    def silent(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum(-1)

    registered("metric", "own_error")(Error)
    registered("metric", "silent")(silent)
    model = {"name": "logistic", "metrics": ["own_error", "silent"]}
    result = run_in(tiny(model=model, federation={"mode": "gossip"}, gossip={"topology": "ring"}))
    declared = json.loads((result.folder / "environment.json").read_text())["lower_is_better"]
    assert (declared["own_error"], declared["validation_own_error"], declared["p10_own_error"]) == (False, False, False)
    assert (declared["loss"], declared["validation_loss"], declared["train_loss"]) == (True, True, True)
    assert not [name for name in declared if "silent" in name or "consensus" in name]
    assert "worst_own_error" in result.metrics
    assert (result.metrics["worst_own_error"] or 0.0) <= (result.metrics["own_error"] or 0.0)
    assert "worst_silent" not in result.metrics


def test_every_builtin_loss_and_metric_declares_its_way(tiny: Any) -> None:
    from fedgen import registry

    for kind in ("loss", "metric"):
        for name, measure in registry.members(kind).items():
            assert isinstance(getattr(measure, "lower_is_better", None), bool), f"{kind} {name}"


@pytest.mark.parametrize("clock", ["rounds", "events"])
def test_a_bound_broken_in_an_inbox_is_an_event(clock: str, tiny: Any, run_in: Callable[..., Result]) -> None:
    """Every peer receives from both Byzantine peers, and the rule tolerates one."""
    tables: Tables = {
        "federation": {"mode": "gossip", "rounds": 6},
        "gossip": {"topology": "complete", "clock": clock},
        "virtual_time": {"training_ticks": [1, 1], "inbox": 1.0} if clock == "events" else {},
        "aggregation": {"rule": "median", "f": 1},
    }
    honest = run_in(tiny(**tables, byzantine={"clients": [0], "attack": "sign_flip"}), "honest")
    assert events(honest, "bound_broken") == []
    broken = run_in(tiny(**tables, byzantine={"clients": [0, 2], "attack": "sign_flip"}), "broken")
    told = events(broken, "bound_broken")
    assert told
    assert told[0]["byzantine"] == 2
    assert told[0]["reason"] == "10 honest peers receive more than aggregation.f = 1 Byzantine messages, up to 2"
