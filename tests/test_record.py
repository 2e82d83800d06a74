"""One round as a value, and as a line of metrics.jsonl."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgen.errors import SettingError
from fedgen.server.report.page import write_report
from fedgen.server.store.journal import read_rounds
from fedgen.tracking.record import LARGEST_WHOLE, Outcomes, RoundRecord, Traffic, strict

PLAIN = RoundRecord(3, True, {"loss": 0.5}, Outcomes(admitted=4), False, Traffic(8, 9), {"train": 0.25})

WHOLE = st.integers(-LARGEST_WHOLE, LARGEST_WHOLE)
NUMBER = st.floats(allow_nan=False, allow_subnormal=False)
NUMBERS = st.dictionaries(st.text(max_size=5), st.none() | NUMBER, max_size=3)
RECORDS = st.builds(
    RoundRecord,
    round=WHOLE,
    evaluated=st.booleans(),
    metrics=NUMBERS,
    clients=st.builds(Outcomes, WHOLE, WHOLE, WHOLE, WHOLE),
    skipped=st.booleans(),
    bytes=st.builds(Traffic, WHOLE, WHOLE),
    seconds=st.dictionaries(st.text(max_size=5), NUMBER, max_size=3),
    aggregation=NUMBERS,
    messages=st.none() | WHOLE,
    alone=st.none() | WHOLE,
    factor=NUMBERS,
    variance=NUMBERS,
    by_weight=st.dictionaries(st.text(max_size=5), NUMBERS, max_size=2),
    peers=st.dictionaries(st.text(max_size=5), st.lists(NUMBER, max_size=3), max_size=2),
    staleness=st.none() | NUMBER,
    merged=st.none() | WHOLE,
)


@given(RECORDS)
def test_a_line_reads_back_to_the_record(record: RoundRecord) -> None:
    assert RoundRecord.from_json(json.loads(json.dumps(strict(record.to_json())))) == record


def test_a_line_says_its_version_and_leaves_out_what_is_empty() -> None:
    assert PLAIN.to_json() == {
        "version": 1,
        "round": 3,
        "evaluated": True,
        "metrics": {"loss": 0.5},
        "clients": {"admitted": 4, "rejected": 0, "failed": 0, "late": 0},
        "skipped": False,
        "bytes": {"up": 8, "down": 9},
        "seconds": {"train": 0.25},
    }


def test_numbers_that_are_not_finite_are_read_from_their_words() -> None:
    line = {**PLAIN.to_json(), "metrics": {"loss": "NaN", "odd": "-Infinity"}, "peers": {"loss": [1.0, "NaN"]}}
    record = RoundRecord.from_json(line)
    assert math.isnan(record.metrics["loss"] or 0.0)
    assert record.metrics["odd"] == -math.inf
    assert math.isnan(record.peers["loss"][1])


def test_fields_that_a_later_fedgen_adds_are_ignored() -> None:
    assert RoundRecord.from_json({**PLAIN.to_json(), "moon": "full"}) == PLAIN


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", None, "it has no version, and this fedgen reads version 1"),
        ("version", 2, "it is of version 2, and this fedgen reads version 1"),
        ("round", "three", "round should be a whole number, and is 'three'"),
        ("round", True, "round should be a whole number, and is True"),
        ("round", 10**30, "round should be a whole number"),
        ("evaluated", 1, "evaluated should be true or false, and is 1"),
        ("metrics", [0.5], "metrics should be an object"),
        ("metrics", {"loss": "low"}, "metrics.loss should be a number, and is 'low'"),
        ("metrics", {"loss": 10**400}, "metrics.loss should be a number"),
        ("clients", {"admitted": 0.5}, "clients.admitted should be a whole number, and is 0.5"),
        ("bytes", None, "bytes should be an object, and is None"),
        ("peers", {"accuracy": 0.5}, "peers.accuracy should be a list of numbers, and is 0.5"),
        ("merged", [1], "merged should be a whole number"),
    ],
)
def test_what_is_no_round_is_refused_by_field_and_line(field: str, value: Any, message: str, tmp_path: Path) -> None:
    """The report, which reads folders while they are written, and resume say the same."""
    line = {name: item for name, item in {**PLAIN.to_json(), field: value}.items() if (name, item) != ("version", None)}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        RoundRecord.from_json(line)
    (tmp_path / "resolved.toml").write_text("")
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(PLAIN.to_json())}\n{json.dumps(line)}\n")
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, line 2, cannot be read: {re.escape(message)}"):
        write_report(tmp_path)
    with pytest.raises(SettingError, match=rf"metrics\.jsonl, line 2, cannot be read \({re.escape(message)}"):
        read_rounds(tmp_path)


@pytest.mark.parametrize("name", ["round", "evaluated", "metrics", "clients", "skipped", "bytes", "seconds"])
def test_a_field_that_every_line_has_is_missed_by_name(name: str) -> None:
    line = PLAIN.to_json()
    del line[name]
    with pytest.raises(ValueError, match=f"it has no '{name}'"):
        RoundRecord.from_json(line)


def test_the_document_names_every_field() -> None:
    """docs/reference/run-folder.md, in the order of the class."""
    text = (Path(__file__).parents[1] / "docs/reference/run-folder.md").read_text()
    table = text[text.index("| field |") :].partition("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert named == ["version", *(field.name for field in fields(RoundRecord))]
