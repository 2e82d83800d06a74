"""What a run needs to go on: its folder's files, its plan, the user's own source, and room to write."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedgen import registry, resume, run
from fedgen.config import Experiment
from fedgen.errors import SettingError
from fedgen.server.cli import main
from fedgen.server.experiment_file import dump
from fedgen.server.run.result import RunFailed
from fedgen.server.store.disk import Unwritable
from fedgen.server.store.journal import read_lines
from fedgen.tracking.observer import Observer
from fedgen.tracking.record import RoundRecord

PARTS = ["resolved.toml", "environment.json", "network.json", "metrics.jsonl", "events.jsonl"]


class Acting(Observer):
    """Does something after the second round."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def round(self, record: RoundRecord) -> None:
        if record.round == 1:
            self.act()


def stop() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def stopped(tiny: Callable[..., Experiment], tmp_path: Path) -> Path:
    """A gossip that was stopped after two of its four rounds."""
    experiment = tiny(federation={"mode": "gossip", "rounds": 4}, gossip={"topology": "ring"})
    assert run(experiment, tmp_path / "run", observers=[Acting(stop)]).rounds == 2
    return tmp_path / "run"


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "not text", "other"])
def test_a_file_that_resume_needs_is_named_with_the_fix(
    part: str, damage: str, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stopped / part
    whole = path.read_bytes()
    damaged = {"empty": b"", "cut": whole[: len(whole) // 2], "not text": b"\xff\xfe\n" + whole, "other": b"[1]\n" * 99}
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(damaged[damage])
    before = {each.name: each.read_bytes() for each in stopped.iterdir() if each.is_file() and each.name != ".lock"}
    assert main(["resume", str(stopped)]) == 2
    said = capsys.readouterr()
    assert str(path) in said.err or (part == "resolved.toml" and damage == "gone" and str(stopped) in said.err)
    assert "Traceback" not in said.err + said.out
    assert "fedgen run" in said.err or part == "resolved.toml"
    after = {each.name: each.read_bytes() for each in stopped.iterdir() if each.is_file() and each.name != ".lock"}
    assert after == before, "nothing was lost by asking"
    path.write_bytes(whole)
    assert resume(stopped).state == "completed"


@pytest.mark.parametrize("key", ["identity", "data", "search_path", "code"])
def test_an_environment_that_lacks_something_says_what(key: str, stopped: Path) -> None:
    path = stopped / "environment.json"
    environment = json.loads(path.read_text())
    del environment[key]
    path.write_text(json.dumps(environment))
    with pytest.raises(SettingError, match=rf"environment.json is damaged \(no {key}"):
        resume(stopped)


@pytest.mark.parametrize("damage", [None, b"{", b"[]"])
def test_who_holds_what_is_written_again(damage: bytes | None, stopped: Path) -> None:
    """It follows from experiment and data, whose hashes are compared: no reason not to go on."""
    path = stopped / "partition.json"
    whole = path.read_bytes()
    path.unlink() if damage is None else path.write_bytes(damage)
    assert resume(stopped).state == "completed"
    assert path.read_bytes() == whole
    [event] = [event for event in read_lines(stopped / "events.jsonl") if event["event"] == "rewritten"]
    assert "partition.json is" in event["reason"]


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_run_is_not_made_shorter(rounds: int, stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(stopped), "--rounds", str(rounds)]) == 2
    assert f"--rounds {rounds}: this run is planned for 4 rounds" in capsys.readouterr().err
    with pytest.raises(SettingError, match="is planned for 4 rounds"):
        resume(stopped, overrides={"federation.rounds": rounds})
    assert resume(stopped, rounds=5).rounds == 5


@pytest.fixture
def full_disk() -> Iterator[Callable[[int], None]]:
    """full_disk(size) -> no file of this process grows beyond so many bytes: the system itself refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 40, 1000])
def test_a_disk_that_is_full_while_rounds_are_played(
    room: int, tiny: Any, tmp_path: Path, full_disk: Callable[[int], None]
) -> None:
    """A log or a checkpoint does not fit; the run says so, and afterwards goes on to the same bits."""
    experiment = tiny(federation={"rounds": 6}, runtime={"backend": "serial", "checkpoint_every": 2})
    whole = run(experiment, tmp_path / "whole")
    folder = tmp_path / "run"
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)
    filled = Acting(lambda: full_disk((folder / "metrics.jsonl").stat().st_size + room))
    with pytest.raises(RunFailed) as failure:
        run(experiment, folder, observers=[filled])
    resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    message = failure.value.result.message
    assert str(folder) in message
    assert "cannot be written" in message
    assert f"`fedgen resume {folder}` continues" in message
    assert failure.value.result.exit_code == 1
    assert list(folder.rglob("*.tmp")) == []
    ended = resume(folder)
    assert (ended.state, ended.sha256) == ("completed", whole.sha256)
    assert [line["round"] for line in read_lines(folder / "metrics.jsonl")] == list(range(6))


FULL = errno.ENOSPC
ENDINGS = [
    *(("result.json", reason) for reason in (FULL, errno.EDQUOT, errno.EROFS, errno.EACCES)),
    *((name, FULL) for name in ("round-000002.safetensors", "model.safetensors", "report.html", "loss.svg")),
]


@pytest.mark.parametrize(("name", "reason"), ENDINGS)
def test_a_last_file_that_cannot_be_written_fails_the_run(
    name: str, reason: int, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def refusing(move: Callable[..., Any]) -> Callable[..., Any]:
        def moved(source: Any, target: Any) -> Any:
            if Path(target).name == name:
                raise OSError(reason, os.strerror(reason), str(target))
            return move(source, target)

        return moved

    path = tmp_path / "experiment.toml"
    path.write_text(dump(tiny(tracking={"report": name in ("report.html", "loss.svg")})))
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refusing(os.replace))
        patched.setattr(Path, "replace", refusing(Path.replace))
        assert main(["run", str(path), "--out", str(tmp_path / "run"), "--json"]) == 1
    said = capsys.readouterr()
    last = json.loads(said.out.splitlines()[-1])
    assert (last["state"], last["rounds"]) == ("failed", 2)
    assert str(tmp_path / "run") in last["message"]
    assert os.strerror(reason) in last["message"]
    assert "Traceback" not in said.err
    assert "defect" not in said.err
    if name != "result.json":
        assert json.loads((tmp_path / "run" / "result.json").read_text())["state"] == "failed"
    assert resume(tmp_path / "run", overrides={"tracking.report": False}).state == "completed"


@pytest.mark.parametrize("name", ["environment.json", "partition.json", "resolved.toml", "experiment.toml"])
def test_a_run_that_cannot_even_begin_leaves_the_folder_free(
    name: str, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = os.replace

    def refusing(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        move(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refusing)
        with pytest.raises(Unwritable, match=rf"run/{name} cannot be written: No space left"):
            run(tiny(), tmp_path / "run")
    assert run(tiny(), tmp_path / "run").state == "completed"


NET = """
import torch
from own_parts.layers import widths

class Net(torch.nn.Sequential):
    def __init__(self):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, widths()[0]), torch.nn.Linear(widths()[0], 10))
