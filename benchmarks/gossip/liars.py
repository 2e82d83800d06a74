"""Peers that lie."""

from __future__ import annotations

import sys
from statistics import median
from typing import Any

import numpy as np

from benchmarks.gossip.setting import CORRECTED, PAPER, TOPOLOGIES, experiment, first, history, rounded
from benchmarks.harness import table
from fedgen.topology.network import network_of

LIES: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "x 30": {"name": "scaling", "scale": 30.0},
    "x -2": {"name": "sign_flip", "scale": 2.0},
    "noise": {"name": "gaussian", "scale": 3.0},
    "zeros": {"name": "zeros"},
}
ROBUST: dict[str, Any] = {"rule": "trimmed_mean", "f": 2}
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "trimmed mean, auto": (ROBUST | CORRECTED, False),
    "trimmed mean, auto, liars anywhere": (ROBUST | CORRECTED, True),
    "trimmed mean, the paper's target": (ROBUST | PAPER, False),
    "trimmed mean alone": (ROBUST, False),
    "mean, the paper's target": (PAPER, False),
}
"""(aggregation, whether liars are placed at random) of every row."""


def placed(seed: int, random: bool) -> list[int]:
    """Six of 64 liars: at random, or drawn so that nobody has more than two of them for neighbours."""
    generator = np.random.default_rng(seed)
    graph = experiment({"experiment": {"seed": seed}, "gossip": {"topology": TOPOLOGIES["8-regular"]}})
    hears = network_of(graph).graph(0).hears
    while True:
        liars = generator.choice(64, 6, replace=False)
        if random or np.asarray(hears[:, liars].sum(axis=1)).max() <= 2:
            return sorted(int(liar) for liar in liars)


def liars(seeds: list[int], tiny: bool) -> str:
    """Six of 64 peers lie, 8-regular, trimmed mean with f = 2: rounds to 90 % (last mean accuracy of the honest)."""
    rows = []
    for name, (aggregation, random) in list(CASES.items())[: 1 if tiny else None]:
        cells = []
        for lie in list(LIES.values())[: 2 if tiny else None]:
            found = []
            for seed in seeds:
                changes = {
                    "experiment": {"seed": seed},
                    "federation": {"rounds": 5 if tiny else 150},
                    "gossip": {"topology": TOPOLOGIES["8-regular"]},
                    "aggregation": aggregation,
                    "byzantine": {"attack": lie, "clients": placed(seed, random)},
                }
                found.append(history(experiment(changes)))
            ninety = median(first(each["accuracy"], 0.9) for each in found)
            last = median(float(np.nan_to_num(each["accuracy"][-1])) for each in found)
            cells.append(f"{rounded(ninety)} ({last:.3f})")
        print(name, cells, file=sys.stderr, flush=True)
        rows.append([name, *cells])
    return table(("merge", *list(LIES)[: 2 if tiny else None]), rows)
