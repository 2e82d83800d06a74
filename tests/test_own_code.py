"""What the user's own code raises is told with file and line, wherever it is raised."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedgen import run
from fedgen.clients.worker import Worker
from fedgen.config import Experiment
from fedgen.errors import SettingError
from fedgen.own_code import explained, is_own
from fedgen.server.report.page import write_report
from fedgen.server.run.result import RunFailed
from fedgen.server.store.journal import read_lines

PARTS = """import torch
from torch.nn import functional

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def forward(self, x):
        if self.training and float(x.sum()) != 0 and len(x) == 3:
            raise ValueError("three are too few")
        if not self.training and WHERE == "test":
            return functional.linear(x, self.layer.weight)
        return self.layer(x.flatten(1))

class Rule:
    linear = False

    def minimum(self, f):
        return 1

    def aggregate(self, rows, weights, context):
        raise KeyError("nothing")

class Data:
    def load(self, folder):
        return open(folder / "nowhere.csv")

class Made(torch.nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.layer = torch.nn.Linear(width, -1)

def measure(outputs, targets):
    return outputs / targets.missing

WHERE = "test"
"""


def lines_with(words: str) -> int:
    return next(number for number, line in enumerate(PARTS.splitlines(), 1) if words in line)


@pytest.fixture
def parts(user_module: Callable[[str, str], Path]) -> Path:
    return user_module("own_bits", PARTS)


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize(
    ("tables", "words", "kind"),
    [
        ({"data": {"dataset": "own_bits:Data"}}, "nowhere.csv", "FileNotFoundError"),
        ({"model": {"name": "own_bits:Made"}}, "Linear(width, -1)", "RuntimeError"),
        ({"model": {"name": "logistic", "metrics": ["own_bits:measure"]}}, "targets.missing", "AttributeError"),
    ],
)
def test_before_a_run(tables: dict[str, Any], words: str, kind: str, tiny: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=rf"own_bits\.py:{lines_with(words)}: {kind}: "):
        run(tiny(**tables), tmp_path / "run")


def test_a_module_that_does_not_import(user_module: Callable[[str, str], Path], tiny: Any, tmp_path: Path) -> None:
    user_module("own_slip", "import torch\n\nclass Net(:\n    pass\n")
    with pytest.raises(SettingError, match=r"own_slip\.py:3: SyntaxError: "):
        run(tiny(model={"name": "own_slip:Net"}), tmp_path / "run")
    user_module("own_late", "import torch\n\nNet = torch.nothing\n")
    with pytest.raises(SettingError, match=r"own_late\.py:3: AttributeError: "):
        run(tiny(model={"name": "own_late:Net"}), tmp_path / "run")


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("mode", ["star", "gossip"])
def test_in_a_run(mode: str, tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    """Every client fails in training: the message of the run, its events and its report say where."""
    own = f"own_bits.py:{lines_with('three are too few')}: ValueError: three are too few"
    experiment = tiny(
        model={"name": "own_bits:Net"},
        training={"batch_size": 3, "engine": "sequential"},
        federation={"mode": mode},
        gossip={"topology": "ring"} if mode == "gossip" else {},
    )
    with pytest.raises(RunFailed) as failure:
        run(experiment, tmp_path / "run")
    assert own in failure.value.result.message
    events = read_lines(tmp_path / "run" / "events.jsonl")
    assert all(own in event["reason"] for event in events)
    assert {event["event"] for event in events} == {"failed"}
    assert own in write_report(tmp_path / "run").read_text()


@pytest.mark.usefixtures("parts")
@pytest.mark.parametrize("mode", ["star", "gossip"])
def test_in_the_evaluation_and_in_a_rule(mode: str, tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    """torch raises, of what the user's module gave it: the innermost frame of the user's own is told."""
    network = {"federation": {"mode": mode}, "gossip": {"topology": "ring"} if mode == "gossip" else {}}
    experiment = tiny(model={"name": "own_bits:Net"}, training={"engine": "sequential"}, **network)
    with pytest.raises(RunFailed, match=rf"own_bits\.py:{lines_with('functional.linear')}: RuntimeError"):
        run(experiment, tmp_path / "evaluation")
    with pytest.raises(RunFailed, match=rf"own_bits\.py:{lines_with('nothing')}: KeyError: 'nothing'"):
        run(tiny(aggregation={"rule": "own_bits:Rule"}, **network), tmp_path / "rule")
    assert json.loads((tmp_path / "rule" / "result.json").read_text())["state"] == "failed"


def test_the_place_crosses_to_another_process() -> None:
    """Frames do not; Ray pickles what a worker's task raises."""

    def task(federation: object, shared: None, item: None) -> None:
        raise ValueError("far away")

    worker = Worker.__new__(Worker)
    worker.federation = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="far away") as raised:
        worker.run(task, None, None)
    crossed = pickle.loads(pickle.dumps(raised.value))
    assert explained(crossed) == explained(raised.value)
    assert explained(crossed).startswith("test_own_code.py:")


def test_what_nobody_of_the_users_raised_has_no_place() -> None:
    with pytest.raises(ValueError, match="Expecting") as raised:
        json.loads("{")
    assert explained(raised.value.with_traceback(None)).startswith("JSONDecodeError: ")
    assert not is_own(json.__file__)
