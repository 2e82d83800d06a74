"""Sentences with labels from CSV files, as a frozen encoder of text sees them."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedgen.data.dataset import Dataset, Source
from fedgen.data.embeddings import Encoding, Parts, built
from fedgen.data.features import numbered
from fedgen.errors import SettingError
from fedgen.registry import register


@register("dataset", "text")
@dataclass(frozen=True, kw_only=True)
class Text(Source):
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
    parameters: Annotated[dict[str, object], Field(description="parameters of the encoder")] = field(
        default_factory=dict
    )
    norm: Annotated[float | None, Field(gt=0, description="mean Euclidean length of a training embedding")] = 10.0

    def load(self, folder: Path) -> Dataset:
        columns = [self._read(folder / name) for name in (self.train, self.test)]
        (texts, labels), (test_texts, test_labels) = columns
        encoder = built("text_encoder", "data.dataset.encoder", self.encoder, self.parameters)
        encoding = Encoding(self.encoder, self.parameters, self.norm)
        content = json.dumps([texts, test_texts])
        x, test_x = encoding.embeddings(
            folder, encoder, content, lambda: self._encoded(encoder, encoding, texts, test_texts)
        )
        classes, (y, test_y) = numbered(np.array(labels), np.array(test_labels))
        name = f"{Path(self.train).stem} by {self.encoder}"
        return Dataset(name=name, x=x, y=y, test_x=test_x, test_y=test_y, classes=classes)

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

    @staticmethod
    def _encoded(encoder: Any, encoding: Encoding, *parts: list[str]) -> Parts:
        def rows(texts: list[str]) -> Tensor:
            return encoding.checked(torch.as_tensor(encoder.encode(texts)), len(texts), "text")

        with torch.no_grad():
            training, test = map(rows, parts)
        return training, test
