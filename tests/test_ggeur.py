"""The method wrapper ggeur: its setup exchange, what clients train on, and one hash whoever computes it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedgen import Experiment, registry, resume, run
from fedgen.attacks.base import BaseAttack
from fedgen.contracts import Rows, Samples, View
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.geometry.heads import ridge
from fedgen.geometry.statistics import statistics_of
from fedgen.geometry.uploads import size_bytes
from fedgen.methods.ggeur import COUNTS, MEANS, PROTOTYPES, ROOTS, TRUSTED, Ggeur
from fedgen.methods.recall import Recall
from fedgen.server.report.page import write_report
from fedgen.server.run.loops import checked
from fedgen.server.store.checkpoint import load_newest
from fedgen.server.store.journal import read_lines

ROUNDS = 3


def experiment(ggeur: dict[str, Any] | None = None, **tables: dict[str, Any]) -> Experiment:
    """Eight clients with skewed digits, a linear model, blocks of three."""
    base: dict[str, dict[str, Any]] = {
        "data": {"clients": 8, "partition": {"name": "label_skew", "beta": 0.1}},
        "model": {"name": "logistic"},
        "training": {"block": 3, "wrappers": [{"name": "ggeur", "target": 30, **(ggeur or {})}]},
        "federation": {"rounds": ROUNDS, "cohort": 4},
        "runtime": {"backend": "serial", "checkpoint_every": 1},
        "tracking": {"report": False},
    }
    if tables.get("federation", {}).get("mode") == "gossip":
        base["federation"] = {"rounds": ROUNDS}
    return Experiment(**{name: base.get(name, {}) | tables.get(name, {}) for name in base | tables})


def state_after_setup(federation: Federation) -> dict[str, Tensor]:
    """The state of a server that has met every client, without a run."""
    from fedgen.server.pools.pool import Interrupt, SerialPool
    from fedgen.server.rounds.session import Session
    from fedgen.server.rounds.star import Star
    from fedgen.server.store.checkpoint import Standing

    state = federation.method.initial_state(0)
    session = Session(federation, SerialPool(federation, Interrupt()), Standing(-1, state), Quiet())  # type: ignore[arg-type]
    Star().play_round(session, evaluate=False)
    return session.standing.state


class Quiet:
    def event(self, *_: Any, **__: Any) -> None: ...


def all_statistics(federation: Federation, minimum: int) -> Any:
    """Of what clients hold, without the classes that they keep to themselves."""
    from fedgen.geometry.statistics import pooled

    x, y = federation.dataset.x.flatten(1), federation.dataset.y
    parts = [statistics_of(x[shard], y[shard], 10) for shard in federation.shards]
    return pooled(part.only(part.counts >= minimum) for part in parts)


UPLOADS: list[dict[str, Any]] = [
    {},
    {"upload": "second_moment"},
    {"precision": "float16"},
    {"upload": "low_rank", "rank": 64, "precision": "float32"},
    {"pooling": "bounded", "bound": 100.0},
    {"prototypes": 5, "mode": "code"},
]


@pytest.mark.parametrize("ggeur", UPLOADS, ids=str)
@pytest.mark.parametrize("minimum", [1, 8])
def test_the_server_knows_the_pool_of_all_clients(ggeur: dict[str, Any], minimum: int) -> None:
    federation = Federation(experiment({**ggeur, "minimum_count": minimum}))
    state, expected = state_after_setup(federation), all_statistics(federation, minimum)
    torch.testing.assert_close(state[COUNTS].double(), expected.counts)
    torch.testing.assert_close(state[MEANS].double(), expected.means, rtol=1e-3, atol=1e-3)
    blocks = [expected.with_shared().within().scaled(1 / float(expected.counts.sum())).dense()]
    if ggeur.get("upload") != "second_moment":
        blocks = [expected.covariance(label) for label in range(10)]
    for root, covariance in zip(state[ROOTS].double(), blocks, strict=True):
        torch.testing.assert_close(root.mT @ root, covariance, rtol=0, atol=2e-3)
    assert state[TRUSTED].tolist() == [1] * 8
    if "prototypes" in ggeur:
        shard = federation.shards[5]
        own = statistics_of(federation.dataset.x[shard].flatten(1), federation.dataset.y[shard], 10)
        sent = own.counts >= minimum
        torch.testing.assert_close(state[PROTOTYPES][5][sent].double(), own.means[sent], rtol=1e-6, atol=1e-6)
        assert state[PROTOTYPES][5][~sent].isnan().all()


FACTORISED: list[dict[str, Any]] = [
    *UPLOADS,
    {"upload": "second_moment", "precision": "float16"},
    {"upload": "low_rank", "precision": "float16", "rank": 4},
    {"precision": "float32"},
    {"epsilon": 50.0, "clip": 10.0},
]
MATRIX = ("eigh", "eigvalsh", "eig", "cholesky", "cholesky_ex", "svd", "qr", "ldl_factor", "lu_factor", "inv")


@pytest.fixture
def factorised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The factorisations that this process makes, by name."""
    calls: list[str] = []
    for name in MATRIX:
        whole = getattr(torch.linalg, name)

        def counted(*given: Any, name: str = name, whole: Any = whole, **more: Any) -> Any:
            calls.append(name)
            return whole(*given, **more)

        monkeypatch.setattr(torch.linalg, name, counted)
    return calls


