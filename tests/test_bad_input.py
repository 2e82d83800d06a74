"""Bad input on the command line: one paragraph with setting and fix, the right exit code, nothing lost."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from fedgen.data.dataset import Dataset
from fedgen.data.digits import Digits
from fedgen.server import cli
from fedgen.server.store.journal import read_lines

TINY = """
[data]
clients = 12
partition = "iid"
validation = 0.0

[model]
name = "logistic"

[training]
steps = 1

[federation]
rounds = 2
cohort = 12

[runtime]
backend = "serial"

[tracking]
report = false
"""


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Fedgen = Callable[..., Ended]


@pytest.fixture
def fedgen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Fedgen:
    """fedgen(words...) -> how that command ends in a folder of its own; what it leaves in this process is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in ("RAY_USAGE_STATS_ENABLED", "FLWR_TELEMETRY_ENABLED"):
        monkeypatch.setenv(name, "0")

    def call(*words: str) -> Ended:
        capsys.readouterr()
        try:
            code = cli.main(words)
        except SystemExit as exit:
            code = int(exit.code or 0)
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """write(text) -> the name of an experiment file that holds it."""

    def file(text: str) -> str:
        (tmp_path / "experiment.toml").write_text(text)
        return "experiment.toml"

    return file


def assert_refused(ended: Ended, *fragments: str) -> None:
    """Exit code 2, and on stderr one paragraph with these fragments; nothing on stdout, no traceback, no run."""
    assert ended.code == 2, ended
    assert ended.out == ""
    assert ended.err.startswith("fedgen: ")
    assert "Traceback" not in ended.err
    assert "\n\n" not in ended.err.strip()
    assert [fragment for fragment in fragments if fragment not in ended.err] == [], ended.err


