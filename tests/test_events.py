"""Gossip in virtual time: letters, inboxes, paces; a recorded trace replays to the same bits; one hash."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgen import Experiment, Result, resume, run
from fedgen.clients.mail import Messages
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.server.pools.pool import Interrupt, SerialPool
from fedgen.server.rounds.post import MESSAGE, NONE, RECEIVER, SENDER, SENT, Post
from fedgen.server.rounds.session import Session
from fedgen.server.rounds.virtual_time import VirtualTime, _heard
from fedgen.server.store.checkpoint import Standing, load_newest
from fedgen.server.store.journal import Journal, read_lines
from fedgen.topology.graph import entries
from fedgen.topology.network import network_of

PEERS, TICKS = 12, 40
BASE: dict[str, dict[str, Any]] = {
    "data": {"clients": PEERS},
    "model": {"hidden": [8]},
    "training": {"steps": 1, "batch_size": 8, "block": 5, "optimizer": {"name": "sgd", "momentum": 0.5}},
    "federation": {"mode": "gossip", "rounds": TICKS, "evaluate_every": 20},
    "gossip": {"clock": "events"},
    "aggregation": {"slice": 64},
    "runtime": {"backend": "serial", "checkpoint_every": 100},
    "tracking": {"report": False},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "push": {},
    "pull": {"gossip": {"protocol": "pull"}, "virtual_time": {"delay": [0, 3], "training_ticks": [2, 5]}},
    "push_pull": {
        "gossip": {"protocol": "push_pull"},
        "virtual_time": {"delay": [1, 6], "training_ticks": [1, 4]},
        "faults": {"loss": 0.2},
    },
    "epidemic": {
        "gossip": {"topology": "epidemic"},
        "virtual_time": {"inbox": 0.5, "training_ticks": [1, 9]},
        "faults": {"churn": 0.02, "away": 7},
    },
}


def ticking(name: str = "push", **tables: dict[str, Any]) -> Experiment:
    variant = VARIANTS[name]
    base = {table: BASE.get(table, {}) | variant.get(table, {}) for table in BASE | variant}
    return Experiment(**{table: base.get(table, {}) | tables.get(table, {}) for table in base | tables})


CORRECTED = {"wrappers": ["variance_correction"]}
ROBUST = {"rule": "median", "f": 1, "slice": 64}


def records(result: Result) -> list[dict[str, Any]]:
    return read_lines(result.folder / "metrics.jsonl")


# Paces and inboxes.


def test_stragglers_train_less_often(run_in: Callable[..., Result]) -> None:
    slow_experiment = ticking(federation={"rounds": 120}, virtual_time={"stragglers": 0.25, "slowdown": 3.0})
    result = run_in(slow_experiment)
    newest = load_newest(result.folder)
    assert newest is not None
    trained, slow = newest[0].post["trained"], Federation(slow_experiment).stragglers
    assert slow.sum() == PEERS // 4
    assert trained[slow].max() < trained[~slow].min()
    assert trained[slow].double().mean() == pytest.approx(120 / 30, abs=1)


def test_old_letters_weigh_less() -> None:
    """Of two neighbours, the message of one is three ticks older: (1 + 3)^-1 against 1."""
    federation = Federation(ticking(virtual_time={"age_decay": 1.0}))
    weights = federation.network.mixing.weights(federation.network.graph(0))
    near = federation.network.graph(0).inbox(2)[:2]
    letters = np.array([[9, 2, near[0], 9, 0], [9, 2, near[1], 6, 1]])
    heard = _heard(federation, letters, weights, 2, tick=9)
    assert heard.toarray()[2].tolist() == [1.0, 0.25]
    assert heard.sum() == 1.25


def test_everybody_trains_at_its_own_pace_and_merges_when_all_neighbours_were_heard(
    run_in: Callable[..., Result],
) -> None:
    result = run_in(ticking(federation={"rounds": 200}))
    played = records(result)
    trained = sum(record["clients"]["admitted"] for record in played)
    assert trained / PEERS == pytest.approx(200 / 10, rel=0.1)
    assert all(record["clients"]["admitted"] == 0 for record in played[:8])
    merged = [record for record in played if record["merged"]]
    assert all(record["messages"] == 4 * record["merged"] for record in merged)
    assert sum(record["merged"] for record in played) > 0.6 * trained
    assert np.mean([record["staleness"] for record in merged]) < 12
    assert result.metrics["accuracy"] > 0


@given(seed=st.integers(0, 10_000), ticks=st.integers(1, 12))
def test_only_the_latest_letter_of_every_sender_waits(seed: int, ticks: int) -> None:
    generator = np.random.default_rng(seed)
    post = _post(generator, letters=60, ticks=12)
    after = post.delivered(ticks, np.zeros(PEERS, dtype=bool))
    waiting = after.letters[after.letters[:, 0] <= ticks]
    pairs = {(int(letter[RECEIVER]), int(letter[SENDER])): int(letter[SENT]) for letter in waiting}
    assert len(pairs) == len(waiting)
    for letter in post.letters[post.letters[:, 0] <= ticks]:
        assert pairs[int(letter[RECEIVER]), int(letter[SENDER])] >= letter[SENT]
    under_way = post.letters[post.letters[:, 0] > ticks]
    assert sorted(map(tuple, under_way.tolist())) == sorted(
        map(tuple, after.letters[after.letters[:, 0] > ticks].tolist())
    )


@given(seed=st.integers(0, 10_000))
def test_read_letters_take_their_messages_with_them(seed: int) -> None:
    generator = np.random.default_rng(seed)
    post = _post(generator, letters=30, ticks=5)
    read = generator.choice(30, 12, replace=False)
    after = post.without(read)
    assert len(after.letters) == 18
    kept = np.delete(post.letters, read, axis=0)
    assert torch.equal(after.messages.models[after.letters[:, MESSAGE]], post.messages.models[kept[:, MESSAGE]])
    wanted = set(kept[:, MESSAGE].tolist()) | set(post.latest[post.latest != NONE].tolist())
    assert len(after.messages.senders) == len(wanted)
    assert (after.latest == NONE).tolist() == (post.latest == NONE).tolist()
    held = post.latest != NONE
    assert torch.equal(after.messages.models[after.latest[held]], post.messages.models[post.latest[held]])


def test_letters_for_those_who_are_gone_are_lost() -> None:
    post = _post(np.random.default_rng(0), letters=40, ticks=1)
    gone = np.arange(PEERS) < 6
    after = post.delivered(0, gone)
    assert not gone[after.letters[:, RECEIVER]].any()


def _post(generator: np.random.Generator, letters: int, ticks: int) -> Post:
    held = np.stack(
        [
            generator.integers(0, ticks, letters),
            generator.integers(0, PEERS, letters),
            generator.integers(0, PEERS, letters),
            generator.integers(0, ticks, letters),
            generator.integers(0, 20, letters),
        ],
        axis=1,
    )
    messages = Messages(torch.randn(20, 3), np.arange(20) % PEERS, np.ones(20), {"length": torch.randn(20)})
    latest = np.where(np.arange(PEERS) < 4, generator.integers(0, 20, PEERS), NONE)
    return Post(np.zeros(PEERS, np.int64), np.zeros(PEERS, np.int64), latest, held, messages, torch.empty(PEERS, 0))


@given(seed=st.integers(0, 1000))
def test_entries_are_those_of_the_dense_matrix(seed: int) -> None:
    generator = np.random.default_rng(seed)
    weights = NETWORK
    rows, columns = generator.integers(0, PEERS, (2, 30))
    assert entries(weights, rows, columns).tolist() == weights.toarray()[rows, columns].tolist()
    assert entries(weights[:0], rows[:0], columns[:0]).tolist() == []


NETWORK = network_of(ticking()).matrix(0)


def test_a_pull_is_answered_and_nobody_is_sent_anything_unasked(run_in: Callable[..., Result]) -> None:
    """With one asker in a star, only the asker ever merges."""
    result = run_in(ticking("pull", federation={"rounds": 60}))
    assert sum(record["merged"] for record in records(result)) > PEERS


# Traces.


class Recorded(SerialPool):
    """Runs tasks, and keeps what went in and what came out."""

    def __init__(self, federation: Federation) -> None:
        super().__init__(federation, Interrupt())
        self.trace: list[tuple[Any, list[Any], Any, list[Any]]] = []

    def map(self, task: Callable[..., Any], items: Sequence[Any], shared: Any, keep: int = 0) -> Iterator[Any]:
        items, shared = deepcopy((list(items), shared))  # their memory is used again
        results = list(super().map(task, items, shared, keep))
        self.trace.append((task, items, shared, results))
        return iter(results)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_recorded_trace_replays_to_the_same_bits(
    variant: str, tmp_path: Path, fingerprint: Callable[[Any], str]
) -> None:
    """The core has no clock: another host that hands it the same blocks and inboxes gets the same models."""
    experiment = ticking(variant, aggregation=CORRECTED)
    federation = Federation(experiment)
    pool = Recorded(federation)
    session = Session(federation, pool, Standing(0, VirtualTime().initial_state(federation)), Journal(tmp_path))
    for _ in range(TICKS):
        VirtualTime().play_round(session, evaluate=False)
    session.journal.close()
    assert len(pool.trace) == 2 * TICKS
    other = Federation(experiment)
    for task, items, shared, results in reversed(pool.trace):
        for item, result in zip(items, results, strict=True):
            assert fingerprint(task(other, shared, item)) == fingerprint(result)


# One hash.


def hashes(result: Result) -> tuple[str, str | None]:
    assert result.state == "completed"
    return result.sha256, result.client_sha256


@pytest.mark.parametrize("aggregation", [CORRECTED, ROBUST], ids=["corrected", "median"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_runs_have_the_hash_of_whole_ones(variant: str, aggregation: dict[str, Any], tmp_path: Path) -> None:
    tables = {"aggregation": aggregation, "byzantine": {"attack": "sign_flip", "clients": 2}}
    experiment = ticking(variant, **tables)
    expected = hashes(run(experiment, tmp_path / "whole"))
    run(experiment.replace(federation={"rounds": 10}), tmp_path / "resumed")
    loaded = load_newest(tmp_path / "resumed")
    assert loaded is not None
    assert len(loaded[0].post["letters"]) > 0, "letters are under way"
    assert hashes(resume(tmp_path / "resumed", rounds=TICKS)) == expected


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_any_number_of_workers_has_the_hash_of_none(variant: str, workers: int, cluster: None, tmp_path: Path) -> None:
    experiment = ticking(variant, aggregation=CORRECTED)
    expected = hashes(run(experiment, tmp_path / "serial"))
    spread = experiment.replace(runtime={"backend": "ray", "workers": workers})
    assert hashes(run(spread, tmp_path / "ray")) == expected


# Lies and errors.


@pytest.mark.parametrize("attack", ["garbage", "ipm", "zeros"])
def test_liars_lie_in_virtual_time_too(attack: str, run_in: Callable[..., Result]) -> None:
    result = run_in(ticking(byzantine={"attack": attack, "clients": [3]}, aggregation=ROBUST))
    assert result.state == "completed"
    loaded = load_newest(result.folder)
    assert loaded is not None
    assert loaded[0].state["model"].isfinite().all()
    if attack == "garbage":
        rejected = [event for event in read_lines(result.folder / "events.jsonl") if event["event"] == "rejected"]
        assert {event["client"] for event in rejected} == {3}


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"gossip": {"clock": "events"}}, 'set federation.mode = "gossip"'),
        ({"virtual_time": {"training_ticks": [9, 3]}}, "virtual_time.training_ticks = .9, 3.: the first number"),
        ({"virtual_time": {"delay": [1, 0]}}, "virtual_time.delay = .1, 0.: the first number"),
        ({"faults": {"churn_rounds": [5, 4]}}, "faults.churn_rounds = .5, 4.: the first number"),
    ],
)
def test_impossible_clocks_are_refused(tables: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Experiment(**tables)
