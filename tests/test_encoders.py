"""Features of files, encoders, and the embeddings that are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgen import Experiment, registry, run
from fedgen.data.digits import Digits
from fedgen.data.encoded import Encoded
from fedgen.data.features import Features
from fedgen.errors import SettingError
from fedgen.geometry.heads import ridge
from fedgen.geometry.statistics import statistics_of
from fedgen.models.encoders import Patches

OWN = """
import torch

class Halves(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = torch.nn.Linear(64, width)

    def forward(self, x):
        return self.layer(x.flatten(1))

class Pictures(torch.nn.Module):
    def forward(self, x):
        return x
"""


def arrays(**changes: Any) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    base = {
        "x_train": generator.normal(size=(12, 3)).astype(np.float16),
        "y_train": np.arange(12) % 3,
        "x_test": generator.normal(size=(6, 3)),
        "y_test": np.arange(6) % 3,
    }
    return base | changes


def test_features_of_a_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", **arrays())
    dataset = Features(path="mine.npz", norm=5.0).load(tmp_path)
    assert (dataset.name, dataset.input_shape, dataset.classes) == ("mine", (3,), ("0", "1", "2"))
    assert dataset.x.norm(dim=1).mean() == pytest.approx(5, rel=1e-5)
    assert dataset.domain is None


def test_names_are_numbered_and_domains_are_read(tmp_path: Path) -> None:
    names, places = np.array(["dog", "cat", "eel"]), np.array(["sea", "land"])
    np.savez(
        tmp_path / "features.npz",
        **arrays(
            y_train=names[np.arange(12) % 3],
            y_test=names[np.arange(6) % 3],
            domain_train=places[np.arange(12) % 2],
            domain_test=places[np.arange(6) % 2],
        ),
    )
    dataset = Features().load(tmp_path)
    assert dataset.classes == ("cat", "dog", "eel")
    assert dataset.y[:3].tolist() == [1, 0, 2]
    assert dataset.domains == ("land", "sea")
    assert dataset.domain is not None
    assert dataset.domain[:2].tolist() == [1, 0]


def test_features_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    np.savez(tmp_path / "features.npz", **arrays(x_test=np.zeros((6, 2))))
    with pytest.raises(SettingError, match=r"x_train \(12, 3\) and x_test \(6, 2\)"):
        Features().load(tmp_path)
    (tmp_path / "features.npz").write_bytes(b"nothing")
    with pytest.raises(SettingError, match=r"data\.dataset\.path: .*cannot be read"):
        Features().load(tmp_path)


def test_a_wrong_path_is_a_wrong_path(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"data\.dataset\.path: features are not at .*mine/all\.npz; correct data\.dataset\."
    ):
        Features(path="mine/all.npz").load(tmp_path)


def test_patches_are_learned_without_labels_and_tell_digits_apart() -> None:
    digits = Digits().load(Path())
    encoder = Patches(filters=32, size=3, patches=5_000)
    module = encoder.module(digits.x).eval()
    with torch.no_grad():
        x, test_x = module(digits.x), module(digits.test_x)
        assert torch.equal(encoder.module(digits.x).eval()(digits.x[:9]), x[:9]), "the same in every process"
    assert x.shape == (1437, 128)
    learned = (ridge(statistics_of(x, digits.y, 10))(test_x).argmax(1) == digits.test_y).double().mean()
    raw = statistics_of(digits.x.flatten(1), digits.y, 10)
    plain = (ridge(raw)(digits.test_x.flatten(1)).argmax(1) == digits.test_y).double().mean()
    assert learned > plain > 0.9


@pytest.mark.parametrize("name", registry.members("encoder"))
def test_every_encoder_gives_one_row_an_image(name: str) -> None:
    images = torch.rand(20, 1, 9, 9, generator=torch.Generator().manual_seed(0))
    module = registry.build("encoder", name, {}).module(images).eval()
    with torch.no_grad():
        together, alone = module(images), torch.cat([module(image[None]) for image in images])
    assert together.dim() == 2
    assert together.isfinite().all()
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_embeddings_are_kept_under_the_hash_of_what_made_them(
    tmp_path: Path, user_module: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    user_module("own_encoder", OWN)
    source = Encoded(dataset="digits", encoder="own_encoder:Halves", norm=10.0)
    first = source.load(tmp_path)
    assert first.input_shape == (4,)
    assert first.x.norm(dim=1).mean() == pytest.approx(10, rel=1e-5)
    (kept,) = (tmp_path / "encoded").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(Encoded, "_encoded", lambda *_: pytest.fail("encoded again"))
        assert source.load(tmp_path).sha256 == first.sha256
    wider = Encoded(dataset="digits", encoder="own_encoder:Halves", parameters={"width": 6}).load(tmp_path)
    assert wider.input_shape == (6,)
    assert len(list((tmp_path / "encoded").iterdir())) == 2
    kept.write_bytes(b"cut short")
    assert source.load(tmp_path).sha256 == first.sha256


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, user_module: Callable[[str, str], Path]
) -> None:
    user_module("own_encoder", OWN)
    (tmp_path / "encoded").write_text("in the way")
    assert Encoded(dataset="digits", encoder="own_encoder:Halves").load(tmp_path).input_shape == (4,)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"encoder": "own_encoder:Pictures"}, r"'own_encoder:Pictures' gives \(1437, 1, 8, 8\).*expected one row"),
        ({"encoder": "patchs"}, "encoder 'patchs' is not known: .*patches"),
        ({"encoder": "patches", "parameters": {"filter": 3}}, "data.dataset.encoder: .*filter: unknown key.*filters"),
        ({"dataset": {"name": "digits", "size": 3}, "encoder": "patches"}, "data.dataset.dataset: .*size: unknown key"),
        ({"dataset": "digits", "encoder": "patches", "parameters": {"size": 9}}, "needs images .* at least 9 pixels"),
    ],
    ids=["shape", "name", "parameter", "data set", "patch"],
)
def test_encoders_that_do_not_fit_are_explained(
    chosen: dict[str, Any], message: str, tmp_path: Path, user_module: Callable[[str, str], Path]
) -> None:
    user_module("own_encoder", OWN)
    with pytest.raises(SettingError, match=message):
        Encoded(**{"dataset": "digits", **chosen}).load(tmp_path)


def test_raw_images_to_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One experiment: encode, exchange statistics, train, and the same again from what was kept."""
    encoded = {"name": "encoded", "dataset": "digits", "parameters": {"size": 3, "filters": 16, "patches": 2000}}
    experiment = Experiment(
        data={"dataset": encoded, "clients": 6, "partition": "label_skew"},
        model={"name": "logistic"},
        training={"wrappers": [{"name": "ggeur", "target": 20, "minimum_count": 2}]},
        federation={"rounds": 1, "cohort": 3},
        runtime={"backend": "serial", "data_dir": str(tmp_path / "data")},
    )
    first = run(experiment, tmp_path / "first")
    assert first.metrics["accuracy"] > 0.9
    assert "Generated samples" in (first.folder / "report.html").read_text()
    assert run(experiment, tmp_path / "second").sha256 == first.sha256


def test_batches_of_an_encoder_are_one_after_another(
    tmp_path: Path, user_module: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    user_module("own_encoder", OWN)
    whole = Encoded(dataset="digits", encoder="own_encoder:Halves").load(tmp_path / "a")
    monkeypatch.setattr("fedgen.data.encoded.TOGETHER", 100)
    parts: Tensor = Encoded(dataset="digits", encoder="own_encoder:Halves").load(tmp_path / "b").x
    torch.testing.assert_close(parts, whole.x)