def files_under(folder: Path) -> dict[str, str]:
    """File -> SHA-256, of all but the lock."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def no_run(tmp_path: Path) -> Any:
    """Checks at the end that no run folder was made."""
    yield
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


def test_the_tiny_experiment_runs(fedgen: Fedgen, write: Callable[[str], str], tmp_path: Path) -> None:
    """Else every refusal below could have another reason."""
    ended = fedgen("run", write(TINY), "--out", "out", "--json")
    assert ended.code == 0, ended
    last = json.loads(ended.out.splitlines()[-1])
    assert (last["state"], last["rounds"], last["run"]) == ("completed", 2, "out")
    assert (tmp_path / "out" / "experiment.toml").read_text() == TINY


@pytest.mark.usefixtures("no_run")
@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("[data]\nclients = = 3", ["experiment.toml is not valid TOML", "line 2"]),
        ("[data]\nclients = 'many'", ["experiment.toml: data.clients", "integer", "'many'"]),
        ("[data]\nstandardise = 1", ["experiment.toml: data.standardise", "boolean", "got 1"]),
        ("[training]\noptimizer = { name = 'sgd', lr = 'big' }", ["training.optimizer.lr", "number", "'big'"]),
        ("[training]\nepochs = 1\nsteps = 1", ["training: epochs and steps are both given; keep one of them"]),
        (
            "[data]\nclients = 1438\nvalidation = 0.0",
            ["data.clients = 1438", "1437 training samples", "lower data.clients"],
        ),
        (
            "[data]\nclients = 12\n[federation]\ncohort = 13",
            ["federation.cohort = 13", "data.clients = 12", "at most 12"],
        ),
        ("[aggregation]\nrule = 'median'\nf = 5", ["aggregation.f = 5", "f >= n / 2", "at most 4"]),
        ("[byzantine]\nattack = 'ipm'\nclients = [100]", ["byzantine.clients = [100]", "data.clients = 100"]),
        ("[model]\nname = 'cnn'", ["model 'cnn'", "8 x 8", "model.padding = 1"]),
        ("[aggregation]\nrule = 'medain'", ["aggregation.rule", "did you mean 'median'"]),
        ("[data]\nclient = 3", ["data.client", "did you mean 'clients'"]),
    ],
    ids=lambda value: value.replace("\n", " ") if isinstance(value, str) else "",
)
def test_a_mistake_in_the_file_is_refused(
    text: str, fragments: list[str], fedgen: Fedgen, write: Callable[[str], str]
) -> None:
    assert_refused(fedgen("run", write(text), "--out", "out", "--set", "runtime.backend=serial"), *fragments)


@pytest.mark.usefixtures("no_run")
@pytest.mark.parametrize(
    ("setting", "fragments"),
    [
        ("data.client=3", ["data.client", "unknown key", "did you mean 'clients'"]),
        ("dta.clients=3", ["dta", "unknown key", "did you mean 'data'"]),
        ("training.batch_size=0", ["training.batch_size", "greater than or equal to 1"]),
        ("training.batch_size", ["--set 'training.batch_size'", "KEY=VALUE"]),
        ("data.clients.x=3", ["--set data.clients.x", "clients is no table but 12"]),
        pytest.param("data[0]=3", ["data[0]", "unknown key"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_in_set_is_refused(
    setting: str, fragments: list[str], fedgen: Fedgen, write: Callable[[str], str]
) -> None:
    assert_refused(fedgen("run", write(TINY), "--out", "out", "--set", setting), *fragments)


@pytest.mark.usefixtures("no_run")
def test_a_missing_experiment_file_is_named(fedgen: Fedgen) -> None:
    assert_refused(fedgen("run", "nowhere.toml", "--out", "out"), "nowhere.toml cannot be read", "fedgen init")


@pytest.mark.usefixtures("no_run")
def test_missing_data_names_the_setting_and_the_file(
    fedgen: Fedgen, write: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", no_network)
    (tmp_path / "data").mkdir()
    ended = fedgen("run", write(TINY), "--out", "out", "--set", "data.dataset=mnist", "--set", "runtime.data_dir=data")
    assert_refused(ended, "runtime.data_dir", "mnist/mnist.npz", "no network", "FEDGEN_DATA_DIR")
    assert list((tmp_path / "data").iterdir()) == []


@dataclass(frozen=True, kw_only=True)
class Holed:
    """Digits of which one training pixel is missing."""

    def load(self, folder: Path) -> Dataset:
        digits = Digits().load(folder)
        x = digits.x.clone()
        x[17, 0, 3, 3] = float("nan")
        return Dataset("holed", x, digits.y, digits.test_x, digits.test_y, digits.classes)


@pytest.mark.usefixtures("no_run")
def test_nan_in_the_data_is_refused(
    fedgen: Fedgen, write: Callable[[str], str], registered: Callable[..., Any]
) -> None:
    registered("dataset", "holed")(Holed)
    ended = fedgen("run", write(TINY), "--out", "out", "--set", "data.dataset=holed")
    assert_refused(
        ended,
        "data.dataset 'holed'",
        "training samples that hold NaN or infinite values: 1, the first is sample 17",
        "remove or fill",
    )


@pytest.mark.parametrize("out", ["file/out", "file"])
def test_a_folder_that_cannot_be_written_is_refused(
    out: str, fedgen: Fedgen, write: Callable[[str], str], tmp_path: Path
) -> None:
    """A path under, or at, a regular file: not even root may make it a folder."""
    (tmp_path / "file").write_text("mine")
    assert_refused(fedgen("run", write(TINY), "--out", out), f"--out {out} cannot be written", "name a folder")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["../escaped", "a\\u0000b"])
def test_a_name_that_is_no_folder_name_is_refused(
    name: str, fedgen: Fedgen, write: Callable[[str], str], tmp_path: Path
) -> None:
    ended = fedgen("run", write(f'[experiment]\nname = "{name}"\n{TINY}'))
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("experiment.toml", "runs")] == []
    assert_refused(ended, "experiment.name")


def test_a_folder_that_holds_a_run_is_refused_and_the_run_unharmed(
    fedgen: Fedgen, write: Callable[[str], str], tmp_path: Path
) -> None:
    assert fedgen("run", write(TINY), "--out", "out").code == 0
    before = files_under(tmp_path / "out")
    assert {"resolved.toml", "result.json", "model.safetensors", "events.jsonl"} <= set(before)
    ended = fedgen("run", write(TINY), "--out", "out", "--set", "federation.rounds=1")
    assert_refused(ended, "--out out holds a run", "fedgen resume out", "name another folder")
    assert files_under(tmp_path / "out") == before


def test_resuming_what_is_no_run_is_refused(fedgen: Fedgen, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(fedgen("resume", "empty"), "empty holds no run", "fedgen run")
    assert_refused(fedgen("resume", "nowhere"), "nowhere holds no run", "fedgen run")
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["--set", "training.batch_size=8"], ["no longer describe the experiment", "start a new run"]),
        (["--set", "experiment.seed=8"], ["no longer describe the experiment", "start a new run"]),
        (["--rounds", "1"], ["--rounds 1", "planned for 2 rounds"]),
        (["--set", "runtime.worker=3"], ["runtime.worker", "did you mean 'workers'"]),
    ],
    ids=["batch size", "seed", "fewer rounds", "unknown key"],
)
def test_resuming_another_experiment_is_refused_and_the_run_unharmed(
    words: list[str], fragments: list[str], fedgen: Fedgen, write: Callable[[str], str], tmp_path: Path
) -> None:
    assert fedgen("run", write(TINY), "--out", "out").code == 0
    before = files_under(tmp_path / "out")
    assert_refused(fedgen("resume", "out", *words), *fragments)
    assert files_under(tmp_path / "out") == before


@pytest.mark.parametrize("ending", ["refused", "failed"])
def test_a_run_that_is_let_go_no_longer_names_its_ray_folder(
    ending: str, fedgen: Fedgen, write: Callable[[str], str], nets: None, tmp_path: Path
) -> None:
    assert fedgen("run", write(TINY), "--out", "refused").code == 0
    assert fedgen("resume", "refused", "--rounds", "1").code == 2
    assert fedgen("run", write(OWN.format(name="Broken")), "--out", "failed").code == 1
    assert (tmp_path / ending / ".lock").read_text() == ""


NETS = """
from pathlib import Path

