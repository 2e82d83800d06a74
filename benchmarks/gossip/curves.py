"""A CNN on MNIST over 32 peers: plain and corrected gossip and a federation in one picture."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.gossip.setting import BASE, CORRECTED, Tables, first, histories, rounded
from benchmarks.harness import ROOT, table
from fedgen.data.dataset import Dataset
from fedgen.registry import build
from fedgen.server import figures
from fedgen.server.report_canvas import standalone

PICTURE = ROOT / "docs" / "images" / "gossip.svg"
PEERS = 32
SCALE_FREE: dict[str, Any] = {**BASE["federation"], "topology": "scale_free"}
MERGES: dict[str, Tables] = {
    "federation": {"federation": {"mode": "star", "cohort": PEERS}, "training": {"keep_optimizer": True}},
    "gossip, corrected": {"federation": SCALE_FREE, "aggregation": CORRECTED},
    "gossip, plain": {"federation": SCALE_FREE},
}


@dataclass(frozen=True)
class EveryTwentieth:
    """Every twentieth image of MNIST: 3,000 for training, 500 held back."""

    def load(self, folder: Path) -> Dataset:
        whole: Dataset = build("dataset", "mnist", {}).load(folder)
        part = slice(0, None, 20)
        return replace(whole, x=whole.x[part], y=whole.y[part], test_x=whole.test_x[part], test_y=whole.test_y[part])


def curves(seeds: list[int], tiny: bool) -> str:
    """A CNN on MNIST (every twentieth image) over 32 peers, scale-free, Dirichlet .5, one step a round; rounds."""
    setting: Tables = {
        "data": {"clients": PEERS, "dataset": "digits" if tiny else "benchmarks.gossip.curves:EveryTwentieth"},
        "model": {"name": "cnn", "hidden": 64 if tiny else 128, "channels": [8] if tiny else [32, 64]},
    }
    series, rows = {}, []
    for name, changes in MERGES.items():
        slow = "plain" in name
        rounds, every = (4, 2) if tiny else (800, 20) if slow else (300, 10)
        length = {"federation": {**changes["federation"], "rounds": rounds, "evaluate_every": every}}
        found = [np.array(each["accuracy"]) for each in histories(seeds, setting, changes, length)]
        played = np.flatnonzero(np.isfinite(found[0]))
        series[name] = (played + 1).tolist(), np.mean(found, axis=0)[played].tolist()
        reached = [rounded(median(first(each, level) for each in found)) for level in (0.8, 0.9)]
        rows.append([name, *reached, f"{median(float(each[-1]) for each in found):.3f} ({rounds} rounds)"])
    if not tiny:
        drawn = figures.curves(series, "accuracy (%)", percent=True)
        PICTURE.write_text(standalone(drawn, f"mean test accuracy over the rounds: {', '.join(series)}"))
        print(f"{PICTURE} written", file=sys.stderr)
    return table(("", "80 %", "90 %", "last mean accuracy"), rows)
