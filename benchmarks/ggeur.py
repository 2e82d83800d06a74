"""GGEUR and heads in closed form: choice of a head, convergence, uploads, attacks, privacy and speed.

python -m benchmarks.ggeur [--tiny] [SEED ...] [TABLE ...]

Tables: office.1, office.5 and banking (which head), rounds, uploads, attacks, privacy, speed, memory.

Numbers are of the test set in the final round, for the cases of benchmarks/ggeur_cases.py, with settings chosen as in
benchmarks/ggeur_heads.py. "published": the best round on the test set with the procedure of the public implementation
(benchmarks/published_ggeur.py).
"""

from __future__ import annotations

import sys
from functools import partial
from statistics import mean
from time import process_time
from typing import Any

import torch

from benchmarks import published_ggeur as published
from benchmarks.ggeur_cases import BANKING, CASES, CLOSED, OFFICE_1, OFFICE_5, Row
from benchmarks.ggeur_heads import heads_table, held_by
from benchmarks.ggeur_memory import memory_table
from benchmarks.harness import header, table
from fedgen.federation import Federation
from fedgen.geometry.sampler import augment
from fedgen.geometry.shapes import geometry_of
from fedgen.geometry.statistics import pooled, statistics_of
from fedgen.geometry.uploads import LowRank, Packed, Sums, dense_bytes, size_bytes
from fedgen.process import prepare_process


def rounds_table(seeds: tuple[int, ...], tiny: bool) -> str:
    """Rounds until the default settings reach their final accuracy."""
    rows = []
    for case in CASES[: 1 if tiny else None]:
        histories = [case.accuracies(seed, {}) for seed in seeds]
        before, first, last = (mean(history[place] for history in histories) for place in (0, 1, -1))
        rows.append([case.name, f"{before:.1f}", f"{first:.1f}", f"{last:.1f}", f"{100 * first / last:.1f} %"])
    return table(("the defaults", "before round 0", "after one round", "at the end", "one round / end"), rows)


UPLOADS: dict[str, tuple[Row, Any]] = {
    "packed, float64": ({}, Sums(10, 512)),
    "packed, float16": ({"precision": "float16"}, Packed(10, 512)),
    "rank 32, float16": ({"upload": "low_rank", "precision": "float16"}, LowRank(10, 512, 32)),
    "rank 8, float16": ({"upload": "low_rank", "rank": 8, "precision": "float16"}, LowRank(10, 512, 8)),
    "second moment, float16": ({"upload": "second_moment", "precision": "float16"}, Packed(10, 512, shared=True)),
}


def uploads_table(seeds: tuple[int, ...], tiny: bool) -> str:
    rows = []
    for name, (ggeur, upload) in list(UPLOADS.items())[: 2 if tiny else None]:
        cells = []
        for case in (OFFICE_1, OFFICE_5):
            for more in (CLOSED, {}):
                finals = (case.accuracies(seed, {**ggeur, **more})[-1] for seed in seeds)
                cells.append(f"{mean(finals):.1f}")
        times = dense_bytes(10, 512) / size_bytes(upload)
        rows.append([name, f"{size_bytes(upload) / 1e6:.2f}", f"{times:.0f}", *cells])
    columns = ("ridge, beta .1", "default, beta .1", "ridge, beta .5", "default, beta .5")
    return table(("Office LDS, 10 classes, d = 512", "MB a client", "times smaller than dense float64", *columns), rows)


def attacks_table(seeds: tuple[int, ...], tiny: bool) -> str:
    """One of four clients sends its statistics times 100; mean over the choice of this client."""
    rows = []
    for name, (ggeur, _) in list(UPLOADS.items())[: 1 if tiny else None]:
        cells = []
        for pooling in ("plain", "bounded"):
            chosen = {**ggeur, **CLOSED, "pooling": pooling}
            cells.append(mean(OFFICE_1.accuracies(seed, chosen)[-1] for seed in seeds))
            attacks = [{"attack": {"name": "scaling", "scale": 100.0}, "clients": [client]} for client in range(4)]
            attacked = [OFFICE_1.accuracies(seed, chosen, byzantine=attack)[-1] for seed in seeds for attack in attacks]
            cells.append(mean(attacked))
        rows.append([name, *(f"{cell:.1f}" for cell in cells)])
    return table(("Office LDS, beta .1, ridge", "plain", "plain, attacked", "bounded", "bounded, attacked"), rows)