@pytest.mark.parametrize("ggeur", FACTORISED, ids=str)
@pytest.mark.parametrize("mode", ["centred", "code", "paper"])
def test_one_factorisation_a_class_and_federation(
    ggeur: dict[str, Any], mode: str, tmp_path: Path, factorised: list[str]
) -> None:
    """In a whole run.  The axes of a low-rank upload are those of other matrices: a participant's own, once a class."""
    chosen = experiment({"minimum_count": 1, **ggeur, "mode": mode}, federation={"rounds": 2, "cohort": 4})
    assert run(chosen, tmp_path / "run").state == "completed"
    own = Federation(chosen).holdings.counts
    axes = int((own > 1).sum()) if ggeur.get("upload") == "low_rank" else 0
    assert len(factorised) == (1 if ggeur.get("upload") == "second_moment" else 10) + axes, factorised


@pytest.mark.parametrize("mode", ["centred", "paper"])
@pytest.mark.parametrize("clock", ["rounds", "events"])
def test_peers_share_that_factorisation(mode: str, clock: str, tmp_path: Path, factorised: list[str]) -> None:
    tables = {"federation": {"mode": "gossip", "rounds": 2}, "gossip": {"topology": "ring", "clock": clock}}
    run(experiment({"minimum_count": 1, "mode": mode}, **tables), tmp_path / "run")
    assert len(factorised) == 10


def test_a_class_below_the_minimum_leaves_no_trace_in_the_row() -> None:
    """Changing such samples changes nothing that is sent."""
    federation = Federation(experiment({"minimum_count": 8}))
    method = federation.method
    assert isinstance(method, Ggeur)
    broadcast = method.broadcast(method.initial_state(0), -1)
    block = federation.block(torch.arange(8), broadcast.start, {}, -1)
    rare = (
        torch.stack([torch.bincount(y[:count], minlength=10) for y, count in zip(block.y, block.counts, strict=True)])
        < 8
    )
    assert rare.any()
    assert not rare.all()
    rows = method.client_update(broadcast, block).rows
    changed = torch.where(rare.gather(1, block.y)[..., None, None, None], 9.0, block.x)
    other = replace(block, samples=Samples.of(changed, block.y))
    assert torch.equal(method.client_update(broadcast, other).rows, rows)


@pytest.mark.parametrize("mode", ["centred", "code", "paper"])
def test_clients_train_on_real_and_generated_samples(mode: str) -> None:
    federation = Federation(experiment({"mode": mode, "minimum_count": 1}))
    method, state = federation.method, state_after_setup(federation)
    assert isinstance(method, Ggeur)
    broadcast = method.broadcast(state, 0)
    block = federation.block(torch.tensor([6, 2]), broadcast.start, {}, 0)
    augmented = method.augmented(broadcast.tensors, block)
    for row in range(2):
        count, total = int(block.counts[row]), int(augmented.counts[row])
        assert torch.equal(augmented.x[row, :count], block.x[row, :count])
        held = torch.bincount(block.y[row, :count], minlength=10)
        filled = torch.bincount(augmented.y[row, :total], minlength=10)
        assert filled.tolist() == held.clamp_min(30).tolist()
        assert not augmented.x[row, total:].any()
    alone = method.augmented(broadcast.tensors, federation.block(torch.tensor([2]), broadcast.start, {}, 7))
    assert torch.equal(alone.x[0], augmented.x[1, : alone.longest]), "in any block and round the same samples"


