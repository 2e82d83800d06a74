"""Data sets, how they are divided, and what a worker rebuilds from them."""

from __future__ import annotations

import gc
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen import registry
from fedgen.config import Experiment
from fedgen.data.banking77 import Banking77
from fedgen.data.dataset import Dataset
from fedgen.data.digits import Digits
from fedgen.data.mnist import Mnist
from fedgen.data.office_caltech10 import OfficeCaltech10
from fedgen.data.partition import ClassesPerClient, Dirichlet
from fedgen.data.skewed import Domains, LabelSkew
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.server.run.result import Result

PARTITIONS = [name for name in registry.members("partition") if name not in ("domains", "natural")]
"""Of any labels; the others divide by something else."""


@st.composite
def labels_and_clients(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], int]:
    samples, classes = draw(st.integers(1, 80)), draw(st.integers(1, 5))
    clients = draw(st.one_of(st.integers(1, samples), st.just(samples)))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=samples, max_size=samples))
    return np.array(labels, np.int64), clients


@pytest.mark.parametrize("name", PARTITIONS)
@given(labels_and_clients(), st.integers(0, 99))
@settings(max_examples=40)
def test_partitions_are_disjoint_and_cover_everything(
    name: str, given_: tuple[np.ndarray[Any, Any], int], seed: int
) -> None:
    labels, clients = given_
    before = labels.copy()
    enough = {"per_client": 5} if name == "classes" else {}
    partition = registry.build("partition", name, enough)
    shards = partition.split(labels, clients, np.random.default_rng(seed))
    assert len(shards) == clients
    assert all(shard.dtype == np.int64 and len(shard) for shard in shards)
    assert all((np.diff(shard) > 0).all() for shard in shards), "a shard is sorted and holds no sample twice"
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(labels)))
    assert (labels == before).all()
    again = partition.split(labels, clients, np.random.default_rng(seed))
    assert all((one == other).all() for one, other in zip(shards, again, strict=True))


@pytest.mark.parametrize("name", PARTITIONS)
def test_another_generator_divides_differently(name: str) -> None:
    labels, partition = np.arange(300) % 10, registry.build("partition", name, {})
    first, second = (partition.split(labels, 7, np.random.default_rng(seed)) for seed in (0, 1))
    assert any(one.tolist() != other.tolist() for one, other in zip(first, second, strict=True))


def largest_class_share(alpha: float) -> float:
    """Share of a client's commonest class, averaged over samples, clients and three draws."""
    labels, shares = np.arange(3000) % 10, []
    for seed in range(3):
        for shard in Dirichlet(alpha=alpha).split(labels, 20, np.random.default_rng(seed)):
            shares.append(np.bincount(labels[shard]).max() / len(labels) / 3)
    return float(np.sum(shares))


def test_dirichlet_skew_grows_as_alpha_falls() -> None:
    """Ten equal classes: the commonest class of a client has a share of 1/10 without skew and of 1 at the utmost."""
    shares = [largest_class_share(alpha) for alpha in (1000.0, 10.0, 1.0, 0.3, 0.05)]
    assert shares == sorted(shares)
    assert shares[0] < 0.15
    assert shares[-1] > 0.6
    assert all(after - before > 0.02 for before, after in pairwise(shares))


@given(st.integers(1, 12), st.integers(1, 8), st.sampled_from([0.01, 0.3, 10.0]), st.integers(0, 20))
@settings(max_examples=40)
def test_dirichlet_gives_every_client_its_minimum_where_there_is_enough(
    minimum: int, clients: int, alpha: float, seed: int
) -> None:
    labels, partition = np.arange(48) % 3, Dirichlet(alpha=alpha, minimum=minimum)
    if minimum > 1 and minimum * clients > 48:
        with pytest.raises(SettingError, match=r"data.partition.minimum"):
            partition.split(labels, clients, np.random.default_rng(seed))
    else:
        assert min(map(len, partition.split(labels, clients, np.random.default_rng(seed)))) >= minimum


def test_dirichlet_of_infinite_alpha_is_even() -> None:
    shards = Dirichlet(alpha=float("inf")).split(np.arange(100) % 5, 10, np.random.default_rng(0))
    assert max(map(len, shards)) <= 20


