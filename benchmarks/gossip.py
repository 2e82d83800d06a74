"""Gossip with and without variance correction: digits over 64 peers, one batch a round, rounds to 80 and 90 %.

python -m benchmarks.gossip [--tiny] [--seeds N ...] [topologies | norms | liars | speed | memory ...]

Inputs standardised, MLP 64-64-64-10, Xavier with another seed at every peer, Dirichlet .5, SGD .01 with momentum .9 and
weight decay 5e-4, batch 16, keep .5, evaluated every round (plain averaging every fifth); a cell is the first round in
which the mean accuracy over the honest peers is 80 or 90 %, median of the seeds.  speed: CPU seconds of a round without
evaluation, samples drawn with replacement.  memory: 10,000 peers, 100 rounds, in a process of its own.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field

from benchmarks.harness import header, table
from fedgen import Experiment, run
from fedgen.data.dataset import Dataset
from fedgen.data.digits import Digits
from fedgen.server import gossip

CORRECTED: dict[str, Any] = {"wrappers": ["variance_correction"]}
PAPER: dict[str, Any] = {"wrappers": [{"name": "variance_correction", "policy": "paper"}]}
MERGES: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "corrected": {"aggregation": CORRECTED},
    "same initial model": {"federation": {"seed_agreement": True}},
}
TOPOLOGIES: dict[str, Any] = {
    "ring": "ring",
    "4-regular": {"name": "k_regular", "degree": 4},
    "8-regular": {"name": "k_regular", "degree": 8},
    "scale-free": "scale_free",
}
LIES: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "x 30": {"name": "scaling", "scale": 30.0},
    "x -2": {"name": "sign_flip", "scale": 2.0},
    "noise": {"name": "gaussian", "scale": 3.0},
    "zeros": {"name": "zeros"},
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
    "federation": {"mode": "gossip", "topology": TOPOLOGIES["4-regular"]},
    "runtime": {"backend": "serial", "checkpoint_every": 10_000},
    "tracking": {"report": False},
}


@dataclass(frozen=True, kw_only=True)
class DrawnDigits:
    """Digits, their training samples drawn with replacement: as many as there are peers to hold them."""

    samples: Annotated[int, Field(ge=1, description="training samples")] = 1437

    def load(self, folder: Path) -> Dataset:
        digits = Digits().load(folder)
        drawn = torch.from_numpy(np.random.default_rng(0).integers(len(digits.y), size=self.samples))
        return Dataset(
            "drawn digits", digits.x[drawn], digits.y[drawn], digits.test_x, digits.test_y, classes=digits.classes
        )


def experiment(*changes: Mapping[str, Mapping[str, Any]]) -> Experiment:
    tables = {name: dict(keys) for name, keys in BASE.items()}
    for change in changes:
        for name, keys in change.items():
            tables[name] = {**tables.get(name, {}), **keys}
    return Experiment(**tables)


def history(chosen: Experiment) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return run(chosen, Path(folder) / "run").history


def first(values: Any, level: float) -> float:
    """The first round, counted from 1, of at least that value; infinite where there is none."""
    reached = np.flatnonzero(np.nan_to_num(values) >= level)
    return float(reached[0] + 1) if len(reached) else float("inf")


def cell(seeds: list[int], *changes: Mapping[str, Mapping[str, Any]]) -> str:
    """ "rounds to 80 % / to 90 % / until the tenth percentile has 90 %", the last mean accuracy behind them."""
    found = [history(experiment(*changes, {"experiment": {"seed": seed}})) for seed in seeds]
    rounds = [
        median(first(each[name], level) for each in found)
        for name, level in (("accuracy", 0.8), ("accuracy", 0.9), ("p10_accuracy", 0.9))
    ]
    words = " / ".join("-" if value == float("inf") else f"{value:.0f}" for value in rounds)
    print(words, file=sys.stderr, flush=True)
    return f"{words} ({median(float(each['accuracy'][-1]) for each in found):.3f})"


def topologies(seeds: list[int], tiny: bool) -> str:
    """Rounds by topology and merge."""

    def rounds(name: str, merge: str) -> int:
        return 10 if tiny else 600 if merge == "plain" else 350 if name == "ring" else 150

    rows = [
        [
            name,
            *(
                cell(seeds, changes, {"federation": {**BASE["federation"], **changes.get("federation", {}),
                                                     "topology": topology, "rounds": rounds(name, merge),
                                                     "evaluate_every": 5 if merge == "plain" else 1}})
                for merge, changes in MERGES.items()
            ),
        ]
        for name, topology in list(TOPOLOGIES.items())[: 1 if tiny else None]
    ]  # fmt: skip
    return table(("topology", *MERGES), rows)


def norms(seeds: list[int], tiny: bool) -> str:
    """Where correction must not hurt: normalised layers, many local steps."""
    cases: dict[str, dict[str, dict[str, Any]]] = {
        "LayerNorm": {"model": {"norm": "layer"}},
        "BatchNorm": {"model": {"norm": "batch"}, "data": {"partition": {**BASE["data"]["partition"], "minimum": 2}}},
        "20 local steps": {"training": {"steps": 20}},
    }

    def rounds(name: str) -> dict[str, dict[str, Any]]:
        return {"federation": {"rounds": 5 if tiny else 60 if "steps" in name else 130}}

    merges = {"plain": {}, "corrected": {"aggregation": CORRECTED}, "paper": {"aggregation": PAPER}}
    rows = [
        [name, *(cell(seeds, case, rounds(name), merge) for merge in merges.values())]
        for name, case in list(cases.items())[: 1 if tiny else None]
    ]
    return table(("model", *merges), rows)


def placed(seed: int, random: bool) -> list[int]:
    """Six of 64 liars: at random, or drawn so that nobody has more than two of them for neighbours."""
    generator = np.random.default_rng(seed)
    graph = experiment({"experiment": {"seed": seed}, "federation": {"topology": TOPOLOGIES["8-regular"]}})
    from fedgen.topology.network import network_of

    hears = network_of(graph).graph(0).hears
    while True:
        liars = generator.choice(64, 6, replace=False)
        if random or np.asarray(hears[:, liars].sum(axis=1)).max() <= 2:
            return sorted(int(liar) for liar in liars)


def liars(seeds: list[int], tiny: bool) -> str:
    """Six of 64 peers lie, 8-regular, trimmed mean with f = 2."""
    robust = {"rule": "trimmed_mean", "f": 2}
    cases = {
        "trimmed mean, auto": (robust | CORRECTED, False),
        "trimmed mean, auto, liars anywhere": (robust | CORRECTED, True),
        "trimmed mean, the paper's target": (robust | PAPER, False),
        "trimmed mean alone": (robust, False),
        "mean, the paper's target": (PAPER, False),
    }
    rows = []
    for name, (aggregation, random) in list(cases.items())[: 1 if tiny else None]:
        cells = []
        for lie in list(LIES.values())[: 2 if tiny else None]:
            found = []
            for seed in seeds:
                changes = {
                    "experiment": {"seed": seed},
                    "federation": {"topology": TOPOLOGIES["8-regular"], "rounds": 5 if tiny else 150},
                    "aggregation": aggregation,
                    "byzantine": {"attack": lie, "clients": placed(seed, random)},
                }
                found.append(history(experiment(changes)))
            ninety = median(first(each["accuracy"], 0.9) for each in found)
            last = median(float(np.nan_to_num(each["accuracy"][-1])) for each in found)
            cells.append(f"{'-' if ninety == float('inf') else f'{ninety:.0f}'} ({last:.3f})")
        print(name, cells, file=sys.stderr, flush=True)
        rows.append([name, *cells])
    return table(("merge", *list(LIES)[: 2 if tiny else None]), rows)


def many(peers: int, rounds: int) -> Experiment:
    """Peers with 22 samples each in the mean, drawn with replacement, not evaluated before the end."""
    drawn = {"name": "benchmarks.gossip:DrawnDigits", "samples": 22 * peers}
    return experiment(
        {
            "data": {"dataset": drawn, "clients": peers},
            "federation": {"rounds": rounds, "evaluate_every": 10_000},
            "aggregation": CORRECTED,
        }
    )


def speed(seeds: list[int], tiny: bool) -> str:
    """Node-updates per CPU second, correction included."""
    rows = []
    for peers in (64,) if tiny else (64, 256, 1_024):
        seconds: list[float] = []
        with timed_rounds(seconds), tempfile.TemporaryDirectory() as folder:
            run(many(peers, 10 if tiny else max(40, 25_600 // peers)), Path(folder) / "run")
        rates = peers / np.array(seconds[2:])
        rows.append((peers, f"{np.median(rates):,.0f}", f"{np.quantile(rates, 0.9):,.0f}"))
    return table(("peers", "node-updates a CPU second, median round", "best tenth"), rows)


class timed_rounds:  # noqa: N801
    """Collects the CPU seconds of every round of gossip played inside it."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds, self.before = seconds, gossip.play_round

    def __enter__(self) -> None:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.process_time()
            record = self.before(*arguments, **named)
            self.seconds.append(time.process_time() - began)
            return record

        gossip.play_round = timed

    def __exit__(self, *exception: object) -> None:
        gossip.play_round = self.before


