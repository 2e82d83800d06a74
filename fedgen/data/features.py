"""Embeddings of your own: features that were computed before, from an .npz file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from fedgen.data.archive import read_embeddings, scaled
from fedgen.data.dataset import Dataset
from fedgen.errors import SettingError
from fedgen.registry import register


@register("dataset", "features")
@dataclass(frozen=True, kw_only=True)
class Features:
    """Embeddings of your own, from an .npz file with x_train[s, d], y_train[s], x_test and y_test.

    Labels are numbers from 0 on, or names.  `domain_train[s]` and `domain_test`, numbers or names too, are read where
    the file has them.  With `norm` the features are scaled to that mean length.

    Raises SettingError where the file is not there, damaged, or its arrays do not fit together.
    """

    path: Annotated[str, Field(min_length=1, description="file, relative to the data directory")] = "features.npz"
    norm: Annotated[float | None, Field(gt=0, description="mean Euclidean length of a training embedding")] = None

    def load(self, folder: Path) -> Dataset:
        path, names = folder / self.path, ("x_train", "y_train", "x_test", "y_test")
        arrays = read_embeddings(
            folder, Path(self.path), names, "features", ("domain_train", "domain_test"), "data.dataset.path"
        )
        x, test_x = (arrays[name].astype(np.float32) for name in ("x_train", "x_test"))
        if x.ndim != 2 or test_x.ndim != 2 or x.shape[1] != test_x.shape[1]:
            raise SettingError(
                f"data.dataset 'features': {path} has x_train {x.shape} and x_test {test_x.shape}; expected [s, d] and "
                "[t, d]"
            )
        if self.norm is not None:
            x, test_x = scaled(x, self.norm), scaled(test_x, self.norm, like=x)
        classes, (y, test_y) = numbered(arrays["y_train"], arrays["y_test"])
        domains: tuple[str, ...] = ()
        domain = test_domain = None
        if "domain_train" in arrays and "domain_test" in arrays:
            domains, (domain, test_domain) = numbered(arrays["domain_train"], arrays["domain_test"])
        return Dataset(
            name=path.stem,
            x=torch.from_numpy(x),
            y=y,
            test_x=torch.from_numpy(test_x),
            test_y=test_y,
            classes=classes,
            domain=domain,
            test_domain=test_domain,
            domains=domains,
        )


def numbered(training: Any, test: Any) -> tuple[tuple[str, ...], list[torch.Tensor]]:
    """(names, numbers of both) of labels: numbers are taken as they are, names in alphabetical order.

    Raises SettingError for numbers that are not whole.
    """
    if np.issubdtype(training.dtype, np.number):
        if any((each % 1 != 0).any() for each in (training, test)):
            raise SettingError(
                "data.dataset: labels must be whole numbers of classes, from 0 on, or names; got fractions"
            )
        known = 1 + int(max(training.max(initial=0), test.max(initial=0)))
        return tuple(map(str, range(known))), [torch.from_numpy(each.astype(np.int64)) for each in (training, test)]
    names = sorted({*map(str, training), *map(str, test)})
    place = {name: number for number, name in enumerate(names)}
    return tuple(names), [torch.tensor([place[str(each)] for each in part]) for part in (training, test)]