SETTINGS: Row = {"penalty": 0.003, "shrinkage": 0.1}
"""Settings of the heads on Banking77, chosen by validation."""


def privacy_table(seeds: tuple[int, ...], tiny: bool) -> str:
    """Heads from noisy sums; every embedding has norm 10, so clip = 10 clips none."""
    rows = []
    for epsilon in (None,) if tiny else (None, 8.0, 4.0, 2.0, 1.0):
        cells = []
        for start in ("ridge", "lda"):
            private = {} if epsilon is None else {"epsilon": epsilon, "clip": 10.0}
            chosen = {"upload": "second_moment", "start": start, **SETTINGS, **private, **CLOSED}
            cells.append(mean(BANKING.accuracies(seed, chosen)[-1] for seed in seeds))
        rows.append(["none" if epsilon is None else f"{epsilon:g}", *(f"{cell:.1f}" for cell in cells)])
    return table(("Banking77, epsilon at delta 1e-5", "ridge", "LDA"), rows)


def speed_table(seeds: tuple[int, ...], tiny: bool) -> str:
    """CPU seconds from embeddings to training samples, including statistics and their pooling."""
    prepare_process(1)
    federation = Federation(OFFICE_1.experiment(0, None))
    clients, _ = held_by(federation)
    covariances = torch.stack([pooled(held_by(federation)[1]).covariance(label) for label in range(10)]).numpy()
    theirs = published.augmentation_seconds(clients, covariances, 50, calls=8 if tiny else None)
    office = min(_job(clients, 10, 50, prototypes=50) for _ in range(5))
    per_class = 100 if tiny else 5_000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10 * per_class, 512, generator=generator)
    y, owner = torch.arange(10).repeat_interleave(per_class), torch.randperm(10 * per_class, generator=generator) % 10
    seconds = _job([(x[owner == k], y[owner == k]) for k in range(10)], 10, per_class, prototypes=0)
    rows = [
        ["Office LDS, beta .1: published, CPU s", f"{theirs:.1f}"],
        ["Office LDS, beta .1: fedgen, CPU s", f"{office:.3f}"],
        ["times faster", f"{theirs / office:.0f}"],
        [f"d = 512, 10 classes, 10 clients, {per_class:,} a class: fedgen, CPU s", f"{seconds:.2f}"],
    ]
    return table(("augmentation", "value"), rows)


def _job(clients: list[published.Client], classes: int, target: int, prototypes: int) -> float:
    """CPU seconds of the whole job."""
    began = process_time()
    statistics = [statistics_of(x, y, classes) for x, y in clients]
    geometry = geometry_of(pooled(statistics))
    means = torch.stack([torch.where((each.counts > 0)[:, None], each.means, torch.nan).float() for each in statistics])
    for client, (x, y) in enumerate(clients):
        others = means[torch.arange(len(means)) != client] if prototypes else None
        augment(
            x, y, geometry, target=target, centre="sample", prototypes=others, per_prototype=prototypes, seed=client
        )
    return process_time() - began


TABLES = {
    "office.1": partial(heads_table, OFFICE_1),
    "office.5": partial(heads_table, OFFICE_5),
    "banking": partial(heads_table, BANKING),
    "rounds": rounds_table,
    "uploads": uploads_table,
    "attacks": attacks_table,
    "privacy": privacy_table,
    "speed": speed_table,
    "memory": lambda _, tiny: memory_table(tiny),
}


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--tiny"]
    small, seeds_of = "--tiny" in sys.argv, tuple(int(word) for word in words if word.isdigit())
    print(header("python -m benchmarks.ggeur", ("torch", "numpy")))
    for wanted in [word for word in words if not word.isdigit()] or list(TABLES):
        print(f"\n{TABLES[wanted](seeds_of or ((0,) if small else (0, 1, 2)), small)}", flush=True)
