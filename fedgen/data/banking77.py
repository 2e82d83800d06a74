"""Banking77: embeddings of customers' queries, 77 intents."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from fedgen.data.archive import read_embeddings, scaled
from fedgen.data.dataset import Dataset, Source
from fedgen.registry import register

FILE = Path("banking77") / "minilm.npz"


@register("dataset", "banking77")
@dataclass(frozen=True, kw_only=True)
class Banking77(Source):
    """Banking77: MiniLM embeddings of 10,003 training and 3,080 test queries, 77 intents (banking77/minilm.npz).

    x[s, 384], of length `norm`.

    Raises SettingError where the file is not there, or damaged.
    Source: I. Casanueva et al., Efficient intent detection with dual sentence encoders, NLP4ConvAI 2020; embeddings of
    all-MiniLM-L6-v2.
    """

    norm: Annotated[float, Field(gt=0, description="mean Euclidean length of an embedding")] = 10.0

    def load(self, folder: Path) -> Dataset:
        names = ("x_train", "y_train", "x_test", "y_test", "classes")
        arrays = read_embeddings(folder, FILE, names, "the embeddings of Banking77")
        x, test_x = (arrays[name].astype(np.float32) for name in ("x_train", "x_test"))
        y, test_y = (torch.from_numpy(arrays[name].astype(np.int64)) for name in ("y_train", "y_test"))
        return Dataset(
            name="banking77",
            x=torch.from_numpy(scaled(x, self.norm)),
            y=y,
            test_x=torch.from_numpy(scaled(test_x, self.norm, like=x)),
            test_y=test_y,
            classes=tuple(map(str, arrays["classes"])),
        )
