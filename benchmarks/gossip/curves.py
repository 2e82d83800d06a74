"""The pictures of the docs: a CNN on MNIST with plain and corrected gossip and in a star; variances of the example."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.gossip.setting import CORRECTED, Tables, first, histories, rounded
from benchmarks.harness import ROOT, table
from fedgen import load_experiment, run
from fedgen.data.dataset import Dataset
from fedgen.registry import build
from fedgen.server.report import figures
from fedgen.server.report.canvas import standalone
from fedgen.server.store.journal import read_lines

PEERS = 32
SCALE_FREE: Tables = {"gossip": {"topology": "scale_free"}}
MERGES: dict[str, Tables] = {
    "federation": {"federation": {"mode": "star", "cohort": PEERS}, "training": {"keep_optimizer": True}},
    "gossip, corrected": {**SCALE_FREE, "aggregation": CORRECTED},
    "gossip, plain": SCALE_FREE,
}


@dataclass(frozen=True)
class EveryTwentieth:
    """Every twentieth image of MNIST: 3,000 for training, 500 for the test."""

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
        rounds, every = (4, 2) if tiny else (600, 20) if slow else (300, 10)
        length = {"federation": {"rounds": rounds, "evaluate_every": every}}
        found = [np.array(each["accuracy"]) for each in histories(seeds, setting, changes, length)]
        played = np.flatnonzero(np.isfinite(found[0]))
        series[name] = (played + 1).tolist(), np.mean(found, axis=0)[played].tolist()
        reached = [rounded(median(first(each, level) for each in found)) for level in (0.8, 0.9)]
        rows.append([name, *reached, f"{median(float(each[-1]) for each in found):.3f} ({rounds} rounds)"])
    if not tiny:
        described = f"mean test accuracy over the rounds: {', '.join(series)}"
        save("gossip", figures.curves(series, "accuracy (%)", percent=True), described)
    return table(("", "80 %", "90 %", "last mean accuracy"), rows)


def example(seeds: list[int], tiny: bool) -> str:
    """examples/gossip.toml, and with plain averaging: rounds to 80 and 90 %, variance of the hidden weights."""
    series, rows = {}, []
    for name, aggregation in {"corrected": CORRECTED, "plain": {"wrappers": []}}.items():
        rounds = {"federation": {"rounds": 10 if tiny else 500}}
        chosen = load_experiment(ROOT / "examples" / "gossip.toml").replace(
            **rounds, aggregation=aggregation, tracking={"report": False}
        )
        with tempfile.TemporaryDirectory() as folder:
            accuracy = run(chosen, Path(folder) / "run").history["accuracy"]
            records = read_lines(Path(folder) / "run" / "metrics.jsonl")
        told = [record for record in records if "variance" in record]
        variances = [record["variance"]["3.weight"] for record in told]
        series[name] = [record["round"] for record in told], variances
        reached = [rounded(first(accuracy, level)) for level in (0.8, 0.9)]
        last = f"{accuracy[149]:.3f}" if len(accuracy) > 149 else "-"
        rows.append([name, *reached, last, f"{accuracy[-1]:.3f}", f"{64 * min(variances):.2g}"])
    if not tiny:
        described = "variance of the second layer's weights over the rounds, with and without correction"
        save("gossip-variance", figures.curves(series, "variance", log=True), described)
    return table(("", "80 %", "90 %", "after 150 rounds", "after 500", "least variance, of the first"), rows)


def save(name: str, svg: str, description: str) -> None:
    """docs/images/NAME.svg."""
    path = ROOT / "docs" / "images" / f"{name}.svg"
    path.write_text(standalone(svg, description))
    print(f"{path} written", file=sys.stderr)
