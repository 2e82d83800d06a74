"""Keys that have moved to another table: whoever writes an old one is told the new one, wherever it stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedgen.config import Experiment, FederationSection, parse_experiment
from fedgen.errors import SettingError
from fedgen.moved import MOVED
from fedgen.server.cli import main
from fedgen.server.run.start import Result, resume

VALUES: dict[str, Any] = {
    "federation.topology": "ring",
    "federation.mixing": "metropolis_hastings",
    "federation.keep": 0.25,
    "federation.protocol": "pull",
    "federation.seed_agreement": True,
    "federation.clock": "events",
    "federation.training_ticks": [1, 2],
    "federation.stragglers": 0.5,
    "federation.slowdown": 2.0,
    "federation.delay": [0, 1],
    "federation.inbox": 0.5,
    "federation.age_decay": 1.0,
    "federation.loss": 0.5,
    "federation.churn": 0.5,
    "federation.churn_rounds": [1, 2],
    "federation.away": 3,
}


def toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def told(old: str) -> str:
    return f"{old}: has moved to {MOVED[old]}; write it there"


def test_every_key_that_has_moved_is_known_at_its_new_place_alone() -> None:
    assert set(VALUES) == set(MOVED)
    sections = Experiment().model_dump()
    for new in MOVED.values():
        table, key = new.split(".")
        assert key in sections[table]
    assert not {old.partition(".")[2] for old in MOVED} & set(FederationSection.model_fields)


@pytest.mark.parametrize("old", VALUES)
def test_an_old_key_is_an_error_that_gives_the_new_one(old: str) -> None:
    """In a file, from Python, in `replace`, and on the command line."""
    table, key = old.split(".")
    with pytest.raises(SettingError) as caught:
        parse_experiment(f"[{table}]\n{key} = {toml(VALUES[old])}\n", "my.toml")
    assert str(caught.value) == f"my.toml: {told(old)}"
    with pytest.raises(SettingError) as caught:
        Experiment(**{table: {"mode": "gossip", key: VALUES[old]}})
    assert str(caught.value) == told(old)
    with pytest.raises(SettingError) as caught:
        Experiment().replace(**{table: {key: VALUES[old]}})
    assert str(caught.value) == told(old)
    with pytest.raises(SettingError) as caught:
        parse_experiment("", "my.toml", overrides={old: VALUES[old]})
    assert str(caught.value) == f"my.toml: {told(old)}"


def test_so_is_one_below_an_old_key() -> None:
    with pytest.raises(SettingError, match=r"federation\.topology: has moved to gossip\.topology"):
        parse_experiment("", overrides={"federation.topology.degree": 6})


def test_beside_other_mistakes_each_has_its_line() -> None:
    with pytest.raises(SettingError) as caught:
        Experiment(federation={"loss": 0.1, "rounds": -1, "topologie": "ring"})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert told("federation.loss") in lines
    assert any(line.startswith("federation.topologie: unknown key") for line in lines)


@pytest.mark.parametrize("old", ["federation.topology", "federation.delay", "federation.churn"])
def test_the_command_line_says_so(old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text("")
    assert main(["run", str(file), "--set", f"{old}={toml(VALUES[old])}", "--out", str(tmp_path / "run")]) == 2
    assert told(old) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_with_old_keys_says_so_when_it_is_resumed(
    tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    folder = run_in(tiny(federation={"mode": "gossip"}, gossip={"keep": 0.25})).folder
    with pytest.raises(SettingError, match=r"federation\.keep: has moved to gossip\.keep; write it there"):
        resume(folder, overrides={"federation.keep": 0.5})
    resolved = folder / "resolved.toml"
    text = resolved.read_text()
    assert "[gossip]" in text
    resolved.write_text(text.replace("[federation]", "[federation]\nkeep = 0.25"))
    with pytest.raises(SettingError, match=r"resolved\.toml.* federation\.keep: has moved to gossip\.keep") as caught:
        resume(folder)
    assert "start the run again" in str(caught.value)