def test_digits_has_the_test_set_that_published_figures_use() -> None:
    """1,797 images of which 20 %, rounded up, are 360; stratified: every class within one image of its fifth."""
    digits = Digits().load(Path("/nowhere"))
    assert (len(digits.y), len(digits.test_y)) == (1437, 360)
    assert digits.input_shape == (1, 8, 8)
    assert digits.x.dtype == torch.float32
    assert digits.y.dtype == torch.int64
    assert (digits.x.min(), digits.x.max()) == (0, 1)
    held = torch.bincount(digits.test_y, minlength=10)
    every = held + torch.bincount(digits.y, minlength=10)
    assert every.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert ((held - every / 5).abs() < 1).all()


def test_digits_is_the_same_whatever_the_seed(tiny: Callable[..., Experiment]) -> None:
    first, second = (Federation(tiny(experiment={"seed": seed})) for seed in (1, 2))
    assert first.dataset.sha256 == second.dataset.sha256
    assert not torch.equal(first.validation, second.validation)


@pytest.mark.data("mnist/mnist.npz")
def test_mnist_holds_what_its_source_says(data_dir: Path) -> None:
    """Class counts of the training set and mean 33.3184 of 0 .. 255 are those of the data directory's SOURCE.md."""
    mnist = Mnist().load(data_dir)
    assert (len(mnist.y), len(mnist.test_y)) == (60_000, 10_000)
    assert mnist.input_shape == (1, 28, 28)
    assert torch.bincount(mnist.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.x.double().mean() * 255 == pytest.approx(33.3184, abs=1e-3)
    assert (mnist.x.min(), mnist.x.max()) == (0, 1)
    assert (mnist.y.diff() >= 0).all(), "canonical order begins with the class"


@pytest.mark.data("mnist/mnist.npz")
def test_mnist_does_not_depend_on_the_order_of_its_file(data_dir: Path, tmp_path: Path) -> None:
    with np.load(data_dir / "mnist" / "mnist.npz") as file:
        arrays = dict(file)
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        order = generator.permutation(len(arrays[f"y_{part}"]))
        arrays |= {f"{axis}_{part}": arrays[f"{axis}_{part}"][order] for axis in "xy"}
    (tmp_path / "mnist").mkdir()
    np.savez(tmp_path / "mnist" / "mnist.npz", **arrays)
    assert Mnist().load(tmp_path).sha256 == Mnist().load(data_dir).sha256


@pytest.mark.data("office_caltech10/mobilenetv1_pw12.npz")
def test_office_is_cut_as_published(data_dir: Path) -> None:
    """Seventy percent of 958, 1123, 157 and 295; the generator draws the skew's shares before it shuffles."""
    office = OfficeCaltech10(seed=1, beta=0.1).load(data_dir)
    assert torch.bincount(office.domain).tolist() == [670, 786, 109, 206]  # type: ignore[arg-type]
    assert torch.bincount(office.test_domain).tolist() == [288, 337, 48, 89]  # type: ignore[arg-type]
    assert office.x.norm(dim=1).mean() == pytest.approx(10, rel=1e-5)
    assert office.input_shape == (512,)
    assert not torch.equal(OfficeCaltech10(seed=1).load(data_dir).y, office.y)
    raw = OfficeCaltech10(features=1024).load(data_dir)
    cosines = torch.nn.functional.cosine_similarity(raw.x[:50, None], raw.x[None, :50], dim=-1)
    with np.load(data_dir / "office_caltech10" / "mobilenetv1_pw12.npz") as file:
        generator, first = np.random.default_rng(0), np.flatnonzero(file["domain"] == 0)
        own = torch.from_numpy(file["x"][generator.permutation(first)[:50]].astype(np.float32))
    expected = torch.nn.functional.cosine_similarity(own[:, None], own[None], dim=-1)
    torch.testing.assert_close(cosines, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.data("office_caltech10/mobilenetv1_pw12.npz")
def test_accuracy_is_reported_domain_by_domain(data_dir: Path, run_in: Callable[..., Result]) -> None:
    """The clients of seed 1 hold 35, 235, 39 and 65 samples; the mean of the domains is no mean of samples."""
    experiment = Experiment(
        data={
            "dataset": {"name": "office_caltech10", "seed": 1, "beta": 0.1},
            "partition": {"name": "domains", "beta": 0.1, "seed": 1},
            "clients": 4,
            "validation": 0.0,
        },
        model={"name": "logistic"},
        federation={"rounds": 1, "cohort": 4},
        runtime={"backend": "serial"},
        tracking={"report": False},
    )
    assert Federation(experiment).counts.tolist() == [35, 235, 39, 65]
    metrics = run_in(experiment).metrics
    each = [metrics[f"{name}_accuracy"] for name in ("amazon", "caltech10", "dslr", "webcam")]
    assert metrics["domain_accuracy"] == pytest.approx(np.mean(each))
    assert metrics["accuracy"] == pytest.approx(np.average(each, weights=[288, 337, 48, 89]))
    validated = run_in(experiment.replace(data={"validation": 0.2}), "validated").metrics
    assert 0 <= validated["validation_domain_accuracy"] <= 1


@pytest.mark.data("banking77/minilm.npz")
def test_banking77_holds_what_its_source_says(data_dir: Path) -> None:
    banking = Banking77().load(data_dir)
    assert (tuple(banking.x.shape), tuple(banking.test_x.shape)) == ((10_003, 384), (3_080, 384))
    assert len(set(banking.y.tolist())) == len(banking.classes) == 77
    torch.testing.assert_close(banking.x.norm(dim=1), torch.full((10_003,), 10.0), rtol=1e-3, atol=0)


def test_damaged_embeddings_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "banking77").mkdir()
    (tmp_path / "banking77" / "minilm.npz").write_bytes(b"PK damaged")
    with pytest.raises(SettingError, match=r"runtime\.data_dir: .*minilm\.npz cannot be read .*x_train"):
        Banking77().load(tmp_path)


def test_label_skew_spares_nobody_and_follows_its_own_seed() -> None:
    """Of a class of 100: one each, then round(p_k 90) of the others, the last client what is left."""
    labels, partition = np.arange(300) % 3, LabelSkew(beta=0.1, seed=5)
    shards = partition.split(labels, 10, np.random.default_rng(0))
    assert all(len(set(labels[shard])) == 3 for shard in shards)
    generator = np.random.default_rng(5)
    generator.permutation(100)
    first = np.round(generator.dirichlet([0.1] * 10) * 90)
    held = [int((labels[shard] == 0).sum()) - 1 for shard in shards]
    assert held[:9] == first[:9].tolist()


def test_domains_take_their_shares_of_every_class() -> None:
    labels, domain = np.arange(240) % 3, np.arange(240) // 120
    shares = np.random.default_rng(7).dirichlet([0.5] * 4, 3).T
    shards = Domains(beta=0.5, seed=7).split(labels, 4, np.random.default_rng(0), domain)
    for client, shard in enumerate(shards):
        assert set(domain[shard]) <= {client % 2}
        assert np.bincount(labels[shard], minlength=3).tolist() == (shares[client] * 40).astype(int).tolist()
    everything = np.concatenate(shards)
    assert len(set(everything.tolist())) == len(everything)
    even = Domains().split(labels, 4, np.random.default_rng(0), domain)
    assert [len(shard) for shard in even] == [60] * 4


def test_domains_need_domains_and_a_client_for_each() -> None:
    with pytest.raises(SettingError, match="needs a data set with domains"):
        Domains().split(np.zeros(4, np.int64), 2, np.random.default_rng(0))
    with pytest.raises(SettingError, match=r"data\.clients = 1 is less than the 2 domains"):
        Domains().split(np.zeros(4, np.int64), 1, np.random.default_rng(0), np.arange(4) % 2)


def small_mnist(count: int = 12) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 28, 28), np.uint8)
    return {"x_train": images, "y_train": np.arange(count) % 10, "x_test": images[:3], "y_test": np.arange(3)}


