"""The common settings of all parts: digits over 64 peers, one batch per round; and the numbers of a run."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from fedgen import Experiment, run
from fedgen.data.dataset import Dataset
from fedgen.data.digits import Digits

Tables = Mapping[str, Mapping[str, Any]]
History = dict[str, Any]

CORRECTED: dict[str, Any] = {"wrappers": ["variance_correction"]}
PAPER: dict[str, Any] = {"wrappers": [{"name": "variance_correction", "policy": "paper"}]}
SUMMED: dict[str, Any] = {"wrappers": ["delta_sum", "variance_correction"]}
MERGES: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "corrected": {"aggregation": CORRECTED},
    "same initial model": {"gossip": {"seed_agreement": True}},
}
TOPOLOGIES: dict[str, Any] = {
    "ring": "ring",
    "4-regular": {"name": "k_regular", "degree": 4},
    "8-regular": {"name": "k_regular", "degree": 8},
    "scale-free": "scale_free",
}
BASE: dict[str, dict[str, Any]] = {
    "data": {
        "clients": 64,
        "partition": {"name": "dirichlet", "alpha": 0.5},
        "standardise": True,
        "validation": 0.0,
    },
    "model": {"name": "mlp", "hidden": [64, 64], "init": "xavier"},
    "training": {
        "steps": 1,
        "batch_size": 16,
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4},
    },
    "federation": {"mode": "gossip"},
    "gossip": {"topology": TOPOLOGIES["4-regular"]},
    "runtime": {"backend": "serial", "checkpoint_every": 10_000},
    "tracking": {"report": False},
}


@dataclass(frozen=True, kw_only=True)
class DrawnDigits:
    """Digits with training samples drawn with replacement, enough for all peers."""

    samples: Annotated[int, Field(ge=1, description="training samples")] = 1437

    def load(self, folder: Path) -> Dataset:
        digits = Digits().load(folder)
        drawn = torch.from_numpy(np.random.default_rng(0).integers(len(digits.y), size=self.samples))
        return Dataset(
            "drawn digits", digits.x[drawn], digits.y[drawn], digits.test_x, digits.test_y, classes=digits.classes
        )


def experiment(*changes: Tables) -> Experiment:
    """BASE with some keys of some tables changed, one change after another."""
    tables = {name: dict(keys) for name, keys in BASE.items()}
    for change in changes:
        for name, keys in change.items():
            tables[name] = {**tables.get(name, {}), **keys}
    return Experiment(**tables)


def history(chosen: Experiment) -> History:
    with tempfile.TemporaryDirectory() as folder:
        return run(chosen, Path(folder) / "run").history


def histories(seeds: Sequence[int], *changes: Tables) -> list[History]:
    """One run per seed; prints to stderr when 80 and 90 % were reached."""
    found = []
    for seed in seeds:
        found.append(history(experiment(*changes, {"experiment": {"seed": seed}})))
        told = [rounded(first(found[-1]["accuracy"], level)) for level in (0.8, 0.9)]
        print(f"seed {seed}: {' / '.join(told)}", file=sys.stderr, flush=True)
    return found


def first(values: Sequence[float], level: float) -> float:
    """The first round, counted from 1, with at least that value; infinite if there is none."""
    reached = np.flatnonzero(np.nan_to_num(values) >= level)
    return float(reached[0] + 1) if len(reached) else float("inf")


def rounded(rounds: float) -> str:
    """Rounds as text for a table."""
    return "-" if rounds == float("inf") else f"{rounds:.0f}"
