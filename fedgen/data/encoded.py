"""A data set as a frozen encoder sees it; embeddings are computed once, and kept under the hash of what made them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fedgen.data.dataset import Dataset, Source
from fedgen.data.embeddings import Encoding, Parts, built
from fedgen.models.model import own_generator, seed_generator
from fedgen.registry import register

TOGETHER = 256
"""Samples that are encoded at a time."""


@register("dataset", "encoded")
@dataclass(frozen=True, kw_only=True)
class Encoded(Source):
    """Another data set as embeddings of a frozen encoder: a registered one, or any torch.nn.Module as 'module:Class'.

    x <- encoder(x), scaled to the mean length `norm`.  An encoder may learn from the training samples, never from
    labels.  Embeddings are kept in encoded/HASH.npz of the data directory, HASH being that of samples, encoder, weights
    and code; where that cannot be written they are computed again.

    Raises SettingError where the encoder cannot be made, or does not give one row of numbers a sample.
    """

    dataset: Annotated[
        str | dict[str, object], Field(description="data set that is encoded: a name, or a table with a name")
    ] = "mnist"
    encoder: Annotated[str, Field(description="encoder, or your own torch.nn.Module as 'module:Class'")] = "patches"
    parameters: Annotated[dict[str, object], Field(description="parameters of the encoder")] = field(
        default_factory=dict
    )
    norm: Annotated[float | None, Field(gt=0, description="mean Euclidean length of a training embedding")] = 10.0

    def load(self, folder: Path) -> Dataset:
        inner: Dataset = self._inner().load(folder)
        made = self._seeded(self._maker)
        encoding = Encoding(self.encoder, self.parameters, self.norm)
        x, test_x = encoding.embeddings(folder, made, inner.sha256, lambda: self._encoded(made, inner, encoding))
        return replace(inner, name=f"{inner.name} by {self.encoder}", x=x, test_x=test_x)

    def _inner(self) -> Any:
        table = {"name": self.dataset} if isinstance(self.dataset, str) else dict(self.dataset)
        return built("dataset", "data.dataset.dataset", str(table.pop("name", "")), table)

    def _maker(self) -> Any:
        return built("encoder", "data.dataset.encoder", self.encoder, self.parameters)

    @staticmethod
    def _encoded(made: Any, inner: Dataset, encoding: Encoding) -> Parts:
        module = made if isinstance(made, nn.Module) else made.module(inner.x)
        module.eval()

        def rows(samples: Tensor) -> Tensor:
            together = torch.cat([module(batch) for batch in samples.split(TOGETHER)])
            return encoding.checked(together, len(samples), "sample")

        with torch.no_grad():
            return rows(inner.x), rows(inner.test_x)

    @staticmethod
    def _seeded(make: Any) -> Any:
        """Random weights of a module of the user's own are the same in every process."""
        with own_generator():
            seed_generator(0)
            return make()
