"""A data set as a frozen encoder sees it; embeddings are computed once, and kept under the hash of what made them."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from fedgen import registry
from fedgen.data.archive import keep, kept
from fedgen.data.dataset import Dataset
from fedgen.errors import SettingError
from fedgen.mistakes import validated
from fedgen.models.model import own_generator, seed_generator
from fedgen.registry import register

TOGETHER = 256
"""Samples that are encoded at a time."""


@register("dataset", "encoded")
@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Another data set as embeddings of a frozen encoder: a registered one, or any torch.nn.Module as 'module:Class'.

    x <- encoder(x), scaled to the mean length `norm`.  An encoder may learn from the training samples, never from
    labels.  Embeddings are kept in encoded/HASH.npz of the data directory, HASH being that of samples, encoder, weights
    and code; where that cannot be written they are computed again.

    Raises SettingError where the encoder cannot be made, or does not give one row of numbers a sample.
    """

    dataset: Annotated[
        str | dict[str, Any], Field(description="data set that is encoded: a name, or a table with a name")
    ] = "mnist"
    encoder: Annotated[str, Field(description="encoder, or your own torch.nn.Module as 'module:Class'")] = "patches"
    parameters: Annotated[dict[str, Any], Field(description="parameters of the encoder")] = field(default_factory=dict)
    norm: Annotated[float | None, Field(gt=0, description="mean Euclidean length of a training embedding")] = 10.0

    def load(self, folder: Path) -> Dataset:
        inner: Dataset = self._inner().load(folder)
        path = folder / "encoded" / f"{self._hash(inner)}.npz"
        x, test_x = kept(path) or keep(path, self._encoded(inner))
        factor = 1.0 if self.norm is None else self.norm / float(x.norm(dim=1).mean())
        return replace(inner, name=f"{inner.name} by {self.encoder}", x=factor * x, test_x=factor * test_x)

    def _inner(self) -> Any:
        table = {"name": self.dataset} if isinstance(self.dataset, str) else dict(self.dataset)
        return built("dataset", "data.dataset.dataset", str(table.pop("name", "")), table)

    def _maker(self) -> Any:
        return built("encoder", "data.dataset.encoder", self.encoder, self.parameters)

    def _hash(self, inner: Dataset) -> str:
        """Of everything that the embeddings depend on; of a module of the user's own its weights too."""
        made = self._seeded(self._maker)
        digest = hashlib.sha256(inner.sha256.encode())
        digest.update(json.dumps([self.encoder, self.parameters, torch.__version__], sort_keys=True).encode())
        source = inspect.getsourcefile(type(made))
        digest.update(Path(source).read_bytes() if source else b"")
        for name, tensor in made.state_dict().items() if isinstance(made, nn.Module) else ():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def _encoded(self, inner: Dataset) -> tuple[Tensor, Tensor]:
        made = self._seeded(self._maker)
        module = made if isinstance(made, nn.Module) else made.module(inner.x)
        module.eval()
        with torch.no_grad():
            parts = [torch.cat([module(batch) for batch in part.split(TOGETHER)]) for part in (inner.x, inner.test_x)]
        for part, samples in zip(parts, (inner.x, inner.test_x), strict=True):
            if part.dim() != 2 or len(part) != len(samples) or not part.is_floating_point():
                raise SettingError(
                    f"data.dataset.encoder {self.encoder!r} gives {tuple(part.shape)} of {part.dtype} for "
                    f"{len(samples)} samples; expected one row of numbers a sample, [samples, features]"
                )
        return parts[0].float(), parts[1].float()

    @staticmethod
    def _seeded(make: Any) -> Any:
        """Random weights of a module of the user's own are the same in every process."""
        with own_generator():
            seed_generator(0)
            return make()


def built(kind: str, key: str, name: str, params: Mapping[str, Any]) -> Any:
    """The part of that name with its parameters checked; key: of the experiment file, for what is wrong with them."""
    return registry.build(kind, name, validated(registry.parameters(registry.find(kind, name)), params, name, key))