def write_mnist(folder: Path, arrays: dict[str, Any]) -> Path:
    path = folder / "mnist" / "mnist.npz"
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
    return path


def test_canonical_order_of_a_small_file(tmp_path: Path) -> None:
    """Two images of class 0 and one of class 1: class first, then the smaller first pixel that differs."""
    images = np.zeros((3, 28, 28), np.uint8)
    images[0, 0, 1], images[1, 0, 0], images[2, 27, 27] = 255, 1, 9
    arrays = {"x_train": images, "y_train": np.array([0, 1, 0]), "x_test": images[:1], "y_test": np.array([4])}
    write_mnist(tmp_path, arrays)
    mnist = Mnist().load(tmp_path)
    assert mnist.y.tolist() == [0, 0, 1]
    assert (mnist.x[:, 0] * 255).round().to(torch.uint8).tolist() == images[[2, 0, 1]].tolist()


def test_mnist_from_openml_is_the_file_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenML has 70,000 rows of 784 numbers and labels as text, training first; the file is written for next time."""
    images, labels = np.zeros((70_000, 784), np.uint8), (np.arange(70_000) % 10).astype(str).astype(object)
    images[:, 300:310] = np.random.default_rng(0).integers(0, 256, (70_000, 10))
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *_, **__: (images, labels))
    fetched = Mnist().load(tmp_path)
    assert (len(fetched.y), len(fetched.test_y)) == (60_000, 10_000)
    monkeypatch.setattr("sklearn.datasets.fetch_openml", no_network)
    assert Mnist().load(tmp_path).sha256 == fetched.sha256


def no_network(*_: Any, **__: Any) -> Any:
    raise OSError("no network")


def test_missing_mnist_names_the_setting_and_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sklearn.datasets.fetch_openml", no_network)
    with pytest.raises(SettingError, match=r"runtime\.data_dir.*mnist\.npz.*no network.*FEDGEN_DATA_DIR"):
        Mnist().load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def one_array() -> bytes:
    buffer = BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


BROKEN_FILES: dict[str, Callable[[Path], Any]] = {
    "junk": lambda path: path.write_bytes(b"no archive at all"),
    "an array missing": lambda path: np.savez(path, x_train=np.zeros(3)),
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "a single array": lambda path: path.write_bytes(one_array()),
    "other images": lambda path: np.savez(path, **small_mnist() | {"x_train": np.zeros((12, 32, 32), np.uint8)}),
    "fewer labels": lambda path: np.savez(path, **small_mnist() | {"y_train": np.zeros(5)}),
}


@pytest.mark.parametrize(
    "damage",
    [*BROKEN_FILES],
)
def test_a_file_that_is_no_mnist_is_an_error_for_people(damage: str, tmp_path: Path) -> None:
    path = write_mnist(tmp_path, small_mnist())
    BROKEN_FILES[damage](path)
    assert re.match(r"SettingError: runtime\.data_dir.*mnist\.npz", trouble_with(tmp_path))


def trouble_with(folder: Path) -> str:
    """What loading raises; numpy leaves the file of a broken archive open, which must not trouble later tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            Mnist().load(folder)
            said = "nothing"
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        gc.collect()
    return said


