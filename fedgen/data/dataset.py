"""A data set in memory: training and test samples, checked once when loaded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from fedgen.errors import SettingError


@dataclass(frozen=True)
class Dataset:
    """Samples of a supervised task.

    x[s, ...] float32, y[s] int64 class numbers; classes: their names, in the order of the numbers.  Where the samples
    come from several domains: domain[s] int64 and test_domain, and the domains' names.
    """

    name: str
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    domain: Tensor | None = None
    test_domain: Tensor | None = None
    domains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part, x, y in (("training", self.x, self.y), ("test", self.test_x, self.test_y)):
            self._check(part, x, y)
        for part, y, domain in (("training", self.y, self.domain), ("test", self.test_y, self.test_domain)):
            self._check_domain(part, y, domain)

    def _check(self, part: str, x: Tensor, y: Tensor) -> None:
        if len(x) != len(y) or len(x) == 0:
            raise SettingError(f"data.dataset {self.name!r}: {part} has {len(x)} samples and {len(y)} labels")
        broken = (~torch.isfinite(x.flatten(1)).all(1)).nonzero().flatten()
        if len(broken):
            raise SettingError(
                f"data.dataset {self.name!r}: {part} samples that hold NaN or infinite values: {len(broken)}, the "
                f"first is sample {int(broken[0])}; remove or fill them in the data file"
            )
        if int(y.min()) < 0 or int(y.max()) >= len(self.classes):
            raise SettingError(
                f"data.dataset {self.name!r}: {part} labels run from {int(y.min())} to {int(y.max())}, expected 0 to "
                f"{len(self.classes) - 1} for {len(self.classes)} classes"
            )

    def _check_domain(self, part: str, y: Tensor, domain: Tensor | None) -> None:
        if domain is None and not self.domains:
            return
        if domain is None or len(domain) != len(y) or int(domain.min()) < 0 or int(domain.max()) >= len(self.domains):
            raise SettingError(
                f"data.dataset {self.name!r}: every {part} sample needs a domain from 0 to {len(self.domains) - 1}, as "
                f"its {len(self.domains)} domains are numbered"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.x.shape[1:])

    @cached_property
    def sha256(self) -> str:
        """Of every number, so that a run can tell whether it still sees the same data."""
        digest = hashlib.sha256(repr((self.classes, self.input_shape)).encode())
        for tensor in (self.x, self.y, self.test_x, self.test_y):
            digest.update(tensor.contiguous().numpy().data)
        if self.domain is not None and self.test_domain is not None:
            digest.update(repr(self.domains).encode())
            for tensor in (self.domain, self.test_domain):
                digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def standardised(self) -> Dataset:
        """Every feature minus its training mean, over its training standard deviation (1 for constant features)."""
        mean, deviation = self.x.mean(0), self.x.std(0, correction=0)
        deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
        return replace(self, x=(self.x - mean) / deviation, test_x=(self.test_x - mean) / deviation)


class Source(Protocol):
    """What is registered as a "dataset": a frozen dataclass whose `load` reads, or makes, the data.

    One whose cut belongs to a partition has check_partition(name, parameters), too.
    """

    def load(self, folder: Path) -> Dataset:
        """The data set, from its files under the data directory `folder`."""
        ...
