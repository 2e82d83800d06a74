"""MNIST: 70,000 handwritten digits of 28 x 28, from the data directory or, where a network exists, from OpenML."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fedgen.data.archive import DAMAGE, Arrays, read_arrays
from fedgen.data.dataset import Dataset, Source
from fedgen.errors import SettingError
from fedgen.parameters import Array
from fedgen.registry import register


@register("dataset", "mnist")
@dataclass(frozen=True, kw_only=True)
class Mnist(Source):
    """28 x 28 grey handwritten digits, 60,000 training and 10,000 test images (mnist/mnist.npz).

    x[s, 1, 28, 28] in 0 .. 1, in canonical order (by class, then by pixels): every source gives the same data hash.

    Raises SettingError where the file is neither there nor to be downloaded, or is no MNIST file.
    Source: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document recognition, 1998.
    """

    def load(self, folder: Path) -> Dataset:
        path = folder / "mnist" / "mnist.npz"
        arrays = _read(path) if path.exists() else _download(path)
        x, y = _canonical(arrays["x_train"], arrays["y_train"])
        test_x, test_y = _canonical(arrays["x_test"], arrays["y_test"])
        return Dataset(
            name="mnist", x=_images(x), y=y, test_x=_images(test_x), test_y=test_y, classes=tuple(map(str, range(10)))
        )


def _read(path: Path) -> Arrays:
    try:
        arrays = read_arrays(path, ("x_train", "y_train", "x_test", "y_test"))
        for part in ("train", "test"):
            images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
            if images.shape != (len(labels), 28, 28) or labels.ndim != 1:
                raise ValueError(f"x_{part} is {images.shape} and y_{part} {labels.shape}")
        return arrays
    except DAMAGE as error:
        raise SettingError(
            f"runtime.data_dir: {path} cannot be read as MNIST ({error}); expected an .npz file with x_train "
            "[60000, 28, 28], y_train [60000], x_test and y_test"
        ) from error


def _download(path: Path) -> Arrays:
    from sklearn.datasets import fetch_openml

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # its notices of tries; we say what came of them
            images, labels = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False, parser="liac-arff")
    except Exception as error:
        raise SettingError(
            f"runtime.data_dir: MNIST is not at {path}, and downloading it failed ({type(error).__name__}: {error}); "
            "set runtime.data_dir, or the variable FEDGEN_DATA_DIR, to the folder that holds mnist/mnist.npz"
        ) from error
    x = images.astype(np.uint8).reshape(-1, 28, 28)
    y = labels.astype(np.int64)
    arrays = {"x_train": x[:60_000], "y_train": y[:60_000], "x_test": x[60_000:], "y_test": y[60_000:]}
    _store(path, arrays)
    return arrays


def _store(path: Path, arrays: Arrays) -> None:
    """Keep what was downloaded, whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        scratch.replace(path)
    except OSError as error:
        raise SettingError(
            f"runtime.data_dir: MNIST was downloaded but {path} cannot be written ({error}); name a folder that "
            "you may write to"
        ) from error


def _canonical(images: Array, labels: Array) -> tuple[Array, torch.Tensor]:
    """Sorted by label, then by pixels as bytes."""
    pixels = np.ascontiguousarray(images).reshape(len(images), -1)
    keys = np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1)
    order = keys.view(f"V{keys.shape[1]}").ravel().argsort(kind="stable")
    return images[order], torch.from_numpy(labels[order].astype(np.int64))


def _images(pixels: Array) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(255)).reshape(-1, 1, 28, 28)
