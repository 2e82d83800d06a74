"""Features of your own, with targets of any kind, from an .npz file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
from pydantic import Field

from fedgen.data.archive import Arrays, read_embeddings, scaled
from fedgen.data.dataset import Dataset, Source
from fedgen.data.targets import KINDS, TargetKind
from fedgen.errors import SettingError, suggest
from fedgen.parameters import Array
from fedgen.registry import register

OPTIONAL = ("targets", "classes", "domain_train", "domain_test", "client_train")


@register("dataset", "features")
@dataclass(frozen=True, kw_only=True)
class Features(Source):
    """Embeddings of your own, from an .npz file with x_train[s, d], y_train[s, ...], x_test and y_test.

    y are classes, numbers from 0 on or names, unless an array `targets` of one word says that they are "numbers"
    (regression), "labels" (y[s, c], each 0 or 1; `classes` has their names) or "tokens" (y[s, t], -100 for those that
    do not count; whole numbers x stay whole).  Read where the file has them: `domain_train[s]` and `domain_test`,
    numbers or names; `client_train[s]`, whose a sample is.  With `norm` the features are scaled to that mean length.

    Raises SettingError where the file is not there, damaged, or its arrays do not fit together.
    """

    path: Annotated[str, Field(min_length=1, description="file, relative to the data directory")] = "features.npz"
    norm: Annotated[float | None, Field(gt=0, description="mean Euclidean length of a training embedding")] = None

    def load(self, folder: Path) -> Dataset:
        path = folder / self.path
        names = ("x_train", "y_train", "x_test", "y_test")
        arrays = read_embeddings(folder, Path(self.path), names, "features", OPTIONAL, "data.dataset.path")
        x, test_x = (_samples(arrays, name) for name in ("x_train", "x_test"))
        if x.ndim != 2 or test_x.ndim != 2 or x.shape[1] != test_x.shape[1]:
            raise SettingError(
                f"data.dataset 'features': {path} has x_train {x.shape} and x_test {test_x.shape}; expected [s, d] and "
                "[t, d]"
            )
        if self.norm is not None:
            x, test_x = scaled(x, self.norm), scaled(test_x, self.norm, like=x)
        kind, classes, (y, test_y) = _targets(path, arrays)
        clients, client = _clients(arrays)
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
            kind=kind,
            clients=clients,
            client=client,
        )


def _samples(arrays: Arrays, name: str) -> Array:
    """float32, but for the numbers of tokens."""
    tokens = str(arrays.get("targets")) == "tokens" and np.issubdtype(arrays[name].dtype, np.integer)
    return arrays[name].astype(np.int64 if tokens else np.float32)


def _targets(path: Path, arrays: Arrays) -> tuple[TargetKind, tuple[str, ...], list[torch.Tensor]]:
    """What the file says that its targets are: their kind, names, and both parts."""
    kind = str(arrays.get("targets", "classes"))
    both = [arrays["y_train"], arrays["y_test"]]
    if kind not in KINDS:
        raise SettingError(f"data.dataset 'features': {path} has targets = {kind!r}; {suggest(kind, KINDS)}")
    if kind == "classes":
        return "classes", *numbered(*both)
    try:
        dtype = np.int64 if kind == "tokens" else np.float32
        y, test_y = (each.astype(dtype, casting="same_kind" if kind == "tokens" else "unsafe") for each in both)
    except (TypeError, ValueError) as error:
        raise SettingError(f"data.dataset 'features': {path} has y that are no {kind} ({error})") from error
    known = {"numbers": 0, "labels": y.shape[-1]}.get(kind, 1 + int(max(y.max(initial=0), test_y.max(initial=0))))
    names = tuple(map(str, arrays.get("classes", range(known)))) if known else ()
    return cast(TargetKind, kind), names, [torch.from_numpy(y), torch.from_numpy(test_y)]


def _clients(arrays: Arrays) -> tuple[tuple[str, ...], torch.Tensor | None]:
    """(names of the clients, whose each training sample is), where the file says so."""
    if "client_train" not in arrays:
        return (), None
    names, places = np.unique(arrays["client_train"], return_inverse=True)
    return tuple(map(str, names)), torch.from_numpy(places.astype(np.int64).reshape(-1))


def numbered(training: Array, test: Array) -> tuple[tuple[str, ...], list[torch.Tensor]]:
    """(names, numbers of both) of labels: numbers are taken as they are, names in alphabetical order.

    Raises SettingError for numbers that are not whole.
    """
    if np.issubdtype(training.dtype, np.number):
        if any((each % 1 != 0).any() for each in (training, test)):
            raise SettingError(
                "data.dataset: labels must be whole numbers of classes, from 0 on, or names; got fractions (where they "
                "are numbers to predict, the file needs the array targets = 'numbers')"
            )
        known = 1 + int(max(training.max(initial=0), test.max(initial=0)))
        return tuple(map(str, range(known))), [torch.from_numpy(each.astype(np.int64)) for each in (training, test)]
    names = sorted({*map(str, training), *map(str, test)})
    place = {name: number for number, name in enumerate(names)}
    return tuple(names), [torch.tensor([place[str(each)] for each in part]) for part in (training, test)]
