"""Robust rules of ByzFL and byzpy on the same rows: CPU seconds per call, the best of several, as one line of JSON.

python -m benchmarks.peers.rules PEER RULE N D REPEATS
"""
# mypy: disable-error-code="import-not-found,misc"

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.rules import ALIE, byzantine_of, rows_of, seconds


def byzfl_rule(rule: str, f: int) -> Callable[[torch.Tensor], Any]:
    import byzfl

    if rule == "nnm mean":
        mix, average = byzfl.NNM(f), byzfl.Average()
        return lambda rows: average(mix(rows))
    if rule == ALIE:
        attack = byzfl.Optimal_ALittleIsEnough(agg=byzfl.GeometricMedian(), pre_agg_list=[byzfl.NNM(f)], f=f)
        return lambda rows: attack(rows[f:])
    named = {
        "median": lambda: byzfl.Median(),
        "trimmed_mean": lambda: byzfl.TrMean(f),
        "meamed": lambda: byzfl.Meamed(f),
        "geometric_median": lambda: byzfl.GeometricMedian(),
        "krum": lambda: byzfl.Krum(f),
        "caf": lambda: byzfl.CAF(f),
    }
    return named[rule]()  # type: ignore[no-any-return]


def byzpy_rule(rule: str, f: int) -> Callable[[torch.Tensor], Any]:
    from byzpy.aggregators import coordinate_wise, geometric_wise, norm_wise
    from byzpy.pre_aggregators import NearestNeighborMixing

    if rule == "nnm mean":
        mix = NearestNeighborMixing(f)
        return lambda rows: torch.stack(mix.pre_aggregate(list(rows))).mean(0)
    named = {
        "median": lambda: coordinate_wise.CoordinateWiseMedian(),
        "trimmed_mean": lambda: coordinate_wise.CoordinateWiseTrimmedMean(f),
        "meamed": lambda: coordinate_wise.MeanOfMedians(f),
        "geometric_median": lambda: geometric_wise.GeometricMedian(),
        "krum": lambda: geometric_wise.Krum(f),
        "caf": lambda: norm_wise.CAF(f),
    }
    aggregator = named[rule]()
    return lambda rows: aggregator.aggregate(list(rows))


def main(peer: str, rule: str, n: int, d: int, repeats: int) -> None:
    torch.set_num_threads(1)
    rows = rows_of(n, d)
    call = (byzfl_rule if peer == "ByzFL" else byzpy_rule)(rule, byzantine_of(n))
    print(json.dumps({"seconds": seconds(lambda: call(rows), repeats)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