def test_what_is_recalled_is_what_would_be_drawn() -> None:
    federation = Federation(experiment())
    method, state = federation.method, state_after_setup(federation)
    assert isinstance(method, Ggeur)
    broadcast = method.broadcast(state, 0)
    block = federation.block(torch.arange(3), broadcast.start, {}, 0)
    first, again = (method.augmentations(broadcast.tensors, block) for _ in range(2))
    assert all(one is other for one, other in zip(first, again, strict=True))
    fresh = Federation(experiment()).method
    assert isinstance(fresh, Ggeur)
    assert all(
        torch.equal(one.x, other.x)
        for one, other in zip(first, fresh.augmentations(broadcast.tensors, block), strict=True)
    )
    moved = {**broadcast.tensors, MEANS: broadcast.tensors[MEANS] + 1}
    assert not torch.equal(method.augmentations(moved, block)[0].x, first[0].x)


def test_the_oldest_is_forgotten_when_memory_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgen.methods.recall.MOST_BYTES", 100)
    from fedgen.geometry.sampler import Augmented

    recall, places = Recall(), torch.arange(2)
    made = [Augmented(torch.zeros(20, 1), torch.zeros(20), 2) for _ in range(4)]
    for client in (0, 1):
        assert recall.get(client, (), places, lambda client=client: made[client]) is made[client]
    assert recall.get(1, (), places, lambda: made[3]) is made[1]
    assert recall.get(0, (), places, lambda: made[2]) is made[2]


@pytest.mark.parametrize("start", ["ridge", "lda", "nearest_mean"])
def test_no_round_is_needed_for_a_head_in_closed_form(start: str, tmp_path: Path) -> None:
    chosen = experiment({"start": start, "minimum_count": 1}, federation={"rounds": 0})
    result = run(chosen, tmp_path / "run")
    assert (result.state, result.rounds) == ("completed", 0)
    assert result.metrics["accuracy"] > 0.85
    federation = Federation(chosen)
    if start == "ridge":
        head = ridge(all_statistics(federation, 1))
        scores = head(federation.dataset.test_x.flatten(1))
        right = (scores.argmax(1) == federation.dataset.test_y).double().mean()
        assert result.metrics["accuracy"] == pytest.approx(float(right))
    resumed = resume(tmp_path / "run", rounds=2)
    assert resumed.rounds == 2
    assert resumed.metrics["accuracy"] > 0.8


@pytest.mark.parametrize("start", ["ridge", "lda", "nearest_mean"])
def test_a_head_in_closed_form_does_not_depend_on_who_holds_what(start: str, tmp_path: Path) -> None:
    """Not by one test sample."""
    partitions = ["iid", {"name": "label_skew", "beta": 0.1}, {"name": "dirichlet", "alpha": 0.05}]
    accuracies = [
        run(
            experiment(
                {"start": start, "minimum_count": 1},
                data={"clients": clients, "partition": partition},
                federation={"rounds": 0, "cohort": 1},
            ),
            tmp_path / str(clients),
        ).metrics["accuracy"]
        for clients, partition in enumerate(partitions, start=5)
    ]
    assert len(set(accuracies)) == 1


@pytest.mark.parametrize("start", ["ridge", "lda", "nearest_mean", "none"])
def test_classes_that_nobody_holds_do_not_break_a_start(start: str, tmp_path: Path) -> None:
    chosen = experiment({"start": start, "minimum_count": 1000}, federation={"rounds": 1}, tracking={"report": True})
    result = run(chosen, tmp_path / "run")
    assert result.state == "completed"
    assert "Nothing was generated: no class reached minimum_count" in (result.folder / "report.html").read_text()


def test_noise_on_sums_is_refused_where_everybody_sees_the_rows() -> None:
    with pytest.raises(SettingError, match=r"runs in \['star'\], not in federation.mode = 'gossip'"):
        checked(experiment({"epsilon": 8.0, "clip": 10.0}, federation={"mode": "gossip"}, data={"clients": 8}))


def test_no_more_directions_are_sent_than_there_are() -> None:
    whole, beyond = (
        Federation(experiment({"upload": "low_rank", "precision": "float16", "rank": rank})).method
        for rank in (64, 9_999)
    )
    assert isinstance(whole, Ggeur)
    assert isinstance(beyond, Ggeur)
    assert size_bytes(beyond.encoding) == size_bytes(whole.encoding)


