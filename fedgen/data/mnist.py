"""MNIST: 70,000 handwritten digits of 28 x 28, from the data directory or, where a network exists, from OpenML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedgen.data.dataset import Dataset
from fedgen.errors import SettingError
from fedgen.registry import register

Arrays = dict[str, Any]


@register("dataset", "mnist")
@dataclass(frozen=True, kw_only=True)
class Mnist:
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
        with np.load(path) as file:
            return {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    except (OSError, ValueError, KeyError) as error:
        raise SettingError(
            f"runtime.data_dir: {path} cannot be read as MNIST: {error}; expected an .npz file with x_train, y_train, "
            "x_test, y_test"
        ) from error


def _download(path: Path) -> Arrays:
    from sklearn.datasets import fetch_openml

    try:
        images, labels = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False, parser="liac-arff")
    except Exception as error:
        raise SettingError(
            f"runtime.data_dir: MNIST is not at {path}, and downloading it failed ({type(error).__name__}: {error}); "
            "set runtime.data_dir, or the variable FEDGEN_DATA_DIR, to the folder that holds mnist/mnist.npz"
        ) from error
    x, y = images.astype(np.uint8).reshape(-1, 28, 28), labels.astype(np.int64)
    arrays = {"x_train": x[:60_000], "y_train": y[:60_000], "x_test": x[60_000:], "y_test": y[60_000:]}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)
    return arrays


def _canonical(images: Any, labels: Any) -> tuple[Any, torch.Tensor]:
    """Sorted by label, then by pixels as bytes."""
    pixels = np.ascontiguousarray(images).reshape(len(images), -1)
    keys = np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1)
    order = keys.view(f"V{keys.shape[1]}").ravel().argsort(kind="stable")
    return images[order], torch.from_numpy(labels[order].astype(np.int64))


def _images(pixels: Any) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(255)).reshape(-1, 1, 28, 28)
