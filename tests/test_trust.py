"""Whom a rule trusts reaches the logs and the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedgen import Experiment, run
from fedgen.server.store.journal import read_lines


def played(folder: Path, rule: str) -> Path:
    experiment = Experiment(
        data={"clients": 12},
        federation={"rounds": 2, "cohort": 1.0},
        aggregation={"rule": rule, "f": 2},
        byzantine={"attack": {"name": "sign_flip", "scale": 20.0}, "clients": [3, 5], "start": 1},
        runtime={"backend": "serial"},
    )
    return run(experiment, folder / rule).folder


def test_coefficients_by_client_and_their_means_by_honesty(tmp_path: Path) -> None:
    folder = played(tmp_path, "krum")
    first, second = (line for line in read_lines(folder / "events.jsonl") if line["event"] == "aggregated")
    assert sorted(second["clients"]) == list(range(12))
    chosen = dict(zip(second["clients"], second["coefficients"], strict=True))
    assert sorted(chosen.values()) == [0.0] * 11 + [1.0]
    assert chosen[3] == chosen[5] == 0
    before, after = (line["aggregation"] for line in read_lines(folder / "metrics.jsonl"))
    assert "byzantine" not in before, "nobody lies before round 1"
    assert before["honest"] == pytest.approx(1)
    assert after["honest"] == pytest.approx(12 / 10)
    assert after["byzantine"] == 0
    assert after["residual"] > before["residual"] > 0
    assert first["residual"] == before["residual"]
    assert (folder / "figures" / "trust.svg").exists()
    assert "Trust of the rule" in (folder / "report.html").read_text()


def test_values_of_the_rows_are_logged_where_the_rule_has_them(tmp_path: Path) -> None:
    folder = played(tmp_path, "flag")
    events = [line for line in read_lines(folder / "events.jsonl") if line["event"] == "aggregated"]
    assert all(
        len(line["value"]) == 12 and 0 <= min(line["value"]) <= max(line["value"]) <= 1 + 1e-9 for line in events
    )


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_rules_without_coefficients_say_nothing(rule: str, tmp_path: Path) -> None:
    """The workers have summed the mean; a median has no coefficients."""
    folder = played(tmp_path, rule)
    assert not [line for line in read_lines(folder / "events.jsonl") if line["event"] == "aggregated"]
    assert not [line for line in read_lines(folder / "metrics.jsonl") if "aggregation" in line]
    assert not (folder / "figures" / "trust.svg").exists()


def test_rounds_in_which_more_lie_than_the_rule_withstands_are_named(tmp_path: Path) -> None:
    experiment = Experiment(
        data={"clients": 12},
        federation={"rounds": 3, "cohort": 1.0},
        aggregation={"rule": "krum", "f": 2},
        byzantine={"attack": "sign_flip", "clients": 4, "start": 1},
        runtime={"backend": "serial"},
    )
    folder = run(experiment, tmp_path / "run").folder
    broken = [line for line in read_lines(folder / "events.jsonl") if line["event"] == "bound_broken"]
    assert [(line["round"], line["byzantine"], line["f"]) for line in broken] == [(1, 4, 2), (2, 4, 2)]
    report = (folder / "report.html").read_text()
    assert "in 2 rounds more clients were Byzantine than aggregation.f = 2" in report
    assert "Nothing out of the ordinary happened" not in report