import torch

class Fragile(torch.nn.Linear):
    '''Fails where it is trained on an image with this sum.'''

    def __init__(self, total: float) -> None:
        super().__init__(64, 10)
        self.total = total

    def forward(self, x):
        if self.training and (x.sum((1, 2, 3)) == self.total).any():
            raise ValueError("this image is too much")
        return super().forward(x.flatten(1))

class Broken(torch.nn.Linear):
    '''Fails whenever it is trained.'''

    def __init__(self) -> None:
        super().__init__(64, 10)

    def forward(self, x):
        if self.training:
            raise ValueError("nothing works")
        return super().forward(x.flatten(1))

class Mendable(torch.nn.Linear):
    '''Fails whenever it is trained while the file `broken` is there.'''

    def __init__(self) -> None:
        super().__init__(64, 10)

    def forward(self, x):
        if self.training and Path("broken").exists():
            raise ValueError("not mended yet")
        return super().forward(x.flatten(1))

class Untested(torch.nn.Linear):
    '''Fails whenever it is not trained.'''

    def __init__(self) -> None:
        super().__init__(64, 10)

    def forward(self, x):
        if not self.training:
            raise ValueError("no test")
        return super().forward(x.flatten(1))

class NoNetwork:
    '''No torch.nn.Module.'''

def function():
    pass