def test_bytes_of_the_setup_exchange_are_counted(tmp_path: Path) -> None:
    result = run(experiment({"upload": "second_moment", "precision": "float16"}), tmp_path / "run")
    first, second, third, _ = read_lines(result.folder / "metrics.jsonl")
    assert first["round"] == -1
    lasting = 4 * (10 + 10 * 64 + 64 * 64 + 1)
    model = 4 * 650
    assert (second["bytes"]["down"], third["bytes"]["down"]) == (8 * lasting + 4 * model, 4 * model)
    assert first["clients"]["admitted"] == 8
    columns = 2 * 10 + 10 + 10 * 64 + 1 + 64 * 65 // 2
    assert first["bytes"]["up"] == 8 * 2 * columns


def test_normalised_embeddings_have_length_one_everywhere() -> None:
    federation = Federation(experiment({"normalise": True, "minimum_count": 1}))
    method, state = federation.method, state_after_setup(federation)
    assert isinstance(method, Ggeur)
    broadcast = method.broadcast(state, 0)
    augmented = method.augmented(broadcast.tensors, federation.block(torch.arange(2), broadcast.start, {}, 0))
    lengths = augmented.x.flatten(2).norm(dim=2)[augmented.mask]
    torch.testing.assert_close(lengths, torch.ones_like(lengths))
    x, y = federation.dataset.test_x[:50], federation.dataset.test_y[:50]
    unit = x / x.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(method.evaluate(state, x, y)["loss"], method.inner.evaluate(state, unit, y)["loss"])


# Composition: attacks act on the statistics too.

BOUNDED = {"pooling": "bounded", "minimum_count": 1}


def test_liars_lie_in_the_setup_exchange_unless_they_start_later() -> None:
    clients = torch.arange(8)
    attackers = {"attack": "sign_flip", "clients": [3]}
    early, late = (Federation(experiment(byzantine={**attackers, "start": start})) for start in (0, 1))
    assert early.byzantine_among(clients, -1).tolist() == (clients == 3).tolist()
    assert not late.byzantine_among(clients, -1).any()
    assert not late.byzantine_among(clients, 0).any()


@pytest.mark.parametrize(
    "ggeur", [{}, {"precision": "float16"}, {"upload": "low_rank", "precision": "float32"}], ids=str
)
def test_a_lie_a_hundred_times_too_large_stays_out_of_a_bounded_pool(ggeur: dict[str, Any]) -> None:
    attack = {"attack": {"name": "scaling", "scale": 100.0}, "clients": [3]}
    honest = all_statistics(Federation(experiment()), 1)
    plain = state_after_setup(Federation(experiment({**ggeur, "minimum_count": 1}, byzantine=attack)))
    bounded = state_after_setup(Federation(experiment({**ggeur, **BOUNDED}, byzantine=attack)))
    damage, left = ((state[MEANS] - honest.means).norm() / honest.means.norm() for state in (plain, bounded))
    print(float(damage), float(left))
    assert left < 0.5 * damage


def test_a_bounded_prototype_is_no_longer_than_others() -> None:
    """It is the centre of samples at every other client."""
    attack = {"attack": {"name": "scaling", "scale": 100.0}, "clients": [3]}
    settings = {"precision": "float32", "prototypes": 4, "mode": "code"}
    lengths = {}
    for name, ggeur in {"plain": {"minimum_count": 1}, "bounded": BOUNDED}.items():
        prototypes = state_after_setup(Federation(experiment({**settings, **ggeur}, byzantine=attack)))[PROTOTYPES]
        found = prototypes.norm(dim=2)
        lengths[name] = float(found[3].nan_to_num(0).max() / found[[0, 1, 2, 4]].nanmedian())
    assert lengths["plain"] > 50
    assert lengths["bounded"] <= 3.5


@pytest.mark.parametrize("attack", registry.members("attack"))
def test_every_attack_meets_every_exchange(attack: str, tmp_path: Path) -> None:
    """Under the mean of admitted statistics as under the bounded pool; a run may end degraded, never fail."""
    for name, ggeur in {"sum": {}, "gather": BOUNDED}.items():
        chosen = experiment(
            ggeur, byzantine={"attack": attack, "clients": [1, 5]}, federation={"rounds": 2, "cohort": 8}
        )
        assert run(chosen, tmp_path / name).state == "completed"


# One hash.

