"""Rounds, or ticks, to an accuracy: by graph and model, in virtual time, with lost messages and churn."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np

from benchmarks.gossip.setting import (
    BASE,
    CORRECTED,
    MERGES,
    PAPER,
    SUMMED,
    TOPOLOGIES,
    History,
    Tables,
    first,
    histories,
    rounded,
)
from benchmarks.harness import table

ADDED_UP: dict[str, Tables] = {"delta_sum, corrected": {"aggregation": SUMMED}}


def cell(seeds: list[int], *changes: Tables) -> str:
    """ "rounds to 80 % / to 90 % / until the tenth percentile has 90 %", the last mean accuracy behind them."""
    found = histories(seeds, *changes)
    levels = (("accuracy", 0.8), ("accuracy", 0.9), ("p10_accuracy", 0.9))
    words = " / ".join(rounded(median(first(each[name], level) for each in found)) for name, level in levels)
    return f"{words} ({median(float(each['accuracy'][-1]) for each in found):.3f})"


def topologies(seeds: list[int], tiny: bool) -> str:
    """Rounds by topology and merge: to 80 %, to 90 %, until the tenth percentile has 90 % (last mean accuracy)."""

    def played(name: str, merge: str) -> Tables:
        rounds = 10 if tiny else 600 if merge == "plain" else 350 if name == "ring" else 150
        return {"federation": {"rounds": rounds, **every(merge)}, "gossip": {"topology": TOPOLOGIES[name]}}

    rows = [
        [name, *(cell(seeds, changes, played(name, merge)) for merge, changes in MERGES.items())]
        for name in list(TOPOLOGIES)[: 1 if tiny else None]
    ]
    return table(("topology", *MERGES), rows)


def every(merge: str, rounds: int = 1) -> dict[str, int]:
    """Rounds between evaluations; more for plain averaging, which needs more rounds."""
    return {"evaluate_every": 5 * rounds if merge == "plain" else rounds}


def norms(seeds: list[int], tiny: bool) -> str:
    """Cases in which correction must do no harm: normalised layers, many local steps."""
    cases: dict[str, Tables] = {
        "LayerNorm": {"model": {"norm": "layer"}},
        "BatchNorm": {"model": {"norm": "batch"}, "data": {"partition": {**BASE["data"]["partition"], "minimum": 2}}},
        "20 local steps": {"training": {"steps": 20}},
    }

    def played(name: str) -> Tables:
        return {"federation": {"rounds": 5 if tiny else 60 if "steps" in name else 130}}

    merges: dict[str, Tables] = {"plain": {}, "auto": {"aggregation": CORRECTED}, "paper": {"aggregation": PAPER}}
    rows = [
        [name, *(cell(seeds, case, played(name), merge) for merge in merges.values())]
        for name, case in list(cases.items())[: 1 if tiny else None]
    ]
    return table(("model", *merges), rows)


def events(seeds: list[int], tiny: bool) -> str:
    """Virtual time: 50 peers, 8-regular, 8 to 12 ticks per training, a full inbox of all neighbours; ticks."""
    longest = {"plain": 8_000}
    rows = []
    for merge, changes in {**MERGES, **ADDED_UP}.items():
        setting: Tables = {
            "data": {"clients": 50},
            "federation": {"rounds": 60 if tiny else longest.get(merge, 1_500), **every(merge, 5)},
            "gossip": {"clock": "events", "topology": TOPOLOGIES["8-regular"]},
        }
        found = histories(seeds, setting, changes)
        rows.append([merge, *(each_seed(found, level) for level in (0.8, 0.9))])
    return table(("merge", "80 %: median (each seed)", "90 %: median (each seed)"), rows)


def each_seed(found: list[History], level: float) -> str:
    """Median of the times to reach a level, and those of the seeds."""
    reached = [first(each["accuracy"], level) for each in found]
    return f"{rounded(median(reached))} ({', '.join(map(rounded, reached))})"


def loss(seeds: list[int], tiny: bool) -> str:
    """Half of all messages lost, 4-regular; rounds."""
    rows = []
    for merge, changes in {**MERGES, **ADDED_UP}.items():
        for share in () if merge == "plain" else (0.0, 0.5):
            lossy: Tables = {"federation": {"rounds": 10 if tiny else 200}, "faults": {"loss": share}}
            found = histories(seeds, lossy, changes)
            rows.append([merge, f"{share:.0%}", *(each_seed(found, level) for level in (0.8, 0.9))])
    return table(("merge", "lost", "80 %: median (each seed)", "90 %: median (each seed)"), rows)


LEAVING = (100, 200)
READINGS = {
    "once, with probability .1 in all of the rounds 100 to 200": 1 - 0.9 ** (1 / (LEAVING[1] - LEAVING[0] + 1)),
    "with probability .1 in every one of them": 0.1,
}


def churn(seeds: list[int], tiny: bool) -> str:
    """Peers that leave for 20 rounds, 4-regular, corrected: points of mean accuracy under the run without churn."""
    played = {"rounds": 12 if tiny else 250}
    window = {"churn_rounds": [2, 6], "away": 3} if tiny else {"churn_rounds": list(LEAVING), "away": 20}
    changes: Tables = {"aggregation": CORRECTED}
    calm = [each["accuracy"] for each in histories(seeds, {"federation": played}, changes)]
    rows = []
    for reading, probability in READINGS.items():
        leaving: Tables = {"federation": played, "faults": {**window, "churn": probability}}
        found = [each["accuracy"] for each in histories(seeds, leaving, changes)]
        lost = [100 * (np.asarray(before) - np.asarray(after)) for before, after in zip(calm, found, strict=True)]
        worst = [float(each.max()) for each in lost]
        rows.append([reading, points(worst), points([float(each[-1]) for each in lost])])
    return table(("a peer leaves", "most, in any round", "after the last round"), rows)


def points(values: list[float]) -> str:
    return f"{median(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"


def delta(seeds: list[int], tiny: bool) -> str:
    """Sum of the changes in training (delta_sum): to 80 %, 90 %, tenth percentile (last mean accuracy)."""
    merges: dict[str, Tables] = {
        "mean, corrected": {"aggregation": CORRECTED},
        "delta_sum": {"aggregation": {"wrappers": ["delta_sum"]}},
        **ADDED_UP,
    }
    graphs = [name for name in TOPOLOGIES if name != "ring"][: 1 if tiny else None]

    def played(name: str) -> Tables:
        return {"federation": {"rounds": 10 if tiny else 150}, "gossip": {"topology": TOPOLOGIES[name]}}

    rows = [[merge, *(cell(seeds, played(name), changes) for name in graphs)] for merge, changes in merges.items()]
    return table(("merge", *graphs), rows)


PARTS: dict[str, Any] = {
    "topologies": topologies,
    "norms": norms,
    "delta": delta,
    "events": events,
    "loss": loss,
    "churn": churn,
}
