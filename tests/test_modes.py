"""Settings of another mode or clock are refused; settings that say nothing are told in notes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from fedgen.config import Experiment, FaultsSection, FederationSection, GossipSection, VirtualTimeSection
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.modes import HOW, OF_MODE
from fedgen.notes import notes
from fedgen.server.run.start import Result
from fedgen.server.store.journal import read_lines

VALUES: dict[str, Any] = {
    "federation.cohort": 7,
    "gossip.clock": "events",
    "gossip.topology": {"degree": 6},
    "gossip.mixing": "metropolis_hastings",
    "gossip.keep": 0.3,
    "gossip.protocol": "pull",
    "faults.loss": 0.1,
    "faults.churn": 0.1,
    "faults.churn_rounds": [0, 3],
    "faults.away": 5,
    "gossip.seed_agreement": True,
    "byzantine.per_neighbour": True,
    "virtual_time.training_ticks": [1, 2],
    "virtual_time.stragglers": 0.2,
    "virtual_time.slowdown": 2.0,
    "virtual_time.delay": [0, 2],
    "virtual_time.inbox": 0.5,
    "virtual_time.age_decay": 1.0,
}
TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "a star": {},
    "gossip": {"federation": {"mode": "gossip"}},
    "gossip in virtual time": {"federation": {"mode": "gossip"}, "gossip": {"clock": "events"}},
}
MODE_OF = {path: mode for mode, paths in OF_MODE.items() for path in paths}


def experiment_in(mode: str, **values: Any) -> Experiment:
    """values: by path, with __ for the dot."""
    tables = {name: dict(keys) for name, keys in TABLES[mode].items()}
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


def test_every_setting_of_a_table_of_one_mode_is_known_as_such() -> None:
    expected = {
        **{f"gossip.{key}": "gossip" for key in GossipSection.model_fields},
        **{f"faults.{key}": "gossip" for key in FaultsSection.model_fields},
        **{f"virtual_time.{key}": "gossip in virtual time" for key in VirtualTimeSection.model_fields},
        "federation.cohort": "a star",
        "byzantine.per_neighbour": "gossip",
    }
    assert expected == MODE_OF
    assert set(MODE_OF) == set(VALUES)


def test_nothing_in_the_table_of_all_modes_speaks_of_peers() -> None:
    described = {key: field.description or "" for key, field in FederationSection.model_fields.items()}
    assert {key for key, words in described.items() if re.search("gossip|neighbour|peer", words)} == {"mode"}


def test_defaults_may_be_written_out_in_any_mode() -> None:
    """As `fedgen init` and resolved.toml do."""
    written = Experiment().model_dump()
    assert written["gossip"]
    assert Experiment(**written).identity == Experiment().identity


def test_several_settings_are_named_at_once() -> None:
    with pytest.raises(SettingError) as caught:
        Experiment(faults={"churn": 0.1, "loss": 0.2}, virtual_time={"delay": [1, 2]})
    first, second = str(caught.value).splitlines()
    assert first.startswith("faults.loss = 0.2, faults.churn = 0.1 are of gossip; ")
    assert second.startswith("virtual_time.delay = [1, 2] is of gossip in virtual time; ")


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"aggregation": {"f": 1}}, ["aggregation.f = 1, and mean tolerates no Byzantine client"]),
        ({"aggregation": {"f": 1, "rule": "median"}}, []),
        ({"aggregation": {"f": 1, "wrappers": ["nnm"]}}, []),
        ({"aggregation": {"f": 1, "rule": "normalised_mean"}}, []),
        ({"byzantine": {"attack": "ipm"}}, ["byzantine.attack = 'ipm' and byzantine.clients = 0"]),
        ({"byzantine": {"attack": "ipm", "clients": [2]}}, []),
        ({"byzantine": {"clients": 2}}, []),
        ({"byzantine": {"redraw": True}}, ["byzantine.redraw = true and byzantine.clients = 0"]),
        ({"byzantine": {"redraw": True, "clients": 1}}, []),
        ({"byzantine": {"attack": "ipm", "clients": 2, "start": 2}}, ["the last round is 1, so no client attacks"]),
        ({"byzantine": {"attack": "ipm", "clients": 2, "start": 1}}, []),
        (
            {"aggregation": {"f": 1, "wrappers": ["variance_correction"]}, "byzantine": {"attack": "alie"}},
            ["mean in variance_correction tolerates no", "byzantine.attack = 'alie'"],
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
    assert "mean tolerates no Byzantine client" in events[0]["reason"]