"""


@pytest.fixture
def own_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_module: Callable[[str, str], Path]) -> Path:
    """A module of the user's own that imports another, out of a package, which imports a third."""
    (tmp_path / "own_parts").mkdir()
    (tmp_path / "own_parts" / "__init__.py").write_text("")
    (tmp_path / "own_parts" / "layers.py").write_text("def widths():\n    from . import sizes\n    return sizes.ALL\n")
    (tmp_path / "own_parts" / "sizes.py").write_text("ALL = (16,)\n")
    for name in ("own_parts.sizes", "own_parts.layers", "own_parts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return user_module("own_net", NET)


def test_changed_source_of_the_users_own_is_refused_and_accepted(
    own_net: Path, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny(model={"name": "own_net:Net"}, federation={"rounds": 4})
    run(experiment, tmp_path / "run", observers=[Acting(stop)])
    code = json.loads((tmp_path / "run" / "environment.json").read_text())["code"]
    assert set(code) == {"own_net", "own_parts", "own_parts.layers", "own_parts.sizes"}
    third = tmp_path / "own_parts" / "sizes.py"
    third.write_text("ALL = (16,)  # the same, but who knows\n")
    command = ["resume", str(tmp_path / "run")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"{third}: changed since this run began" in said
    assert "--accept-code" in said
    assert main([*command, "--accept-code"]) == 0
    [event] = [each for each in read_lines(tmp_path / "run" / "events.jsonl") if each["event"] == "code_changed"]
    assert event["files"] == [str(third)]
    assert main(command) == 0, "the new hash is what the run has now"


def test_source_that_is_gone_is_named(own_net: Path, tiny: Any, tmp_path: Path) -> None:
    run(tiny(model={"name": "own_net:Net"}, federation={"rounds": 4}), tmp_path / "run", observers=[Acting(stop)])
    own_net.rename(tmp_path / "elsewhere.py")
    with pytest.raises(SettingError, match=r"own_net.py: changed since this run began"):
        resume(tmp_path / "run")


def test_what_is_installed_is_not_the_users_own(tiny: Any) -> None:
    from fedgen.own_code import is_own
    from fedgen.server.store.user_code import sources

    assert sources(tiny(model={"name": "logistic", "metrics": ["torch.nn.functional:mse_loss"]})) == {}
    for installed in (pytest.__file__, json.__file__, registry.__file__, main.__code__.co_filename, "<string>"):
        assert not is_own(installed)
    assert is_own(__file__)


def test_standard_output_on_a_full_disk_is_no_defect(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(dump(tiny()))
    command = [sys.executable, "-m", "fedgen.server", "run", str(path), "--out", str(tmp_path / "run")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, "who watches a run does not end it"
    assert "No space left on device" in done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["state"] == "completed"
    told = [event for event in read_lines(tmp_path / "run" / "events.jsonl") if event["event"] == "observer_dropped"]
    assert [event["observer"] for event in told] == ["fedgen.server.screen.plain_view:PlainView"]
    assert "Traceback" not in done.stderr
    assert "defect" not in done.stderr