def memory(seeds: list[int], tiny: bool) -> str:
    """10,000 peers x 100 rounds in a process of its own."""
    peers, rounds = (100, 3) if tiny else (10_000, 100)
    script = f"from benchmarks.gossip import alone; alone({peers}, {rounds})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()
    return table(("peers", "rounds", "CPU seconds", "peak memory, GB"), [(peers, rounds, seconds, peak)])


def alone(peers: int, rounds: int) -> None:
    """What `memory` runs."""
    with tempfile.TemporaryDirectory() as folder:
        run(many(peers, rounds), Path(folder) / "run")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{time.process_time():.0f} {peak / 1e9:.2f}")


PARTS: dict[str, Callable[[list[int], bool], str]] = {
    "topologies": topologies,
    "norms": norms,
    "liars": liars,
    "speed": speed,
    "memory": memory,
}


def main(parts: list[str], seeds: list[int], tiny: bool) -> None:
    print(header(f"python -m benchmarks.gossip {' '.join(parts)}", ("torch", "numpy", "scipy")))
    for part in parts:
        print(f"\n{PARTS[part].__doc__} Seeds {', '.join(map(str, seeds))}.\n")
        print(PARTS[part](seeds, tiny))


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    numbers = [int(word) for word in words if word.isdigit()]
    small = "--tiny" in sys.argv
    main(
        [word for word in words if not word.isdigit()] or list(PARTS),
        numbers or ([0] if small else [0, 1, 2, 3, 4]),
        small,
    )