"""


@pytest.fixture
def nets(user_module: Callable[[str, str], Path]) -> None:
    user_module("my_nets", NETS)


def brightest() -> float:
    """The sum of the one training image of digits that has more ink than all others."""
    sums = Digits().load(Path()).x.sum((1, 2, 3))
    assert int((sums == sums.max()).sum()) == 1
    return float(sums.max())


OWN = TINY.replace('name = "logistic"', 'name = "my_nets:{name}"').replace(
    "steps = 1", 'epochs = 1\nengine = "reference"'
)


@pytest.mark.usefixtures("nets")
def test_a_model_that_fails_in_one_client_leaves_the_run_degraded(
    fedgen: Fedgen, write: Callable[[str], str], tmp_path: Path
) -> None:
    text = OWN.format(name="Fragile").replace("[training]", f"total = {brightest()!r}\n\n[training]")
    ended = fedgen("run", write(text), "--out", "out", "--json")
    assert ended.code == 3, ended
    last = json.loads(ended.out.splitlines()[-1])
    assert (last["state"], last["rounds"]) == ("degraded", 2)
    assert last["message"].startswith("2 client runs failed (my_nets.py:15: ValueError: this image is too much)")
    failures = [event for event in read_lines(tmp_path / "out" / "events.jsonl") if event["event"] == "failed"]
    assert [event["round"] for event in failures] == [0, 1]
    assert len({event["client"] for event in failures}) == 1
    assert {event["reason"] for event in failures} == {"my_nets.py:15: ValueError: this image is too much"}
    for record in read_lines(tmp_path / "out" / "metrics.jsonl"):
        assert record["clients"] == {"admitted": 11, "rejected": 0, "failed": 1, "late": 0}


@pytest.mark.usefixtures("nets")
def test_a_model_that_fails_in_all_clients_leaves_a_failed_run(
    fedgen: Fedgen, write: Callable[[str], str], tmp_path: Path
) -> None:
    ended = fedgen("run", write(OWN.format(name="Broken")), "--out", "out", "--json")
    assert ended.code == 1, ended
    last = json.loads(ended.out.splitlines()[-1])
    assert (last["state"], last["rounds"]) == ("failed", 0)
    assert "all 12 clients failed" in last["message"]
    assert "ValueError: nothing works" in last["message"]
    assert "Traceback" not in ended.out + ended.err
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == last
    assert {"model.safetensors", "experiment.toml", "resolved.toml"} <= set(files_under(tmp_path / "out"))
    assert "model.name 'my_nets:Broken'" in last["message"]
    assert "`fedgen resume out` continues" in last["message"]
    run_failed, *of_clients = [
        event for event in read_lines(tmp_path / "out" / "events.jsonl") if event["event"] == "failed"
    ]
    assert "round" not in run_failed
    assert "nothing works" in run_failed["reason"]
    assert sorted(event["client"] for event in of_clients) == list(range(12))
    assert {(event["round"], event["reason"]) for event in of_clients} == {
        (0, "my_nets.py:26: ValueError: nothing works")
    }
    assert fedgen("report", "out").code == 0
    assert "12 client runs failed, of 12 clients" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.usefixtures("nets")
def test_a_failed_run_that_was_mended_ends_as_if_it_had_never_failed(
    fedgen: Fedgen, write: Callable[[str], str], tmp_path: Path
) -> None:
    file = write(OWN.format(name="Mendable"))
    assert fedgen("run", file, "--out", "whole").code == 0
    (tmp_path / "broken").touch()
    assert fedgen("run", file, "--out", "out").code == 1
    assert fedgen("resume", "out").code == 1
    (tmp_path / "broken").unlink()
    ended = fedgen("resume", "out", "--json")
    last = json.loads(ended.out.splitlines()[-1])
    assert (ended.code, last["state"], last["message"]) == (0, "completed", "")
    assert last["sha256"] == json.loads((tmp_path / "whole" / "result.json").read_text())["sha256"]
    events = read_lines(tmp_path / "out" / "events.jsonl")
    assert [event["event"] for event in events] == ["failed", "resumed", "failed", "resumed", "admitted", "admitted"]
    assert not any("client" in event for event in events)


@pytest.mark.usefixtures("nets")
def test_a_model_that_fails_in_evaluation_leaves_a_failed_run(fedgen: Fedgen, write: Callable[[str], str]) -> None:
    ended = fedgen("run", write(OWN.format(name="Untested")), "--out", "out", "--json")
    assert ended.code == 1, ended
    message = json.loads(ended.out.splitlines()[-1])["message"]
    assert "round 0: evaluation failed: my_nets.py:48: ValueError: no test" in message
    assert "model.name 'my_nets:Untested'" in message
    assert "Traceback" not in ended.out + ended.err


@pytest.mark.usefixtures("nets")
def test_without_json_a_failed_run_says_why_as_well(fedgen: Fedgen, write: Callable[[str], str]) -> None:
    ended = fedgen("run", write(OWN.format(name="Broken")), "--out", "out")
    assert ended.code == 1, ended
    assert "all 12 clients failed" in ended.out + ended.err
    assert "Traceback" not in ended.out + ended.err


@pytest.mark.usefixtures("nets", "no_run")
@pytest.mark.parametrize("name", ["NoNetwork", "function"])
def test_a_model_that_is_no_module_is_refused(name: str, fedgen: Fedgen, write: Callable[[str], str]) -> None:
    ended = fedgen("run", write(OWN.format(name=name)), "--out", "out")
    assert_refused(ended, f"my_nets:{name}", "is no class" if name == "function" else "torch.nn.Module")


@pytest.mark.usefixtures("nets", "no_run")
def test_a_model_without_its_parameter_is_refused(fedgen: Fedgen, write: Callable[[str], str]) -> None:
    """Fragile needs `total`."""
    assert_refused(fedgen("run", write(OWN.format(name="Fragile")), "--out", "out"), "total", "no default")


@pytest.mark.usefixtures("nets", "no_run")
def test_a_class_that_is_not_there_is_refused(fedgen: Fedgen, write: Callable[[str], str]) -> None:
    ended = fedgen("run", write(OWN.format(name="Robust")), "--out", "out")
    assert_refused(ended, "module 'my_nets' has no 'Robust'")


def test_the_experiments_folder_is_searched_for_modules(
    fedgen: Fedgen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module lies beside the file, which is named from another folder."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "beside_the_file.py").write_text(NETS)
    (home / "experiment.toml").write_text(OWN.format(name="Broken").replace("my_nets", "beside_the_file"))
    try:
        assert fedgen("run", "home/experiment.toml", "--out", "out").code == 1
        assert "nothing works" in (tmp_path / "out" / "result.json").read_text()
    finally:
        sys.modules.pop("beside_the_file", None)


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["rnu", "experiment.toml"], ["rnu", "invalid choice"]),
        ([], ["COMMAND"]),
        (["run"], ["FILE"]),
        (["run", "experiment.toml", "--outt", "x"], ["--outt"]),
        (["resume", "out", "--rounds", "many"], ["--rounds", "'many'"]),
        (["list", "rules"], ["kind 'rules' is not known", "did you mean 'rule'"]),
    ],
    ids=["unknown command", "no command", "no file", "unknown option", "no number", "unknown kind"],
)
def test_a_wrong_command_line_is_refused(words: list[str], fragments: list[str], fedgen: Fedgen) -> None:
    assert_refused(fedgen(*words), *fragments)


def test_init_does_not_overwrite(fedgen: Fedgen, tmp_path: Path) -> None:
    (tmp_path / "experiment.toml").write_text("mine")
    assert_refused(fedgen("init"), "experiment.toml exists already", "name another file")
    assert (tmp_path / "experiment.toml").read_text() == "mine"
    assert_refused(fedgen("init", "experiment.toml/x.toml"), "cannot be written")
    assert fedgen("init", "other.toml").code == 0


def test_a_report_of_what_is_no_run_is_refused(fedgen: Fedgen, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_refused(fedgen("report", "empty"), "empty")
    assert_refused(fedgen("report", "nowhere"), "nowhere")
    assert list((tmp_path / "empty").iterdir()) == []


def test_messages_do_not_carry_control_characters(fedgen: Fedgen, write: Callable[[str], str]) -> None:
    ended = fedgen("run", write("[data]\ndataset = '''a\nb'''"), "--out", "out")
    assert_refused(ended, "data.dataset")
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", ended.err)


def test_threads_and_torch_survive_a_refusal(fedgen: Fedgen, write: Callable[[str], str]) -> None:
    """A refusal in one command leaves nothing that changes the next one's bits."""
    first = fedgen("run", write(TINY), "--out", "first", "--json")
    fedgen("run", write(TINY), "--out", "first")
    torch.manual_seed(99)
    second = fedgen("run", write(TINY), "--out", "second", "--json")
    hashes = [json.loads(ended.out.splitlines()[-1])["sha256"] for ended in (first, second)]
    assert hashes[0] == hashes[1]


