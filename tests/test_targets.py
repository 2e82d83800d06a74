"""Targets of every kind: what a data set says of them, what takes them, and that models learn them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedgen import registry
from fedgen.config import Experiment
from fedgen.data.dataset import Dataset
from fedgen.data.features import Features
from fedgen.data.holdings import Holdings
from fedgen.data.partition import Quantiles
from fedgen.data.targets import IGNORED, KINDS, TargetKind, Targets
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.notes import notes
from fedgen.server.report.run_record import RunFolder
from fedgen.server.run.start import Result

ROOT = Path(__file__).resolve().parents[1]
X = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
HIDDEN = X @ torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def dataset(kind: TargetKind, **changes: Any) -> Dataset:
    """45 training and 15 test samples, whose targets a linear model explains."""
    y = {
        "classes": HIDDEN.argmax(1),
        "numbers": HIDDEN,
        "labels": (HIDDEN > 0).float(),
        "tokens": (HIDDEN > 0).long().index_fill(1, torch.tensor([1]), IGNORED),
    }[kind]
    names = {"classes": ("a", "b", "c"), "numbers": (), "labels": ("a", "b", "c"), "tokens": ("no", "yes")}[kind]
    parts = {"x": X[:45], "y": y[:45], "test_x": X[45:], "test_y": y[45:], "classes": names, "kind": kind}
    return Dataset("made", **parts | changes)


class PerPlace(nn.Module):
    """outputs[b, 3, 2]: of two tokens at three places."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).view(-1, 3, 2)  # type: ignore[no-any-return]


FITTING: dict[str, dict[str, Any]] = {
    "numbers": {"loss": "mean_squared_error", "metrics": ["r_squared", "absolute_error"]},
    "labels": {"loss": "binary_cross_entropy", "metrics": ["label_f1", "label_accuracy", "exact_match_accuracy"]},
    "tokens": {"name": f"{__name__}:PerPlace", "loss": "token_cross_entropy", "metrics": ["token_accuracy"]},
}


@pytest.fixture
def made(registered: Callable[..., Any], tiny: Callable[..., Experiment]) -> Callable[..., Experiment]:
    """made(kind, **tables) -> an experiment on `dataset(kind)`."""

    def make(kind: TargetKind, **tables: Any) -> Experiment:
        held = dataset(kind)

        class Made:
            def load(self, folder: Path) -> Dataset:
                return held

        if f"made_{kind}" not in registry.members("dataset"):
            registered("dataset", f"made_{kind}")(Made)
        data = {"dataset": f"made_{kind}", "clients": 4, "partition": "iid"} | tables.pop("data", {})
        model = {"name": "logistic", **FITTING.get(kind, {})} | tables.pop("model", {})
        return tiny(**{"federation": {"rounds": 2, "cohort": 4}} | tables, data=data, model=model)

    return make


