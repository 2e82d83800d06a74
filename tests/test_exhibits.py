"""Exhibits: what parts show of themselves, from the part through the run folder into the report."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedgen import Experiment, load_experiment, resume, run
from fedgen.exhibits import KINDS, Curve, Curves, Exhibit, Heatmap, Images, Points, Table, Text, read
from fedgen.server.report.exhibit_pictures import draw_exhibit
from fedgen.server.report.page import write_report
from fedgen.server.run.start import Result
from fedgen.server.store.journal import read_lines

UserModule = Callable[[str, str], Path]

SAMPLES: list[Exhibit] = [
    Text("words", "Words", "One.\n\nTwo."),
    Table("table", "Cells", ("name", "amount"), (("a", 1), ("b", 2.5), ("c", None)), folded=True, section="Own"),
    Curves("curves", "Lines", (Curve("a", [0, 1, 2], [3, float("nan"), 5]), Curve("a", [0, 2], [1, 1], True))),  # type: ignore[arg-type]
    Heatmap("map", "Depths", {"left": [[0, 1], [2, -3]], "right": [[4], [None]]}, unit="samples"),  # type: ignore[dict-item]
    Heatmap("tensor", "From a tensor", {"": torch.eye(3)}, row_names=("a", "b", "c")),  # type: ignore[dict-item]
    Points("points", "Clouds", {"": [[0, 1], [1, 0]]}, {"": [0, 1]}, names=("x", "y"), groups="class"),  # type: ignore[dict-item]
    Images("grey", "Grey", torch.linspace(0, 1, 24).view(2, 3, 4), names=("a", "b"), columns=1),  # type: ignore[arg-type]
    Images("colours", "Colours", np.arange(36, dtype=np.uint8).reshape(1, 3, 4, 3), caption="How to read it"),
]


def values(exhibit: Exhibit) -> dict[str, Any]:
    """Fields as plain lists, NaN as a word, so that they compare."""
    return {each.name: repr(exhibit.to_json()[each.name]) for each in fields(exhibit)}


@pytest.mark.parametrize("exhibit", SAMPLES, ids=lambda exhibit: exhibit.name)
def test_an_exhibit_comes_back_from_strict_json(exhibit: Exhibit) -> None:
    text = json.dumps(exhibit.to_json(), allow_nan=False)
    again = read(json.loads(text))
    assert type(again) is type(exhibit)
    assert values(again) == values(exhibit)


def test_there_is_a_sample_of_every_kind() -> None:
    assert {exhibit.kind for exhibit in SAMPLES} == set(KINDS)


@settings(max_examples=30, deadline=None)
@given(
    arrays.arrays(
        np.float64,
        st.tuples(st.integers(1, 5), st.integers(1, 5)),
        elements=st.floats(allow_subnormal=False),
    )
)
def test_any_numbers_survive_and_those_that_are_none_are_gaps(panel: Any) -> None:
    (again,) = read(json.loads(json.dumps(Heatmap("m", "M", {"": panel}).to_json()))).panels.values()  # type: ignore[attr-defined]
    assert np.array_equal(again, np.where(np.isfinite(panel), panel, np.nan), equal_nan=True)


@settings(max_examples=30, deadline=None)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))))
def test_any_pixels_survive(images: Any) -> None:
    again = read(json.loads(json.dumps(Images("i", "I", images).to_json())))
    assert isinstance(again, Images)
    assert np.array_equal(again.images, images)


WRONG: list[tuple[Callable[[], Exhibit], str]] = [
    (lambda: Text("", "T", "x"), "name must not be empty"),
    (lambda: Text("t", "T", 3), "text must be a text"),  # type: ignore[arg-type]
    (lambda: Table("t", "T", ("a",), (("x", "y"),)), "every row must have 1 cells"),
    (lambda: Table("t", "T", ("a",), (([],),)), "cells must be texts or numbers"),  # type: ignore[arg-type]
    (lambda: Curves("c", "C", ()), "curves must not be empty"),
    (lambda: Curves("c", "C", ([1, 2],)), "must be fedgen.exhibits.Curve, got list"),  # type: ignore[arg-type]
    (lambda: Curves("c", "C", (Curve("a", [1], [1, 2]),)), "x and y of 'a' must be as long"),  # type: ignore[arg-type]
    (lambda: Heatmap("m", "M", {}), "panels must not be empty"),
    (lambda: Heatmap("m", "M", [[1]]), "must be a mapping whose keys are texts"),  # type: ignore[arg-type]
    (lambda: Heatmap("m", "M", {"": [1, 2]}), r"panel '' must have 2 dimensions, got \[2\]"),  # type: ignore[dict-item]
    (lambda: Heatmap("m", "M", {"": [["a"]]}), "panel '' must be numbers"),  # type: ignore[dict-item]
    (lambda: Heatmap("m", "M", {"": [[1]]}, row_names=("a", "b")), "row_names must be 1, one a row"),  # type: ignore[dict-item]
    (lambda: Points("p", "P", {"": [[1, 2, 3]]}), r"points must be \[p, 2\]"),  # type: ignore[dict-item]
    (lambda: Points("p", "P", {"": [[1, 2]]}, {"": [3]}, names=("a",)), "whole numbers from 0 to 0"),  # type: ignore[dict-item]
    (lambda: Images("i", "I", np.zeros((2, 3))), r"images must be \[n, h, w\]"),  # type: ignore[arg-type]
    (lambda: Images("i", "I", np.zeros((2, 3, 3)), names=("a",)), "names must be 2, one an image"),  # type: ignore[arg-type]
    (lambda: Images("i", "I", np.full((1, 2, 2), np.nan)), "images must be finite"),
]


@pytest.mark.parametrize(("make", "told"), WRONG, ids=[told for _, told in WRONG])
def test_data_of_another_form_are_named(make: Callable[[], Exhibit], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"kind": "film", "name": "x", "title": "X"},
        {"kind": "text", "name": "x"},
        {"kind": "text", "name": "x", "title": "X", "text": "x", "more": 1},
        {"kind": "images", "name": "x", "title": "X", "images": {"shape": [1, 2, 2], "zlib": "eJw="}},
        {"kind": "images", "name": "x", "title": "X", "images": {"shape": [1 << 40], "zlib": "%"}},
        {"kind": "curves", "name": "x", "title": "X", "curves": [{"z": 1}]},
    ],
    ids=str,
)
def test_what_is_no_exhibit_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no kind|no text|no curves|unpacked|reshape"):
        read(value)


DRAWN = [exhibit for exhibit in SAMPLES if not isinstance(exhibit, Text | Table)]


@pytest.mark.parametrize("exhibit", DRAWN, ids=lambda exhibit: exhibit.name)
def test_a_picture_is_svg_and_the_same_again(exhibit: Exhibit) -> None:
    svg = draw_exhibit(exhibit)
    ElementTree.fromstring(svg)
    assert draw_exhibit(read(exhibit.to_json())) == svg


def test_exhibits_and_their_pictures_need_no_torch() -> None:
    code = (
        "import sys\n"
        "from fedgen.exhibits import Images\n"
        "from fedgen.server.report import page, exhibits_record, exhibit_pictures\n"
        "assert exhibit_pictures.draw_exhibit(Images('i', 'I', [[[0, 255]]]))\n"
        "assert 'torch' not in sys.modules and 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Runs.

OWN = '''
from dataclasses import dataclass
import torch
from fedgen.aggregation.mean import Mean
from fedgen.attacks.base import BaseAttack
from fedgen.exhibits import Curve, Curves, Heatmap, Images, Table, Text
from fedgen.methods.sgd import LocalSgd


@dataclass(frozen=True, kw_only=True)
class Shown(LocalSgd):
    def exhibits(self, state, occasion):
        held = occasion.block(torch.tensor([1]))
        return [
            Images("looks", "What it looks for", torch.rand(3, 8, 8)),
            Text("words", "Words", f"{occasion.members} {occasion.round} {occasion.last} {int(held.counts)} <b>"),
            Table("digits", "Digits", ["digit", "count"], [["zero", 3], ["one", None]]),
        ]


@dataclass(frozen=True, kw_only=True)
class Rule(Mean):
    def exhibits(self, memory, occasion):
        return (Heatmap("accuracy", "A map", {"": [[occasion.round, 2.0]]}),)


@dataclass(frozen=True, kw_only=True)
class Attack(BaseAttack):
    def exhibits(self, memory, occasion):
        return [Curves("c", "Lines", [Curve("a", [0, 1], [1, 2])]), "no exhibit", Text("t", "T", "fine")]


class Raising(LocalSgd):
    def exhibits(self, state, occasion):
        raise KeyError("weights")


class Nothing(LocalSgd):
    def exhibits(self, state, occasion):
        return {"a": 1}


class Misspelt(LocalSgd):
    def exhibits(self, state):
        return []


class Plain:
    """Derived from nothing."""
    linear = True
    def minimum(self, f): return 1
    def aggregate(self, rows, weights, context): return Mean().aggregate(rows, weights, context)
    def exhibits(self, memory, occasion): return [Text("plain", "P", "derived from nothing")]
'''
RUN = {"federation": {"rounds": 4, "evaluate_every": 2}, "tracking": {"report": True}}


def kept(folder: Path) -> list[tuple[int, str, str]]:
    return [(line["round"], line["by"], line["name"]) for line in read_lines(folder / "exhibits.jsonl")]


@pytest.fixture
def own(user_module: UserModule) -> None:
    user_module("own", OWN)


def test_a_method_a_rule_and_an_attack_show_themselves(
    own: None, tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    tables = {"aggregation": {"rule": "own:Rule"}, "byzantine": {"attack": "own:Attack", "clients": 1}}
    result = run_in(tiny(training={"method": "own:Shown"}, **tables, **RUN), "run")
    each = [("method", "looks"), ("method", "words"), ("method", "digits"), ("rule", "accuracy"), ("attack", "c")]
    assert kept(result.folder) == [(at, *one) for at in (1, 3) for one in [*each, ("attack", "t")]]
    assert result.state == "completed", "a part that shows something wrong does not harm the run"
    events = [line for line in read_lines(result.folder / "events.jsonl") if line["event"] == "exhibits_failed"]
    assert [event["round"] for event in events] == [1, 3]
    assert re.fullmatch(r"byzantine.attack 'own:Attack': exhibit 1 is left out.*; got str", events[0]["reason"])
    page = (result.folder / "report.html").read_text()
    for heading in ("<h2>Method</h2>", "<h2>Rule</h2>", "<h2>Attack</h2>", "What it looks for (round 3)"):
        assert heading in page
    assert re.search(r"clients 3 True \d+ &lt;b&gt;", page), "the newest, escaped"
    assert "clients 1 False" not in page
    assert re.search(r'<td class="text">zero</td><td class="number nowrap">3</td>', page)
    names = {path.stem for path in (result.folder / "figures").iterdir()}
    assert names >= {"looks", "exhibit-accuracy", "accuracy", "c"}, "the picture of the metric is not overwritten"


def test_a_run_that_shows_nothing_has_no_file(tiny: Callable[..., Experiment], run_in: Callable[..., Result]) -> None:
    assert not (run_in(tiny(**RUN), "run").folder / "exhibits.jsonl").exists()


def test_without_a_report_nobody_is_asked(
    own: None, tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    chosen = tiny(training={"method": "own:Shown"}, federation={"rounds": 1}, tracking={"report": False})
    assert not (run_in(chosen, "run").folder / "exhibits.jsonl").exists()


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (
            "own:Raising",
            r"training.method 'own:Raising': its exhibits are left out \(own.py:\d+: KeyError: 'weights'\)",
        ),
        ("own:Nothing", r"training.method 'own:Nothing': exhibits must return a list .*; it returned dict"),
    ],
)
def test_a_method_that_cannot_show_itself_trains_on(
    method: str, told: str, own: None, tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    result = run_in(tiny(training={"method": method}, **RUN), "run")
    assert result.state == "completed"
    assert result.sha256 == run_in(tiny(**RUN), "sgd").sha256
    events = [line for line in read_lines(result.folder / "events.jsonl") if line["event"] == "exhibits_failed"]
    assert re.fullmatch(told, events[0]["reason"])
    assert not (result.folder / "exhibits.jsonl").exists()


def test_exhibits_that_cannot_be_called_are_named_before_the_run(own: None, tiny: Callable[..., Experiment]) -> None:
    from fedgen.errors import SettingError
    from fedgen.federation import Federation

    with pytest.raises(SettingError, match=r"has 'exhibits' that does not take \(state, occasion\)"):
        Federation(tiny(training={"method": "own:Misspelt"}))


def test_wrappers_hand_on_what_their_inner_part_shows(
    own: None, tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    wrapped = {"method": "own:Shown", "wrappers": ["worker_momentum"]}
    rules = {"rule": "own:Plain", "wrappers": ["nnm"]}
    folder = run_in(tiny(training=wrapped, aggregation=rules, **RUN), "run").folder
    assert {name for _, _, name in kept(folder)} == {"looks", "words", "digits", "plain"}


@pytest.mark.parametrize("mode", ["star", "gossip"])
def test_what_is_shown_moves_no_result(
    mode: str, own: None, tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    """Its method draws from torch's generator."""
    section = {"federation": {"mode": mode, "rounds": 2}, "gossip": {} if mode == "star" else {"topology": "ring"}}
    shown = run_in(tiny(training={"method": "own:Shown"}, tracking={"report": True}, **section), "shown")
    assert shown.sha256 == run_in(tiny(**section), "plain").sha256
    words = [line for line in read_lines(shown.folder / "exhibits.jsonl") if line["name"] == "words"]
    assert words[0]["text"].startswith("peers 0 False" if mode == "gossip" else "clients 0 False")


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_that_was_stopped_holds_the_same_exhibits(
    every: int,
    own: None,
    tiny: Callable[..., Experiment],
    run_in: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Broken off between the exhibits of round 2 and its line of metrics, then resumed from the newest checkpoint."""
    from fedgen.server.store.journal import Journal

    chosen = tiny(
        training={"method": "own:Shown"},
        federation={"rounds": 4},
        runtime={"backend": "serial", "checkpoint_every": every},
        tracking={"report": True},
    )
    whole = run_in(chosen, "whole")
    append = Journal._append

    def killed(self: Journal, name: str, record: dict[str, Any]) -> None:
        if name == "metrics.jsonl" and record["round"] == 2:
            self.close()
            raise KeyboardInterrupt
        append(self, name, record)

    monkeypatch.setattr(Journal, "_append", killed)
    with pytest.raises(KeyboardInterrupt):
        run_in(chosen, "cut")
    monkeypatch.undo()
    folder = whole.folder.with_name("cut")
    assert kept(folder)[-1][0] == 2, "they were written"
    assert resume(folder).sha256 == whole.sha256
    files = [(each / "exhibits.jsonl").read_text().splitlines() for each in (folder, whole.folder)]
    assert kept(folder) == kept(whole.folder)
    named = [[json.loads(line) for line in lines if '"looks"' not in line] for lines in files]
    assert named[0] == named[1]


def test_a_damaged_log_of_exhibits_costs_the_report_nothing_else(
    own: None, tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    folder = run_in(tiny(training={"method": "own:Shown"}, **RUN), "run").folder
    lines: Sequence[str] = (folder / "exhibits.jsonl").read_text().splitlines()
    (folder / "exhibits.jsonl").write_text("\n".join([lines[0].replace('"images"', '"film"'), *lines[1:3]]) + "\n")
    page = write_report(folder).read_text()
    assert "exhibits.jsonl: &#39;looks&#39; cannot be understood: no kind of exhibit: &#39;film&#39;." in page
    assert "<h2>Method</h2>" in page
    (folder / "exhibits.jsonl").write_text("{\n" + lines[0] + "\n")
    assert "exhibits.jsonl, line 1, is damaged" in write_report(folder).read_text()


def test_the_example_shows_its_own_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method beside its experiment file: one image a digit, and every test sample in one place of the map."""
    examples = Path(__file__).resolve().parents[1] / "examples"
    monkeypatch.syspath_prepend(examples)
    result = run(load_experiment(examples / "averaged.toml"), tmp_path / "run")
    lines = read_lines(result.folder / "exhibits.jsonl")
    assert [line["round"] for line in lines if line["name"] == "looks"] == [4, 9, 14, 19]
    looks, confused = (
        read({key: lines[at][key] for key in lines[at] if key not in ("round", "by")}) for at in (-2, -1)
    )
    assert isinstance(looks, Images)
    assert looks.images.shape == (10, 8, 8)
    assert isinstance(confused, Heatmap)
    panel = confused.panels[""]
    assert np.trace(panel) / panel.sum() == pytest.approx(result.metrics["accuracy"])
    assert {"looks", "confused"} <= {path.stem for path in (result.folder / "figures").iterdir()}
    assert "<h2>Mean model</h2>" in (result.folder / "report.html").read_text()