def test_a_data_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    answer = np.zeros((70_000, 784), np.uint8), np.zeros(70_000, np.int64)
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *_, **__: answer)
    with pytest.raises(SettingError, match=r"runtime\.data_dir"):
        Mnist().load(tmp_path / "file")


def pair(**changes: Any) -> Dataset:
    """Four samples of two features in two classes."""
    x = torch.arange(8.0).reshape(4, 2)
    fields = {"x": x, "y": torch.tensor([0, 1, 0, 1]), "test_x": x[:2], "test_y": torch.tensor([0, 1])} | changes
    return Dataset(name="pair", classes=("a", "b"), **fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x": torch.tensor([[0, 0], [0, float("nan")], [0, 0], [float("inf"), 0]])},
            "training .*NaN.*: 2, the first is sample 1;",
        ),
        (
            {"test_x": torch.full((2, 2), float("-inf"))},
            "test samples that hold NaN .*: 2, the first is sample 0; remove or fill",
        ),
        ({"y": torch.tensor([0, 1, 2, 1])}, "training labels run from 0 to 2, expected 0 to 1 for 2 classes"),
        ({"test_y": torch.tensor([-1, 1])}, "test labels run from -1 to 1, expected 0 to 1"),
        ({"y": torch.tensor([0, 1])}, "training has 4 samples and 2 labels"),
        (
            {"domain": torch.tensor([0, 1, 2, 1]), "domains": ("p", "q")},
            "every training sample needs a domain from 0 to 1",
        ),
        ({"test_x": torch.zeros(0, 2), "test_y": torch.zeros(0, dtype=torch.int64)}, "test has 0 samples and 0 labels"),
    ],
    ids=["NaN", "infinite", "label too large", "negative label", "labels missing", "domain unknown", "no samples"],
)
def test_broken_data_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=f"data.dataset 'pair': .*{message}"):
        pair(**changes)


def test_standardised_by_hand() -> None:
    """Training feature 0, 2, 4, 6: mean 3, deviation sqrt 5; a constant feature is only centred; test data follows."""
    x = torch.tensor([[0.0, 7.0], [2.0, 7.0], [4.0, 7.0], [6.0, 7.0]])
    data = pair(x=x, test_x=torch.tensor([[3.0, 8.0], [8.0, 7.0]])).standardised()
    root = 5**0.5
    torch.testing.assert_close(data.x[:, 0], torch.tensor([-3 / root, -1 / root, 1 / root, 3 / root]))
    assert data.x[:, 1].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(data.test_x, torch.tensor([[0.0, 1.0], [5 / root, 0.0]]))


