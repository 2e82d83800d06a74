"""Robustness of every rule: its worst kappa over the registered attacks, for three kinds of honest updates.

python -m benchmarks.kappa [--tiny]

kappa = |A - mean_H|^2 / (mean over honest i of |g_i - mean_H|^2), A the aggregate of honest and Byzantine rows;
n = 15, f = 3, d = 4,000, the maximum over attacks on rows, in several strengths, and three draws. Honest updates: noise
plus a common direction of .1 or 1 times the length of the noise, or plus ten directions, mixed by Dirichlet .3 for
every client.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import header, table
from fedgen import registry
from fedgen.aggregation.call import rule_of

N, F = 15, 3
STRENGTHS: dict[str, list[dict[str, Any]]] = {
    "sign_flip": [{"scale": scale} for scale in (0.1, 0.5, 1.0, 10.0, 1e3)],
    "scaling": [{"scale": scale} for scale in (3.0, 30.0, 1e3)],
    "constant": [{"value": value} for value in (-1.0, 0.01, 100.0)],
    "gaussian": [{"scale": scale} for scale in (0.1, 1.0, 100.0)],
    "uniform": [{}, {"low": -1.0}],
    "ipm": [*({"epsilon": epsilon} for epsilon in (0.1, 0.5, 1.0, 2.0, 10.0)), {"optimize": True}],
    "alie": [*({"z": z} for z in (-3.0, -1.0, -0.3, 0.3, 1.0, 1.5, 3.0, 10.0)), {"optimize": True}],
    "min_max": [{"perturbation": towards} for towards in ("unit", "std", "sign")],
    "min_sum": [{"perturbation": towards} for towards in ("unit", "std", "sign")],
}
SILENT = ("none", "label_flip", "backdoor", "augmented", "garbage", "forged")
"""Attacks that poison data, or whose rows admission rejects."""

WRAPPED = ("geometric_median", "trimmed_mean", "flag", "krum")
"""Rules that are also measured inside nearest-neighbour mixing."""


def iid(signal: float, d: int, seed: int) -> Tensor:
    """rows[N, d] around a common direction of `signal` times the noise's length."""
    generator = torch.Generator().manual_seed(seed)
    return signal * torch.randn(d, generator=generator) + torch.randn(N, d, generator=generator)


def unlike(d: int, seed: int) -> Tensor:
    """rows[N, d]: ten directions by Dirichlet .3, and noise."""
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet([0.3] * 10, N)
    rows = shares @ generator.normal(size=(10, d)) + 0.3 * generator.normal(size=(N, d))
    return torch.from_numpy(rows).float()


def attacks() -> Iterator[Any]:
    for name in registry.members("attack"):
        if name not in SILENT:
            yield from (registry.build("attack", name, chosen) for chosen in STRENGTHS.get(name, [{}]))


def kappa(rule: Any, rows: Tensor, attack: Any) -> float:
    """kappa of a rule; the first F of rows[N, d] are Byzantine."""
    honest = rows[F:]
    centre = honest.mean(0)
    sent = attack(rows, list(range(F)), rule=rule, f=F, root=centre)
    aggregate = rule(sent, f=F, root=centre).aggregate
    spread = float((honest - centre).square().sum(1).mean())
    return float((aggregate - centre).double().square().sum()) / spread


def worst(rule: Any, d: int, seeds: range) -> list[str]:
    kinds = [
        [iid(0.1, d, seed) for seed in seeds],
        [iid(1.0, d, seed) for seed in seeds],
        [unlike(d, seed) for seed in seeds],
    ]
    return [f"{max(kappa(rule, rows, attack) for rows in draws for attack in attacks()):.3g}" for draws in kinds]


def main(tiny: bool) -> None:
    d, seeds = (200, range(1)) if tiny else (4_000, range(3))
    alone = {name: rule_of(name, [], {}) for name in registry.members("rule")}
    alone["flag, form paper"] = rule_of("flag", [], {"form": "paper"})
    mixed = {f"nnm, {name}": rule_of(name, ["nnm"], {}) for name in WRAPPED}
    rows = [[name, *worst(rule, d, seeds)] for name, rule in (alone | mixed).items() if rule.minimum(F) <= N]
    print(header("python -m benchmarks.kappa", ("torch", "numpy")))
    print(f"\nWorst of {len(list(attacks()))} attacks, n = {N}, f = {F}, d = {d:,}, {len(seeds)} draws.\n")
    print(table(("rule", "iid, signal .1", "iid, signal 1", "unlike clients"), rows))


if __name__ == "__main__":
    main("--tiny" in sys.argv)