@pytest.mark.parametrize("engine", ["auto", "vmap", "sequential", "reference"])
@pytest.mark.parametrize("kind", FITTING)
def test_every_kind_of_target_is_learned(
    kind: TargetKind, engine: str, made: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    training = {"engine": engine, "epochs": 5, "steps": None, "optimizer": {"lr": 0.3 if kind != "numbers" else 0.05}}
    result = run_in(made(kind, training=training, federation={"rounds": 15, "cohort": 4}))
    assert result.state == "completed"
    leading = FITTING[kind]["metrics"][0]
    assert result.history[leading][-1] > 0.8
    assert result.history["loss"][-1] < result.history["loss"][0]


@pytest.mark.parametrize("loss", [name for name, part in registry.members("loss").items() if "numbers" in part.takes])
def test_engines_agree_on_losses_of_numbers(
    loss: str, made: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    """`auto` takes the stacked engine, where the loss has a form of its own."""
    both = [made("numbers", model={"loss": loss}, training={"engine": each, "epochs": 2, "steps": None})
            for each in ("stacked", "reference")]  # fmt: skip
    first, second = (run_in(each, each.training.engine) for each in both)
    assert Federation(made("numbers", model={"loss": loss})).engine == "stacked"
    assert first.metrics["loss"] == pytest.approx(second.metrics["loss"], rel=1e-5)


BROKEN: dict[str, tuple[TargetKind, dict[str, Any], str]] = {
    "NaN": ("numbers", {"y": HIDDEN[:45] / 0 * 0}, r"training targets are NaN or infinite in 45 samples, first in 0"),
    "two shapes": ("numbers", {"test_y": HIDDEN[45:, :2]}, r"test targets must be as those of training, \[3\] of"),
    "no numbers of labels": ("labels", {"y": HIDDEN[:45]}, "training targets of kind 'labels' are 0 or 1 each"),
    "a name too few": ("labels", {"classes": ("a", "b")}, "targets have 3 labels a sample, and 2 are named"),
    "a class too many": ("classes", {"classes": ("a", "b")}, "training labels run from 0 to 2, expected 0 to 1 for 2"),
    "no names": ("classes", {"classes": ()}, "targets of kind 'classes' need names"),
    "numbers as classes": ("classes", {"y": HIDDEN[:45]}, r"kind 'classes' are int64\[s\].*got float32\[45, 3\]"),
    "a token too many": ("tokens", {"classes": ("no",)}, "tokens run from 0 to 1, expected 0 to 0 for 1 tokens"),
    "a token below": ("tokens", {"y": torch.full((45, 3), -1)}, "tokens run from -1 to -1"),
    "nothing counts": (
        "tokens",
        {"y": torch.full((45, 3), IGNORED)},
        "all -100 in 45 samples, first in 0: every sample needs",
    ),
    "one counts nothing": (
        "tokens",
        {"y": torch.zeros(45, 3, dtype=torch.int64).index_fill(0, torch.tensor([7, 9]), IGNORED)},
        "all -100 in 2 samples, first in 7",
    ),
    "an array": ("numbers", {"y": HIDDEN[:45].numpy()}, r"training targets must be a torch.Tensor, got ndarray"),
    "other samples": ("numbers", {"test_x": X[45:, :4]}, r"test samples must be as those of training, \[5\]"),
    "a client too many": (
        "numbers",
        {"client": torch.arange(45), "clients": ("a", "b")},
        "every training sample needs a client from 0 to 1, as its 2 clients are numbered",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_targets_that_do_not_fit_are_named(case: str) -> None:
    kind, changes, told = BROKEN[case]
    with pytest.raises(SettingError, match=f"^data.dataset 'made': .*{told}"):
        dataset(kind, **changes)


def test_kind_and_clients_are_part_of_the_hash() -> None:
    labels = dataset("labels")
    numbers = Dataset("made", labels.x, labels.y, labels.test_x, labels.test_y, labels.classes, kind="numbers")
    owned = dataset("labels", client=torch.arange(45) % 2, clients=("a", "b"))
    assert len({labels.sha256, numbers.sha256, owned.sha256}) == 3


@pytest.mark.parametrize(
    ("tables", "told"),
    [
        ({"data": {"partition": "dirichlet"}}, r"data.partition 'dirichlet' is made for classes.*natural, quantiles"),
        ({"data": {"partition": "classes"}}, "data.partition 'classes' is made for classes"),
        ({"data": {"partition": "label_skew"}}, "data.partition 'label_skew' is made for classes"),
        ({"byzantine": {"attack": "label_flip"}}, "byzantine.attack 'label_flip' is made for classes, .*numbers"),
        ({"byzantine": {"attack": "backdoor"}}, "byzantine.attack 'backdoor' is made for classes"),
        ({"training": {"wrappers": ["ggeur"]}}, "training.wrappers 'ggeur' is made for classes"),
        ({"model": {"loss": "cross_entropy"}}, r"model.loss 'cross_entropy' is made for classes.*huber, mean_squared"),
        ({"model": {"metrics": ["accuracy"]}}, r"model.metrics 'accuracy' is made for classes.*r_squared"),
        ({"model": {"metrics": ["label_f1"]}}, "model.metrics 'label_f1' is made for labels"),
    ],
    ids=str,
)
def test_parts_that_need_classes_refuse_numbers(
    tables: dict[str, Any], told: str, made: Callable[..., Experiment]
) -> None:
    with pytest.raises(SettingError, match=told):
        Federation(made("numbers", **tables))


def test_quantiles_refuse_classes_and_iid_takes_all(made: Callable[..., Experiment]) -> None:
    with pytest.raises(SettingError, match=r"'quantiles' is made for numbers, .*are classes; choose from .*dirichlet"):
        Federation(made("classes", data={"partition": "quantiles"}))
    for kind in KINDS:
        assert len(Federation(made(kind)).shards) == 4


def test_built_in_models_refuse_tokens_and_give_an_output_a_number(made: Callable[..., Experiment]) -> None:
    with pytest.raises(SettingError, match=r"model.name 'logistic' gives one row of outputs .* tokens; .*\[b, t"):
        Federation(made("tokens", model={"name": "logistic"}))
    shapes = Federation(made("numbers")).learner.model.parameters.shapes
    assert shapes["1.weight"] == (3, 5)


@pytest.mark.parametrize("per_client", [1, 3])
def test_quantiles_are_ranges_of_equal_size(per_client: int) -> None:
    y = np.random.default_rng(0).normal(size=120)
    shards = Quantiles(per_client=per_client).split(y, 4, np.random.default_rng(1))
    assert sorted(np.concatenate(shards).tolist()) == list(range(120))
    ranks = np.argsort(np.argsort(y))
    pieces = [sorted(set((ranks[shard] // (30 // per_client)).tolist())) for shard in shards]
    assert {len(each) for each in pieces} == {per_client}
    assert sorted(chain.from_iterable(pieces)) == list(range(4 * per_client))
    with pytest.raises(SettingError, match=r"data\.partition\.per_client = 50 for 4 clients"):
        Quantiles(per_client=50).split(y, 4, np.random.default_rng(1))


def test_holdings_count_what_each_client_has() -> None:
    shards = [torch.arange(15), torch.arange(15, 45)]
    labels, numbers = Holdings.of(dataset("labels"), shards), Holdings.of(dataset("numbers"), shards)
    assert labels.counts[0].tolist() == (HIDDEN[:15] > 0).sum(0).tolist()
    assert numbers.counts.sum(1).tolist() == numbers.samples.tolist() == [15, 30]
    values = HIDDEN[:45].mean(1).numpy()
    expected, _ = np.histogram(values[15:], np.histogram_bin_edges(values, 12))
    assert numbers.counts[1].tolist() == expected.tolist()
    assert Holdings.of(dataset("tokens"), shards).columns == ()


@pytest.mark.parametrize(("clients", "kind"), [(4, "numbers"), (4, "labels"), (4, "tokens"), (40, "numbers")])
def test_the_report_shows_targets_that_are_no_classes(
    kind: TargetKind, clients: int, made: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    experiment = made(kind, data={"clients": clients, "validation": 0.0}, tracking={"report": True},
                      federation={"rounds": 1, "cohort": 2})  # fmt: skip
    folder = run_in(experiment).folder
    partition = RunFolder.read(folder).partition
    assert partition is not None
    assert (partition.targets, int(partition.samples.sum())) == (kind, 45)
    page = (folder / "report.html").read_text()
    assert f"{clients} clients with 45 samples in all" in page
    assert {"numbers": "histogram of the targets", "labels": "share of each label", "tokens": "as high as"}[
        kind
    ] in page
    assert (folder / "figures" / "partition.svg").exists()


def test_classes_without_samples_are_noted(made: Callable[..., Experiment], registered: Callable[..., Any]) -> None:
    held = dataset("classes", classes=("a", "b", "c", "d"))

    class Gap:
        def load(self, folder: Path) -> Dataset:
            return held  # as it is when it is loaded

    registered("dataset", "gap")(Gap)
    assert notes(Federation(made("classes"))) == []
    [note] = notes(Federation(made("classes", data={"dataset": "gap"})))
    assert note == "data.dataset 'made': no training sample is of class 'd' (of 4)"
    held = dataset("labels", y=(HIDDEN[:45] > 0).float() * torch.tensor([1.0, 0.0, 1.0]))
    labels = made("labels", data={"dataset": "gap"})
    assert notes(Federation(labels)) == ["data.dataset 'made': no training sample is of label 'b' (of 3)"]


ARRAYS = {"x_train": X[:45].numpy(), "x_test": X[45:].numpy()}


def test_a_file_of_features_says_what_its_targets_are(tmp_path: Path) -> None:
    def loaded(y: Any, **arrays: Any) -> Dataset:
        np.savez(tmp_path / "features.npz", **ARRAYS, y_train=y[:45], y_test=y[45:], **arrays)
        return Features().load(tmp_path)

    numbers = loaded(HIDDEN[:, 0].double().numpy(), targets="numbers")
    assert (numbers.kind, numbers.targets.outputs, numbers.y.dtype) == ("numbers", 1, torch.float32)
    assert numbers.targets.variance == pytest.approx(float(HIDDEN[:45, 0].var(correction=0)), rel=1e-5)
    labels = loaded((HIDDEN > 0).numpy(), targets="labels", classes=["sun", "rain", "snow"])
    assert (labels.kind, labels.classes) == ("labels", ("sun", "rain", "snow"))
    assert loaded((HIDDEN > 0).long().numpy(), targets="tokens").targets.outputs == 2
    owned = loaded(np.arange(60) % 2, client_train=np.array(["b", "a", "b"] * 15))
    assert (owned.clients, owned.client.tolist()[:3]) == (("a", "b"), [1, 0, 1])  # type: ignore[union-attr]
    with pytest.raises(SettingError, match=r"got fractions \(where they are numbers .* targets = 'numbers'\)"):
        loaded(HIDDEN[:, 0].numpy())
    with pytest.raises(SettingError, match="has targets = 'number'; did you mean 'numbers'"):
        loaded(HIDDEN[:, 0].numpy(), targets="number")
    with pytest.raises(SettingError, match="has y that are no tokens"):
        loaded(HIDDEN.numpy(), targets="tokens")


def test_tokens_of_samples_stay_whole(tmp_path: Path) -> None:
    x, y = np.arange(60 * 4).reshape(60, 4) % 7, np.arange(60 * 4).reshape(60, 4) % 3
    np.savez(tmp_path / "features.npz", x_train=x[:45], y_train=y[:45], x_test=x[45:], y_test=y[45:], targets="tokens")
    held = Features().load(tmp_path)
    assert held.x.dtype == torch.int64
    with pytest.raises(SettingError, match=r"samples are torch.int64, which data.standardise cannot scale"):
        held.standardised()


class NextToken(nn.Module):
    """outputs[b, t, 7] of tokens x[b, t]."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(7, 8), nn.Linear(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.table(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "tables",
    [{"federation": {"cohort": 4}}, {"federation": {"mode": "gossip"}, "gossip": {"topology": "ring"}}],
    ids=["star", "gossip"],
)
def test_a_next_token_model_learns_what_comes_next(
    tables: dict[str, dict[str, Any]],
    tmp_path: Path,
    tiny: Callable[..., Experiment],
    run_in: Callable[..., Result],
) -> None:
    """After token k comes 3 k + 1 mod 7; the last place of every sample does not count."""
    x = np.random.default_rng(0).integers(0, 7, (60, 6))
    y = np.where(np.arange(6) < 5, (3 * x + 1) % 7, IGNORED)
    np.savez(tmp_path / "features.npz", x_train=x[:45], y_train=y[:45], x_test=x[45:], y_test=y[45:], targets="tokens")
    experiment = tiny(
        data={"dataset": "features", "clients": 4, "partition": "iid"},
        model={"name": f"{__name__}:NextToken", "loss": "token_cross_entropy", "metrics": ["token_accuracy"]},
        training={"epochs": 5, "steps": None, "optimizer": {"lr": 0.5, "momentum": 0.9}},
        **{**tables, "federation": {"rounds": 10, "cohort": 0.1, **tables["federation"]}},
        runtime={"backend": "serial", "data_dir": str(tmp_path)},
    )
    assert Federation(experiment).engine == "vmap"
    assert run_in(experiment).metrics["token_accuracy"] > 0.95


def test_the_regression_example_learns(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", str(ROOT / "examples/regression.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) > 0.45


@pytest.mark.parametrize("name", ["mean_squared_error", "absolute_error", "huber"])
def test_one_output_may_be_a_number_or_a_list_of_one(name: str) -> None:
    """outputs[b] and outputs[b, 1] for targets y[b]."""
    loss = registry.find("loss", name)
    outputs, targets = torch.tensor([1.0, 4.0]), torch.tensor([0.5, 2.0])
    torch.testing.assert_close(loss(outputs, targets), loss(outputs[:, None], targets))


@pytest.mark.parametrize(
    ("kind", "y", "dtype"),
    [
        ("numbers", torch.tensor([1, 2]), torch.float32),
        ("numbers", torch.tensor([1.0, 2.0], dtype=torch.float64), torch.float32),
        ("labels", torch.tensor([[True, False], [False, True]]), torch.float32),
        ("labels", torch.tensor([[1, 0], [0, 1]], dtype=torch.int8), torch.float32),
        ("classes", torch.tensor([0, 1], dtype=torch.uint8), torch.int64),
        ("tokens", torch.tensor([[0, 1], [1, -100]], dtype=torch.int32), torch.int64),
    ],
)
def test_targets_of_another_dtype_of_the_same_sort_are_taken(kind: Any, y: Tensor, dtype: torch.dtype) -> None:
    names = () if kind == "numbers" else ("a", "b")
    dataset = Dataset("own", torch.zeros(2, 3), y, torch.zeros(2, 3), y, names, kind=kind)
    assert dataset.y.dtype == dataset.test_y.dtype == dtype
    assert dataset.y.tolist() == y.to(dtype).tolist()


@pytest.mark.parametrize(
    ("kind", "y"), [("classes", torch.tensor([0.0, 1.0])), ("classes", torch.tensor([True, False]))]
)
def test_targets_of_another_sort_are_not(kind: Any, y: Tensor) -> None:
    with pytest.raises(SettingError, match="targets of kind 'classes' are int64"):
        Dataset("own", torch.zeros(2, 3), y, torch.zeros(2, 3), y, ("a", "b"), kind=kind)


def test_targets_that_do_not_vary_leave_nothing_to_explain(made: Callable[..., Experiment]) -> None:
    same = torch.full_like(HIDDEN[:45], 2.5)
    with pytest.raises(SettingError, match=r"model.metrics 'r_squared': all training targets are equal"):
        registry.build("metric", "r_squared", {}, targets=Targets.of("numbers", (), same))
    assert registry.build("metric", "r_squared", {}, targets=Targets.of("numbers", (), HIDDEN[:45])) is not None
