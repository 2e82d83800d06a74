"""What data sets of embeddings share: encode once, keep under the hash of what made them, scale."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedgen import registry
from fedgen.data.archive import keep, kept
from fedgen.errors import SettingError
from fedgen.mistakes import validated
from fedgen.parameters import Array


class TextEncoder(Protocol):
    """What is registered as a "text_encoder"."""

    def encode(self, texts: Sequence[str]) -> Array:
        """One row of numbers a text, [texts, features]."""
        ...


Parts = tuple[Tensor, Tensor]
"""Of the training and of the test samples."""


@dataclass(frozen=True)
class Encoding:
    """An encoder as an experiment names it, and the mean length that its embeddings are scaled to, if any."""

    name: str
    parameters: Mapping[str, object]
    norm: float | None

    def embeddings(self, folder: Path, made: object, content: str, encode: Callable[[], Parts]) -> Parts:
        """What `encode` gives, or gave before.

        They are kept in encoded/HASH.npz of the data directory; where that cannot be written they are computed again.
        made: the encoder; content: names the samples.
        """
        path = folder / "encoded" / f"{self._hash(made, content)}.npz"
        x, test_x = kept(path) or keep(path, encode())
        factor = 1.0 if self.norm is None else self.norm / float(x.norm(dim=1).mean())
        return factor * x, factor * test_x

    def _hash(self, made: object, content: str) -> str:
        """Of everything that the embeddings depend on: samples, encoder, code, and the weights of a torch module."""
        named = [content, self.name, dict(self.parameters), torch.__version__]
        digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode())
        source = inspect.getsourcefile(type(made))
        digest.update(Path(source).read_bytes() if source else b"")
        for name, tensor in made.state_dict().items() if isinstance(made, nn.Module) else ():
            digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:32]

    def checked(self, rows: Tensor, count: int, samples: str) -> Tensor:
        """float32[count, features]. Raises SettingError where the encoder gave anything else."""
        if rows.dim() != 2 or len(rows) != count or not rows.is_floating_point():
            raise SettingError(
                f"data.dataset.encoder {self.name!r} gives {tuple(rows.shape)} of {rows.dtype} for {count} {samples}s; "
                f"expected one row of numbers a {samples}, [{samples}s, features]"
            )
        return rows.float()


def built(kind: str, key: str, name: str, params: Mapping[str, object]) -> Any:
    """The part of that name with its parameters checked; key: of the experiment file, for what is wrong with them."""
    return registry.build(kind, name, validated(registry.parameters(registry.find(kind, name)), params, name, key))
