"""Sentences with labels from CSV files, as a frozen encoder of text sees them."""

from __future__ import annotations

import csv
import hashlib
import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedgen.data.archive import keep, kept
from fedgen.data.dataset import Dataset
from fedgen.data.encoded import built
from fedgen.data.features import numbered
from fedgen.errors import SettingError
from fedgen.registry import register


@register("dataset", "text")
@dataclass(frozen=True, kw_only=True)
class Text:
    """Sentences with labels from two CSV files, as embeddings of a frozen encoder of text.

    The encoder is a registered one, or a class of your own as 'module:Class' whose encode(texts) gives one row of
    numbers a text.  Embeddings are kept in encoded/HASH.npz of the data directory, HASH being that of texts, encoder,
    parameters and code.

    Raises SettingError where a file is not there or has no such columns, or the encoder does not fit.
    """

    train: Annotated[str, Field(description="CSV file, relative to the data directory")] = "banking77/train.csv"
    test: Annotated[str, Field(description="CSV file, relative to the data directory")] = "banking77/test.csv"
    text: Annotated[str, Field(description="column of the sentences")] = "text"
    label: Annotated[str, Field(description="column of the labels")] = "category"
    encoder: Annotated[str, Field(description="encoder of text, or a class of your own as 'module:Class'")] = "minilm"
    parameters: Annotated[dict[str, Any], Field(description="parameters of the encoder")] = field(default_factory=dict)
    norm: Annotated[float | None, Field(gt=0, description="mean Euclidean length of a training embedding")] = 10.0

    def load(self, folder: Path) -> Dataset:
        columns = [self._read(folder / name) for name in (self.train, self.test)]
        (texts, labels), (test_texts, test_labels) = columns
        encoder = built("text_encoder", "data.dataset.encoder", self.encoder, self.parameters)
        path = folder / "encoded" / f"{self._hash(encoder, texts, test_texts)}.npz"
        x, test_x = kept(path) or keep(path, (self._rows(encoder, texts), self._rows(encoder, test_texts)))
        factor = 1.0 if self.norm is None else self.norm / float(x.norm(dim=1).mean())
        classes, (y, test_y) = numbered(np.array(labels), np.array(test_labels))
        name = f"{Path(self.train).stem} by {self.encoder}"
        return Dataset(name=name, x=factor * x, y=y, test_x=factor * test_x, test_y=test_y, classes=classes)

    def _read(self, path: Path) -> tuple[list[str], list[str]]:
        """The two columns of a file."""
        try:
            with path.open(newline="", encoding="utf-8") as file:
                records = list(csv.DictReader(file))
            return [record[self.text] for record in records], [record[self.label] for record in records]
        except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
            raise SettingError(
                f"runtime.data_dir: {path} cannot be read as text ({type(error).__name__}: {error}); expected a CSV "
                f"file with the columns {self.text!r} and {self.label!r}"
            ) from error

    def _hash(self, encoder: Any, *parts: list[str]) -> str:
        digest = hashlib.sha256(json.dumps([parts, self.encoder, self.parameters, torch.__version__]).encode())
        source = inspect.getsourcefile(type(encoder))
        digest.update(Path(source).read_bytes() if source else b"")
        return digest.hexdigest()[:32]

    def _rows(self, encoder: Any, texts: list[str]) -> Tensor:
        with torch.no_grad():
            rows = torch.as_tensor(encoder.encode(texts))
        if rows.dim() != 2 or len(rows) != len(texts) or not rows.is_floating_point():
            raise SettingError(
                f"data.dataset.encoder {self.encoder!r} gives {tuple(rows.shape)} of {rows.dtype} for {len(texts)} "
                "texts; expected one row of numbers a text, [texts, features]"
            )
        return rows.float()
