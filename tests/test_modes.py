"""Settings of another mode or clock are refused; settings that say nothing are told in notes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from fedgen.config import HOW, OF_MODE, Experiment, FederationSection
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.notes import notes
from fedgen.server.journal import read_lines
from fedgen.server.run import Result

VALUES: dict[str, Any] = {
    "federation.cohort": 7,
    "federation.clock": "events",
    "federation.topology": {"degree": 6},
    "federation.mixing": "metropolis_hastings",
    "federation.keep": 0.3,
    "federation.protocol": "pull",
    "federation.loss": 0.1,
    "federation.churn": 0.1,
    "federation.churn_rounds": [0, 3],
    "federation.away": 5,
    "federation.seed_agreement": True,
    "byzantine.per_neighbour": True,
    "federation.training_ticks": [1, 2],
    "federation.stragglers": 0.2,
    "federation.slowdown": 2.0,
    "federation.delay": [0, 2],
    "federation.inbox": 0.5,
    "federation.age_decay": 1.0,
}
TABLES: dict[str, dict[str, Any]] = {
    "a star": {},
    "gossip": {"mode": "gossip"},
    "gossip in virtual time": {"mode": "gossip", "clock": "events"},
}
MODE_OF = {path: mode for mode, paths in OF_MODE.items() for path in paths}


def experiment_in(mode: str, **values: Any) -> Experiment:
    """values: by path, with __ for the dot."""
    tables: dict[str, dict[str, Any]] = {"federation": dict(TABLES[mode])}
    for path, value in values.items():
        table, key = path.split("__")
        tables.setdefault(table, {})[key] = value
    return Experiment(**tables)


@pytest.mark.parametrize("mode", TABLES)
@pytest.mark.parametrize("path", VALUES)
def test_a_setting_belongs_to_its_mode(path: str, mode: str) -> None:
    own = MODE_OF[path]
    values = {path.replace(".", "__"): VALUES[path]}
    if mode in {own} | ({"gossip in virtual time"} if own == "gossip" else set()):
        assert experiment_in(mode, **values).identity
        return
    with pytest.raises(SettingError) as caught:
        experiment_in(mode, **values)
    assert str(caught.value).startswith(f"{path} = ")
    assert str(caught.value).endswith(f" is of {own}; set {HOW[own]} or leave it out")


def test_every_setting_that_says_it_is_of_a_mode_is_known_as_such() -> None:
    described = {
        f"federation.{key}": "gossip in virtual time" if field.description.startswith("events:") else "gossip"
        for key, field in FederationSection.model_fields.items()
        if re.search("^events:|gossip|neighbour|peers", field.description or "") and key != "mode" and field.description
    }
    assert described.items() <= MODE_OF.items()
    assert set(MODE_OF) == set(VALUES)


def test_defaults_may_be_written_out_in_any_mode() -> None:
    """As `fedgen init` and resolved.toml do."""
    written = FederationSection(mode="star").model_dump()
    assert Experiment(federation=written).identity == Experiment().identity


def test_several_settings_are_named_at_once() -> None:
    with pytest.raises(SettingError) as caught:
        Experiment(federation={"churn": 0.1, "loss": 0.2, "delay": [1, 2]})
    first, second = str(caught.value).splitlines()
    assert first.startswith("federation.loss = 0.2, federation.churn = 0.1 are of gossip; ")
    assert second.startswith("federation.delay = [1, 2] is of gossip in virtual time; ")


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"aggregation": {"f": 1}}, ["aggregation.f = 1, and mean withstands none"]),
        ({"aggregation": {"f": 1, "rule": "median"}}, []),
        ({"aggregation": {"f": 1, "wrappers": ["nnm"]}}, []),
        ({"aggregation": {"f": 1, "rule": "normalised_mean"}}, []),
        ({"byzantine": {"attack": "ipm"}}, ["byzantine.attack = 'ipm' and no Byzantine clients"]),
        ({"byzantine": {"attack": "ipm", "clients": [2]}}, []),
        ({"byzantine": {"clients": 2}}, []),
        (
            {"aggregation": {"f": 1, "wrappers": ["variance_correction"]}, "byzantine": {"attack": "alie"}},
            ["mean in variance_correction withstands none", "byzantine.attack = 'alie'"],
        ),
    ],
    ids=str,
)
def test_settings_that_say_nothing_are_noted(
    tables: dict[str, Any], told: list[str], tiny: Callable[..., Experiment]
) -> None:
    found = notes(Federation(tiny(**tables)))
    assert len(found) == len(told)
    assert all(fragment in note for fragment, note in zip(told, found, strict=True))


def test_notes_are_logged_as_events(tiny: Callable[..., Experiment], run_in: Callable[..., Result]) -> None:
    result = run_in(tiny(aggregation={"f": 1}))
    assert result.state == "completed"
    events = [each for each in read_lines(result.folder / "events.jsonl") if each["event"] == "note"]
    assert len(events) == 1
    assert "mean withstands none" in events[0]["reason"]
