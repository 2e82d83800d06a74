"""Byzantine peers."""

from __future__ import annotations

import sys
from statistics import median
from typing import Any

import numpy as np

from benchmarks.gossip.setting import CORRECTED, PAPER, TOPOLOGIES, experiment, first, history, rounded
from benchmarks.harness import table
from fedgen.topology.network import network_of

ATTACKS: dict[str, dict[str, Any]] = {
    "none": {"name": "none"},
    "x 30": {"name": "scaling", "scale": 30.0},
    "x -2": {"name": "sign_flip", "scale": 2.0},
    "noise": {"name": "gaussian", "scale": 3.0},
    "zeros": {"name": "zeros"},
}
ROBUST: dict[str, Any] = {"rule": "trimmed_mean", "f": 2}
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "trimmed mean, auto": (ROBUST | CORRECTED, False),
    "trimmed mean, auto, Byzantine anywhere": (ROBUST | CORRECTED, True),
    "trimmed mean, the paper's target": (ROBUST | PAPER, False),
    "trimmed mean alone": (ROBUST, False),
    "mean, the paper's target": (PAPER, False),
}
"""Row -> (aggregation, whether Byzantine peers are placed at random)."""


def placed(seed: int, random: bool) -> list[int]:
    """Six Byzantine peers of 64: at random, or such that no peer has more than two Byzantine neighbours."""
    generator = np.random.default_rng(seed)
    graph = experiment({"experiment": {"seed": seed}, "gossip": {"topology": TOPOLOGIES["8-regular"]}})
    hears = network_of(graph).graph(0).hears
    while True:
        chosen = generator.choice(64, 6, replace=False)
        if random or np.asarray(hears[:, chosen].sum(axis=1)).max() <= 2:
            return sorted(int(peer) for peer in chosen)


def byzantine(seeds: list[int], tiny: bool) -> str:
    """Six of 64 peers are Byzantine, 8-regular, trimmed mean with f = 2: rounds to 90 % (last honest mean accuracy)."""
    rows = []
    for name, (aggregation, random) in list(CASES.items())[: 1 if tiny else None]:
        cells = []
        for attack in list(ATTACKS.values())[: 2 if tiny else None]:
            found = []
            for seed in seeds:
                changes = {
                    "experiment": {"seed": seed},
                    "federation": {"rounds": 5 if tiny else 150},
                    "gossip": {"topology": TOPOLOGIES["8-regular"]},
                    "aggregation": aggregation,
                    "byzantine": {"attack": attack, "clients": placed(seed, random)},
                }
                found.append(history(experiment(changes)))
            ninety = median(first(each["accuracy"], 0.9) for each in found)
            last = median(float(np.nan_to_num(each["accuracy"][-1])) for each in found)
            cells.append(f"{rounded(ninety)} ({last:.3f})")
        print(name, cells, file=sys.stderr, flush=True)
        rows.append([name, *cells])
    return table(("merge", *list(ATTACKS)[: 2 if tiny else None]), rows)
