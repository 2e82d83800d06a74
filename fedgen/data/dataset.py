"""A data set in memory: training and test samples, checked once when loaded."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from fedgen.data.targets import TargetKind, Targets, complaint, fitting
from fedgen.errors import SettingError
from fedgen.lazy import lazy_property


@dataclass(frozen=True)
class Dataset:
    """Samples of a supervised task.

    x[s, ...] float32, or int64 for modules that look tokens up; y: targets of one `kind`, of the form that
    `Targets` says, or of another dtype of the same sort; classes: names of classes, labels or tokens, in the order
    of their numbers. Where the samples come from several domains: domain[s] int64 and test_domain, and the domains'
    names. Where it is known whose the training samples are: client[s] int64, and the clients' names.

    Raises SettingError that names the data set, where its arrays do not fit together.
    """

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...] = ()
    domain: Tensor | None = None
    test_domain: Tensor | None = None
    domains: tuple[str, ...] = ()
    kind: TargetKind = "classes"
    client: Tensor | None = None
    clients: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("y", "test_y"):
            if isinstance(getattr(self, name), Tensor):
                object.__setattr__(self, name, fitting(self.kind, getattr(self, name)))
        for part, x, y in (("training", self.x, self.y), ("test", self.test_x, self.test_y)):
            self._check(part, x, y)
        for part, y, domain in (("training", self.y, self.domain), ("test", self.test_y, self.test_domain)):
            self._check_column(part, "domain", domain, self.domains, len(y))
        self._check_column("training", "client", self.client, self.clients, len(self.y))
        for what, training, test in (("samples", self.x, self.test_x), ("targets", self.y, self.test_y)):
            if training.shape[1:] != test.shape[1:] or training.dtype != test.dtype:
                self._refuse(
                    f"test {what} must be as those of training, {list(training.shape[1:])} of {training.dtype}; got "
                    f"{list(test.shape[1:])} of {test.dtype}"
                )

    def _refuse(self, why: str) -> NoReturn:
        raise SettingError(f"data.dataset {self.name!r}: {why}")

    def _check(self, part: str, x: Tensor, y: Tensor) -> None:
        for what, array in (("samples", x), ("targets", y)):
            if not isinstance(array, Tensor):
                self._refuse(f"{part} {what} must be a torch.Tensor, got {type(array).__name__}")
        if len(x) != len(y) or len(x) == 0:
            self._refuse(f"{part} has {len(x)} samples and {len(y)} labels")
        broken = (~torch.isfinite(x.reshape(len(x), -1)).all(1)).nonzero().flatten()
        if len(broken):
            self._refuse(
                f"{part} samples that hold NaN or infinite values: {len(broken)}, the first is sample "
                f"{int(broken[0])}; remove or fill them in the data file"
            )
        if wrong := complaint(self.kind, self.classes, y):
            self._refuse(f"{part} {wrong}")

    def _check_column(self, part: str, what: str, column: Tensor | None, names: tuple[str, ...], samples: int) -> None:
        if column is None and not names:
            return
        if column is None or len(column) != samples or int(column.min()) < 0 or int(column.max()) >= len(names):
            self._refuse(
                f"every {part} sample needs a {what} from 0 to {len(names) - 1}, as its {len(names)} {what}s are "
                "numbered"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @lazy_property
    def targets(self) -> Targets:
        """What is to be predicted."""
        return Targets.of(self.kind, self.classes, self.y)

    @lazy_property
    def sha256(self) -> str:
        """Of every number, so that a run can tell whether it still sees the same data."""
        digest = hashlib.sha256(repr((self.classes, self.input_shape)).encode())
        if self.kind != "classes":
            digest.update(repr((self.kind, tuple(self.y.shape[1:]))).encode())
        for tensor in (self.x, self.y, self.test_x, self.test_y):
            digest.update(tensor.contiguous().numpy().data)
        if self.domain is not None and self.test_domain is not None:
            digest.update(repr(self.domains).encode())
            for tensor in (self.domain, self.test_domain):
                digest.update(tensor.contiguous().numpy().data)
        if self.client is not None:
            digest.update(repr(self.clients).encode() + self.client.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def standardised(self) -> Dataset:
        """Every feature minus its training mean, over its training standard deviation (1 for constant features)."""
        if not self.x.is_floating_point():
            self._refuse(f"samples are {self.x.dtype}, which data.standardise cannot scale; leave it out")
        mean = self.x.mean(0)
        deviation = self.x.std(0, correction=0)
        deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        return replace(self, x=(self.x - mean) / deviation, test_x=(self.test_x - mean) / deviation)


class Source(ABC):
    """What is registered as a "dataset": a frozen dataclass whose `load` reads, or makes, the data."""

    def check_partition(self, name: str, parameters: Mapping[str, object]) -> None:
        """Raises SettingError where the cut into training and test samples belongs to another partition."""
        return None

    @abstractmethod
    def load(self, folder: Path) -> Dataset:
        """The data set, from its files under the data directory `folder`."""