def test_files_of_ones_own_are_not_overwritten(fedgen: Fedgen, write: Callable[[str], str], tmp_path: Path) -> None:
    file = write(TINY)
    (tmp_path / "report.html").write_text("mine")
    assert_refused(
        fedgen("run", file, "--out", "."), "already holds experiment.toml, report.html", "name another folder"
    )
    assert (tmp_path / "report.html").read_text() == "mine"
    assert not (tmp_path / "resolved.toml").exists()


@pytest.mark.parametrize("name", ["partition.json", "metrics.jsonl", "events.jsonl", "checkpoints", "figures"])
def test_every_part_of_a_run_is_guarded(name: str, fedgen: Fedgen, write: Callable[[str], str], tmp_path: Path) -> None:
    own = tmp_path / "mine" / name
    own.mkdir(parents=True) if "." not in name else own.parent.mkdir()
    if "." in name:
        own.write_text("mine")
    assert_refused(fedgen("run", write(TINY), "--out", "mine"), f"already holds {name}", "name another folder")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == [name]


FAULTY = """
import torch

class Wide(torch.nn.Linear):
    def __init__(self, width):
        super().__init__(64, width)

class Empty(torch.nn.Flatten):
    pass

class Data:
    def load(self, folder):
        raise RuntimeError("no disc")
"""


@pytest.mark.parametrize(
    ("settings", "fragments"),
    [
        (["model.name=faulty:Wide", "model.width=x"], ["model 'faulty:Wide' cannot be made with {'width': 'x'}"]),
        (["model.name=faulty:Empty"], ["model.name 'faulty:Empty' has no parameters"]),
        (
            ["data.dataset=faulty:Data"],
            ["data.dataset 'faulty:Data' could not be loaded (faulty.py:13: RuntimeError: no disc)"],
        ),
        (['data.partition={name="dirichlet",minimum=1000}'], ["data.partition.minimum = 1000"]),
    ],
    ids=["constructor", "no parameters", "data", "minimum"],
)
def test_own_parts_that_fail_are_named(
    settings: list[str], fragments: list[str], fedgen: Fedgen, write: Callable[[str], str], tmp_path: Path
) -> None:
    (tmp_path / "faulty.py").write_text(FAULTY)
    file = write("[data]\nclients = 12\n[runtime]\nbackend = 'serial'")
    assert_refused(fedgen("run", file, *[word for each in settings for word in ("--set", each)]), *fragments)
