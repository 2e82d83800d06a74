"""scikit-learn's handwritten digits: 1,797 images of 8 x 8, part of the installation, so it needs no network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fedgen.data.dataset import Dataset
from fedgen.registry import register


@register("dataset", "digits")
@dataclass(frozen=True, kw_only=True)
class Digits:
    """8 x 8 grey handwritten digits, 1,437 training and 360 test images, offline.

    x[s, 1, 8, 8] in 0 .. 1.  The test set is a stratified 20 % drawn with seed 0, whatever the experiment's seed is.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI 1998, as shipped by scikit-learn.
    """

    def load(self, folder: Path) -> Dataset:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        x, test_x, y, test_y = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
        return Dataset(
            name="digits",
            x=torch.tensor(x / 16, dtype=torch.float32).reshape(-1, 1, 8, 8),
            y=torch.tensor(y, dtype=torch.int64),
            test_x=torch.tensor(test_x / 16, dtype=torch.float32).reshape(-1, 1, 8, 8),
            test_y=torch.tensor(test_y, dtype=torch.int64),
            classes=tuple(map(str, range(10))),
        )