@pytest.mark.parametrize(
    "change",
    [
        {"x": torch.zeros(4, 2)},
        {"y": torch.tensor([1, 1, 0, 1])},
        {"test_x": torch.ones(2, 2)},
        {"test_y": torch.tensor([1, 1])},
        {"domain": torch.tensor([0, 0, 0, 1]), "test_domain": torch.tensor([0, 1]), "domains": ("p", "q")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_data_hash_sees_every_number(change: dict[str, Any]) -> None:
    assert pair().sha256 == pair().sha256
    assert pair(**change).sha256 != pair().sha256
    assert replace(pair(), classes=("a", "c")).sha256 != pair().sha256


def test_shards_and_validation_share_no_sample(tiny: Callable[..., Experiment]) -> None:
    """A tenth of 1,437 rounds to 144; the twelve clients share the other 1,293."""
    federation = Federation(tiny(data={"clients": 12, "validation": 0.1}))
    held, shared = federation.validation.tolist(), torch.cat(federation.shards).tolist()
    assert (len(held), len(shared)) == (144, 1293)
    assert sorted(held + shared) == list(range(1437))
    test, validation = federation.evaluations
    assert (test.prefix, validation.prefix) == ("", "validation_")
    assert torch.equal(validation.x, federation.dataset.x[federation.validation])
    assert torch.equal(test.x, federation.dataset.test_x)


def test_without_validation_only_the_test_set_is_evaluated(tiny: Callable[..., Experiment]) -> None:
    federation = Federation(tiny(data={"validation": 0.0}))
    assert [each.prefix for each in federation.evaluations] == [""]
    assert len(torch.cat(federation.shards)) == 1437


def test_class_counts_are_who_holds_what(federation: Federation) -> None:
    counts = federation.holdings.counts
    assert counts.shape == (12, 10)
    for client, shard in enumerate(federation.shards):
        labels = federation.dataset.y[shard].tolist()
        assert counts[client].tolist() == [labels.count(label) for label in range(10)]


@pytest.mark.parametrize("cohort", [1, 5, 12])
def test_a_cohort_is_distinct_sorted_by_size_and_repeats(cohort: int, tiny: Callable[..., Experiment]) -> None:
    experiment = tiny(data={"partition": "dirichlet"}, federation={"cohort": cohort}, training={"block": 2})
    federation = Federation(experiment)
    for round in range(4):
        blocks = federation.cohort(round, everyone=False)
        chosen = torch.cat(blocks).tolist()
        assert [len(block) for block in blocks] == [2] * (cohort // 2) + [1] * (cohort % 2)
        assert len(set(chosen)) == cohort
        sizes = [len(federation.shards[client]) for client in chosen]
        assert sizes == sorted(sizes, reverse=True)
        again = Federation(experiment).cohort(round, everyone=False)
        assert torch.cat(again).tolist() == chosen
    assert sorted(torch.cat(federation.cohort(0, everyone=True)).tolist()) == list(range(12))


def test_every_client_is_drawn_about_equally_often(federation: Federation) -> None:
    """4 of 12 in 300 rounds: 100 times each, with a standard deviation of sqrt(300 * 1/3 * 2/3) = 8.2."""
    drawn = torch.cat([torch.cat(federation.cohort(round, everyone=False)) for round in range(300)])
    assert ((torch.bincount(drawn, minlength=12) - 100).abs() < 5 * 8.2).all()


def test_clients_of_equal_size_keep_their_order(federation: Federation) -> None:
    """1,293 samples for 12 clients: the first nine have 108, the last three 107."""
    chosen = torch.cat(federation.cohort(0, everyone=True)).tolist()
    assert chosen == list(range(12))


def test_a_block_is_padded_with_zeros(tiny: Callable[..., Experiment]) -> None:
    federation = Federation(tiny(data={"partition": "dirichlet"}))
    clients = torch.tensor([3, 0, 7])
    state = {"control": torch.ones(3, 2)}
    block = federation.block(clients, torch.zeros(650), state, round=5)
    assert (block.round, block.client_state) == (5, state)
    assert block.start.shape == (3, 650)
    assert block.counts.tolist() == [len(federation.shards[client]) for client in clients.tolist()]
    assert block.y.shape[1] == block.counts.max() > block.counts.min()
    for row, client in enumerate(clients.tolist()):
        shard, count = federation.shards[client], int(block.counts[row])
        assert torch.equal(block.x[row, :count], federation.dataset.x[shard])
        assert torch.equal(block.y[row, :count], federation.dataset.y[shard])
        assert not block.x[row, count:].any()
        assert not block.y[row, count:].any()
        assert block.mask[row].tolist() == [True] * count + [False] * (block.y.shape[1] - count)


def test_liars_are_those_named_and_lie_from_their_round_on(tiny: Callable[..., Experiment]) -> None:
    federation = Federation(tiny(byzantine={"attack": "sign_flip", "clients": [2, 5], "start": 3}))
    clients = torch.tensor([5, 1, 2])
    assert federation.byzantine_among(clients, 2).tolist() == [False, False, False]
    assert federation.byzantine_among(clients, 3).tolist() == [True, False, True]


@pytest.mark.parametrize("count", [0, 1, 5, 11])
def test_a_number_of_liars_is_drawn_from_the_seed(count: int, tiny: Callable[..., Experiment]) -> None:
    drawn = [
        Federation(tiny(experiment={"seed": seed}, byzantine={"clients": count})).byzantine for seed in (1, 1, 2, 3)
    ]
    assert [int(mask.sum()) for mask in drawn] == [count] * 4
    assert torch.equal(drawn[0], drawn[1])
    assert (count == 0) == all(torch.equal(drawn[0], mask) for mask in drawn[2:])


def test_liars_may_be_drawn_anew_every_round(tiny: Callable[..., Experiment]) -> None:
    federation = Federation(tiny(byzantine={"attack": "sign_flip", "clients": 3, "redraw": True, "start": 1}))
    everyone = torch.arange(12)
    masks = [federation.byzantine_among(everyone, round) for round in range(20)]
    assert [int(mask.sum()) for mask in masks] == [0] + [3] * 19
    assert len({tuple(mask.tolist()) for mask in masks}) > 10
    assert torch.stack(masks).any(0).all(), "in 19 rounds everybody's turn comes"
    assert torch.equal(federation.byzantine_among(torch.tensor([5, 0]), 7), masks[7][[5, 0]])


def test_more_clients_than_samples_is_refused(tiny: Callable[..., Experiment]) -> None:
    with pytest.raises(SettingError, match=r"data\.clients = 1294 is more than the 1293 training samples of 'digits'"):
        Federation(tiny(data={"clients": 1294}))
    assert len(Federation(tiny(data={"clients": 1293})).shards) == 1293


def test_a_model_that_does_not_fit_the_data_is_refused(tiny: Callable[..., Experiment]) -> None:
    """8 x 8 -> 6 x 6 -> 3 x 3 -> 1 x 1 -> 0: the second pooling leaves nothing."""
    with pytest.raises(SettingError, match=r"model 'cnn' with 2 convolutions leaves nothing of 8 x 8 .*model\.padding"):
        Federation(tiny(model={"name": "cnn"}))


@given(st.integers(1, 4), st.integers(5, 30), st.integers(0, 9))
def test_classes_per_client_are_few_and_evenly_held(per_client: int, clients: int, seed: int) -> None:
    """40 samples of each of five classes: a client has `per_client` of them, all as many holders, up to one."""
    labels = np.arange(200) % 5
    shards = ClassesPerClient(per_client=per_client).split(labels, clients, np.random.default_rng(seed))
    held = [set(labels[shard].tolist()) for shard in shards]
    assert {len(each) for each in held} == {per_client}
    holders = [sum(label in each for each in held) for label in range(5)]
    assert max(holders) - min(holders) <= 1


def test_too_few_clients_for_all_classes_are_explained() -> None:
    with pytest.raises(SettingError, match=r"3 clients with 2 classes each cannot hold all 10 classes"):
        ClassesPerClient(per_client=2).split(np.arange(50) % 10, 3, np.random.default_rng(0))


@pytest.mark.parametrize(
    "partition",
    ["iid", {"name": "domains", "beta": 0.5, "seed": 1}, {"name": "domains", "beta": 0.1}],
    ids=["another", "beta", "no seed"],
)
def test_a_cut_and_a_partition_of_different_draws_are_refused(partition: Any) -> None:
    """Before the file is read."""
    dataset = {"name": "office_caltech10", "seed": 1, "beta": 0.1}
    with pytest.raises(SettingError, match=r'set data\.partition = \{ name = "domains", beta = 0\.1, seed = 1 \}'):
        Federation(Experiment(data={"dataset": dataset, "clients": 4, "partition": partition}))
