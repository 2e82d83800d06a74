"""scikit-learn's handwritten digits: 1,797 images of 8 x 8, part of the installation, so it needs no network."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from fedgen.data.dataset import Dataset, Source
from fedgen.errors import SettingError
from fedgen.registry import register

SPLIT = Path(__file__).with_name("digits_split.npy")
"""sklearn's train_test_split(range(1797), test_size=0.2, random_state=0, stratify=labels): 1,437 numbers, then 360."""

TRAINING = 1_437


@register("dataset", "digits")
@dataclass(frozen=True, kw_only=True)
class Digits(Source):
    """8 x 8 grey handwritten digits, 1,437 training and 360 test images, offline.

    x[s, 1, 8, 8] in 0 .. 1.  The test set is a stratified 20 % drawn with seed 0, whatever the experiment's seed is.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998, as shipped by scikit-learn,
    whose file is read without importing it: that takes a second in every process.
    """

    def load(self, folder: Path) -> Dataset:
        samples = np.loadtxt(_file(), delimiter=",")[np.load(SPLIT)]
        x = torch.tensor(samples[:, :-1] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
        y = torch.tensor(samples[:, -1], dtype=torch.int64)
        return Dataset(
            name="digits",
            x=x[:TRAINING],
            y=y[:TRAINING],
            test_x=x[TRAINING:],
            test_y=y[TRAINING:],
            classes=tuple(map(str, range(10))),
        )


def _file() -> Path:
    sklearn = find_spec("sklearn")
    for home in (sklearn and sklearn.submodule_search_locations) or []:
        path = Path(home) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            return path
    raise SettingError(
        "data.dataset 'digits' is part of scikit-learn, which is not installed; pip install scikit-learn"
    )