COMPOSED: dict[str, Callable[..., Experiment]] = {
    "sum": lambda **runtime: experiment({"start": "lda"}, runtime=runtime),
    "gather": lambda **runtime: experiment({"prototypes": 4, "precision": "float16", "mode": "paper"}, runtime=runtime),
    "flag under ipm": lambda **runtime: experiment(
        BOUNDED,
        aggregation={"rule": "flag", "f": 1},
        byzantine={"attack": "ipm", "clients": [2]},
        runtime=runtime,
    ),
    "gossip": lambda **runtime: experiment(
        {"mode": "code", "minimum_count": 1},
        federation={"rounds": ROUNDS, "mode": "gossip"},
        gossip={"topology": {"name": "ring"}},
        runtime=runtime,
    ),
    "gossip in ticks": lambda **runtime: experiment(
        {"minimum_count": 1},
        federation={"rounds": ROUNDS, "mode": "gossip"},
        gossip={"topology": {"name": "ring"}, "clock": "events"},
        runtime=runtime,
    ),
    "trimmed mean under ipm": lambda **runtime: experiment(
        {},
        aggregation={"rule": "trimmed_mean", "f": 1},
        byzantine={"attack": "ipm", "clients": [2]},
        federation={"rounds": ROUNDS, "cohort": 5, "server_optimizer": {"name": "adam"}},
        runtime=runtime,
    ),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_serial_and_resumed_have_one_hash(name: str, tmp_path: Path) -> None:
    make = COMPOSED[name]
    whole = run(make(backend="serial"), tmp_path / "whole")
    run(make(backend="serial").replace(federation={"rounds": 1}), tmp_path / "resumed")
    assert resume(tmp_path / "resumed", rounds=ROUNDS).sha256 == whole.sha256


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    from fedgen.server.pools.ray_cluster import connect

    connection = connect(None, 2)
    yield
    connection.leave()


QUICK = {("flag under ipm", 2)}
CASES = [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in product(COMPOSED, (1, 2))]


@pytest.mark.parametrize(("name", "workers"), CASES)
def test_workers_have_the_hash_of_none(cluster: None, name: str, workers: int, tmp_path: Path) -> None:
    expected = run(COMPOSED[name](backend="serial"), tmp_path / "serial")
    assert run(COMPOSED[name](backend="ray", workers=workers), tmp_path / "ray").sha256 == expected.sha256


def test_statistics_are_flooded_in_gossip(tmp_path: Path) -> None:
    """Every peer's row crosses every edge of the ring in both directions: 8 x 16 messages; then all know the same."""
    ring = {"federation": {"rounds": 2, "mode": "gossip"}, "gossip": {"topology": "ring"}}
    result = run(experiment({"minimum_count": 1, "start": "lda"}, **ring), tmp_path / "run")
    first, *_, last = read_lines(result.folder / "metrics.jsonl")
    width = 10 * (1 + 64 + 64 * 65 // 2)
    assert (first["round"], first["messages"], first["bytes"]["up"]) == (-1, 128, 128 * 8 * width)
    assert last["metrics"]["worst_accuracy"] > 0.8
    state = load_newest(result.folder)[0].state  # type: ignore[index]
    assert (state[ROOTS].shape, state["model"].shape) == ((10, 64, 64), (8, 650)), "one geometry for all peers"
    star = run(experiment({"minimum_count": 1, "start": "lda"}, federation={"rounds": 0}), tmp_path / "star")
    assert star.metrics["accuracy"] > 0.8


PICTURES = {"augmentation", "augmentation-distance", "augmentation-samples", "augmentation-shapes"}
EXHIBITS = [
    *("augmentation-words", "augmentation", "augmentation-distance", "augmentation-shapes"),
    *("augmentation-shapes-words", "augmentation-samples", "augmentation-table"),
]


def exhibits(folder: Path) -> dict[str, dict[str, Any]]:
    """What the method shows, by name; all of it after the exchange of statistics."""
    lines = read_lines(folder / "exhibits.jsonl")
    assert {(line["round"], line["by"]) for line in lines} == {(-1, "method")}
    assert len(lines) == len({line["name"] for line in lines})
    return {line["name"]: line for line in lines}


def test_a_report_tells_what_was_generated(tmp_path: Path) -> None:
    """Counts, distances, bytes and pictures; inside another wrapper too, and again from the folder alone."""
    wrappers = [{"name": "ggeur", "target": 30, "minimum_count": 1}, "worker_momentum"]
    chosen = experiment(training={"block": 3, "wrappers": wrappers}, tracking={"report": True})
    folder = run(chosen, tmp_path / "run").folder
    shown = exhibits(folder)
    assert list(shown) == EXHIBITS, "once, in the order of the report"
    panels = shown["augmentation"]["panels"]
    before, after = torch.tensor(panels["before"]).long().mT, torch.tensor(panels["after"]).long().mT
    assert torch.equal(before, Federation(chosen).holdings.counts)
    assert torch.equal(after, before.clamp_min(30))
    means = [sum(curve["y"]) / 8 for curve in shown["augmentation-distance"]["curves"]]
    assert means[1] < means[0]
    assert means[3] < means[2]
    words = shown["augmentation-words"]["text"]
    assert "172 kB of statistics" in words, 8 * 10 * (1 + 64 + 64 * 65 // 2)
    assert [f"{mean:.2f}" in words for mean in means] == [True] * 4
    alike = re.findall(r"by (0\.\d+)", shown["augmentation-shapes-words"]["text"])
    assert alike[0] > alike[1]
    page = (folder / "report.html").read_text()
    for words in ("Generated samples", f"{int(before[2, 3])} → 30", "Shapes of one class", "172 kB of statistics"):
        assert words in page
    assert {path.stem for path in (folder / "figures").iterdir()} >= PICTURES
    (folder / "report.html").unlink()
    assert write_report(folder).read_text() == page


def test_the_report_of_a_gossip_says_how_statistics_travel(tmp_path: Path) -> None:
    ring = {"federation": {"rounds": 1, "mode": "gossip"}, "gossip": {"topology": "ring"}}
    page = (run(experiment(**ring, tracking={"report": True}), tmp_path / "run").folder / "report.html").read_text()
    assert "The statistics of every peer, 172 kB, were passed on from neighbour to neighbour until all had them" in page
    assert "Every client sent" not in page


@pytest.mark.data("office_caltech10/mobilenetv1_pw12.npz")
def test_shapes_are_compared_between_domains_where_there_are_some(data_dir: Path, tmp_path: Path) -> None:
    """Eight clients of four domains; classes have names in the pictures."""
    office = {"dataset": "office_caltech10", "partition": "domains", "clients": 8}
    chosen = experiment(data=office, federation={"rounds": 0}, tracking={"report": True})
    folder = run(chosen, tmp_path / "run").folder
    shapes = exhibits(folder)["augmentation-shapes"]
    assert shapes["row_names"] == shapes["column_names"] == ["amazon", "caltech10", "dslr", "webcam"]
    assert len(shapes["panels"][""]) == 4
    pictures = {name: (folder / "figures" / f"{name}.svg").read_text() for name in PICTURES}
    assert "webcam" in pictures["augmentation-shapes"]
    assert all("headphones" in pictures[name] for name in ("augmentation", "augmentation-samples"))
    assert "Shapes of one class in different domains agree by" in (folder / "report.html").read_text()


def test_settings_that_do_not_fit_are_explained() -> None:
    with pytest.raises(
        SettingError, match=r"start = 'ridge' is a linear head of 64 features.*model\.name = \"logistic\""
    ):
        Federation(experiment({"start": "ridge"}, model={"name": "mlp"}))
    with pytest.raises(SettingError, match="target has 3 numbers for 10 classes"):
        Federation(experiment({"target": [1, 2, 3]}))
    with pytest.raises(SettingError, match=r"federation\.rounds = 0 plays setup exchanges only"):
        checked(experiment(training={"wrappers": []}, federation={"rounds": 0}))


def test_what_is_no_model_has_a_reference_of_zeros(registered: Callable[..., Any], tmp_path: Path) -> None:
    """Row-wise attacks see one of the row's size in every exchange."""
    seen: list[tuple[int, int, bool]] = []

    @registered("attack", "curious")
    @dataclass(frozen=True, kw_only=True)
    class Curious(BaseAttack):
        """Looks at the reference."""

        def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, dict[str, Tensor]]:
            seen.append(
                (view.context.round, len(view.context.reference) - rows.size, bool(view.context.reference.any()))
            )
            return rows, view.weights, view.memory

    chosen = experiment(byzantine={"attack": "curious", "clients": [0, 1]}, federation={"rounds": 1, "cohort": 8})
    assert run(chosen, tmp_path / "run").state == "completed"
    assert set(seen) == {(-1, 0, False), (0, 0, True)}


@pytest.mark.data("office_caltech10/mobilenetv1_pw12.npz")
def test_the_tiny_benchmark_prints_a_table(data_dir: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.ggeur", "--tiny", "rounds"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| Office LDS, beta .1 |" in done.stdout


def test_many_clients_are_not_all_generated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedgen.methods.ggeur.MOST_CLIENTS", 3)
    folder = run(experiment(federation={"rounds": 1}, tracking={"report": True}), tmp_path / "run").folder
    assert len(exhibits(folder)["augmentation-table"]["rows"]) == 3
    assert "Of the first 3 of 8 clients, " in (folder / "report.html").read_text()
