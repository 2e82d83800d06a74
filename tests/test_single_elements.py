"""One of everything: one honest peer, one client, one class, one feature, one test sample, in all three loops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedgen.server.report.page import write_report
from fedgen.server.run.result import Result
from fedgen.server.store.journal import read_lines

LOOPS: dict[str, dict[str, dict[str, Any]]] = {
    "star": {"federation": {"cohort": 1.0}},
    "gossip": {"federation": {"mode": "gossip"}, "gossip": {"topology": "complete"}},
    "virtual time": {
        "federation": {"mode": "gossip", "rounds": 4},
        "gossip": {"topology": "complete", "clock": "events"},
        "virtual_time": {"training_ticks": [1, 1]},
    },
}
ATTACKED = {"clients": 2, "attack": "sign_flip"}
CASES: dict[str, dict[str, Any]] = {
    "one client": {"data": {"clients": 1}},
    "one client, median": {"data": {"clients": 1}, "aggregation": {"rule": "median"}},
    "one client, corrected": {"data": {"clients": 1}, "aggregation": {"wrappers": ["variance_correction"]}},
    "one client, generating": {"data": {"clients": 1}, "training": {"wrappers": ["ggeur"]}},
    "one honest": {"data": {"clients": 3}, "byzantine": ATTACKED},
    "one honest, redrawn": {"data": {"clients": 3}, "byzantine": {**ATTACKED, "attack": "alie", "redraw": True}},
    "one honest, corrected": {
        "data": {"clients": 3},
        "byzantine": ATTACKED,
        "aggregation": {"rule": "median", "wrappers": ["variance_correction"]},
    },
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("case", CASES)
def test_one_participant(case: str, loop: str, tiny: Any, run_in: Callable[..., Result]) -> None:
    result = run_in(tiny(**CASES[case], **LOOPS[loop]))
    assert result.state == "completed"
    assert 0 <= (result.metrics["accuracy"] or 0.0) <= 1
    assert result.metrics["train_loss"] is not None
    page = write_report(result.folder).read_text()
    assert ("1 peer with" if loop != "star" else "1 client with") in page or "one honest" in case


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(("features", "classes", "tests"), [(1, 2, 1), (4, 1, 3), (1, 1, 1)])
def test_one_feature_class_or_test_sample(
    features: int, classes: int, tests: int, loop: str, tmp_path: Path, tiny: Any, run_in: Callable[..., Result]
) -> None:
    draw = np.random.default_rng(0)
    train, held = draw.normal(size=(20, features)), draw.normal(size=(tests, features))
    path = tmp_path / "mine.npz"
    np.savez(path, x_train=train.astype(np.float32), y_train=np.arange(20) % classes,
             x_test=held.astype(np.float32), y_test=np.zeros(tests, int))  # fmt: skip
    data = {"clients": 4, "partition": "iid", "dataset": {"name": "features", "path": str(path)}}
    result = run_in(tiny(data=data, **LOOPS[loop]))
    assert result.state == "completed"
    assert write_report(result.folder).exists()


@pytest.mark.parametrize("loop", ["gossip", "virtual time"])
def test_the_means_leave_out_who_lies_in_this_round(
    loop: str, registered: Callable[..., Any], tiny: Any, run_in: Callable[..., Result]
) -> None:
    """A client's loss is its number here, so that the mean says of whom it is."""
    from fedgen.methods.sgd import LocalSgd

    class Numbered(LocalSgd):
        def client_update(self, broadcast: Any, block: Any) -> Any:
            update = super().client_update(broadcast, block)
            update.metrics["train_loss"][:] = block.clients
            return update

    registered("method", "numbered")(Numbered)
    redrawn = {"clients": 5, "attack": "sign_flip", "redraw": True}
    tables = {**LOOPS[loop], "federation": LOOPS[loop]["federation"] | {"rounds": 6}}
    result = run_in(tiny(training={"method": "numbered"}, **tables, byzantine=redrawn))
    told = read_lines(result.folder / "events.jsonl")
    attackers = {event["round"]: set(event["clients"]) for event in told if event["event"] == "byzantine"}
    losses = dict(zip(result.round_numbers.tolist(), result.history["train_loss"].tolist(), strict=True))
    expected = {round: np.mean([peer for peer in range(12) if peer not in lying]) for round, lying in attackers.items()}
    trained = {round: loss for round, loss in losses.items() if not np.isnan(loss)}
    assert len(trained) >= 3
    assert len(set(map(tuple, attackers.values()))) > 1
    assert trained == pytest.approx({round: expected[round] for round in trained})
