"""CPU seconds of robust rules on one core, compared with ByzFL and byzpy, and of Flag compared with its SVD form.

python -m benchmarks.rules [--tiny] [--peers FOLDER]

Every cell is a separate process with one thread, pinned to one core, on the same float32 rows: a common direction plus
noise; a fifth of the rows are multiplied by -10. Other libraries are called as in their documentation. ByzFL's
geometric median makes three steps, ours iterates to convergence. "nnm mean" is nearest-neighbour mixing followed by the
mean. "optimal ALIE" searches the row that moves NNM with the geometric median farthest; ByzFL uses 20 evaluations,
byzpy has no such attack. Passes: number of times that a rule reads the rows, 4 n d bytes per pass. The environment of
the other libraries is that of `python -m benchmarks.engines --setup`, with byzpy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

import torch

from benchmarks.harness import PEERS as ENVIRONMENT_OF_PEERS
from benchmarks.harness import MeasurementError, header, measured, table
from fedgen.contracts import SlabFunction
from fedgen.rows import LocalRows

ALIE = "optimal ALIE"
RULES = ("median", "trimmed_mean", "meamed", "geometric_median", "krum", "caf", "nnm mean", ALIE)
PEERS = ("ByzFL", "byzpy")
FLAGS: dict[str, dict[str, Any]] = {
    "1 iteration": {"iterations": 1},
    "5 iterations": {"iterations": 5},
    "lambda 15, 1 iteration": {"iterations": 1, "regularisation": 15.0},
}


def byzantine_of(n: int) -> int:
    return n // 5


def rows_of(n: int, d: int) -> torch.Tensor:
    """float32[n, d], the same in every process."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, d, generator=generator) + torch.randn(n, d, generator=generator)
    rows[: byzantine_of(n)] *= -10
    return rows


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """CPU seconds of the fastest call, after a warm-up call if it is cheap."""
    times = []
    for _ in range(repeats + 1):
        began = process_time()
        call()
        times.append(process_time() - began)
        if times[-1] > 5:
            break
    return min(times)


@dataclass(frozen=True)
class Counted(LocalRows):
    """Rows that count how often they are read."""

    reads: list[str] = field(default_factory=list)

    def map(self, function: SlabFunction) -> Counted:
        return Counted(self.data, self.slice, (*self.functions, function), self.reads)

    def gram(self) -> torch.Tensor:
        self.reads.append("gram")
        return super().gram()

    def collect(self) -> torch.Tensor:
        self.reads.append("collect")
        return super().collect()

    def norms(self) -> torch.Tensor:
        self.reads.append("norms")
        return super().norms()


def passes(rule: Any, rows: torch.Tensor) -> int:
    """Number of times that the rule reads the rows."""
    from fedgen.contracts import Context
    from fedgen.parameters import Layout

    n, d = rows.shape
    counted = Counted(rows)
    context = Context(torch.zeros(d), Layout({"row": (d,)}), torch.arange(n), byzantine_of(n))
    rule.aggregate(counted, torch.ones(n, dtype=torch.float64), context)
    return len(counted.reads)


def by_singular_values(rows: torch.Tensor, iterations: int, regularisation: float = 0.0) -> torch.Tensor:
    """Flag as in the paper's code: singular vectors of the [d, columns] matrix, from a random basis."""
    n = len(rows)
    rank, epsilon, least = (n + 2) // 2, 1e-7, float("inf")
    unit = torch.nn.functional.normalize(rows).T
    basis, _ = torch.linalg.qr(torch.rand(rows.shape[1], rank) - 0.5)
    for _ in range(iterations):
        lacking = 1 - (basis.T @ unit).square().sum(0)
        columns = [unit * (lacking.abs() + epsilon) ** -0.25]
        for i in range(n if regularisation else 0):
            apart = unit[:, [i]] - torch.cat([unit[:, :i], unit[:, i + 1 :]], dim=1)
            squares = apart.square().sum(0)
            missing = 1 - (basis.T @ apart).square().sum(0) / squares
            weight = regularisation / (n - 1) / squares * (missing.abs() + epsilon) ** -0.5
            columns.append(apart * weight.sqrt())
        left, _, _ = torch.linalg.svd(torch.cat(columns, dim=1), full_matrices=False)
        objective = float((1 - (left[:, :rank].T @ unit).square().sum(0)).clamp_min(0).sqrt().sum())
        if objective > least:
            break
        basis, least = left[:, :rank], objective
    return basis @ (basis.T @ unit.sum(1)) * rows.norm(dim=1).median() / n


def own(name: str, n: int, d: int, repeats: int) -> dict[str, float]:
    """Seconds of one of fedgen's rules; for Flag also those of the SVD form, and the difference of the results."""
    from fedgen.aggregation.call import aggregate, rule_of
    from fedgen.attacks.alie import ALittleIsEnough
    from fedgen.process import prepare_process

    prepare_process(threads=1)
    rows = rows_of(n, d)
    if name in FLAGS:
        ours = seconds(lambda: aggregate(rows, "flag", f=byzantine_of(n), **FLAGS[name]), repeats)
        return {"seconds": ours, "svd": seconds(lambda: by_singular_values(rows, **FLAGS[name]), min(repeats, 2))}
    if name == ALIE:
        attack, deceived = ALittleIsEnough(optimize=True), rule_of("geometric_median", ["nnm"], {})
        return {"seconds": seconds(lambda: attack(rows, range(byzantine_of(n)), rule=deceived), repeats)}
    *wrappers, rule = name.split()
    took = seconds(lambda: aggregate(rows, rule, f=byzantine_of(n), wrappers=wrappers), repeats)
    return {"seconds": took, "passes": passes(rule_of(rule, wrappers, {}), rows)}


def of_peer(python: Path, *words: str) -> dict[str, Any] | None:
    """Result of another library; None if it fails or takes too long."""
    try:
        return measured(python, "benchmarks.peers.rules", *words, timeout_s=600)
    except MeasurementError as error:
        print(error, file=sys.stderr)
        return None


def compared(name: str, n: int, d: int, repeats: int, peers: Path | None) -> list[str]:
    """One row: seconds of fedgen and of the other libraries, and the ratio of the faster one to fedgen."""
    here = measured(Path(sys.executable), "benchmarks.rules", "--own", name, str(n), str(d), str(repeats))
    theirs = {
        peer: of_peer(peers / "bin" / "python", peer, name, str(n), str(d), str(repeats))
        for peer in PEERS
        if peers is not None and (name, peer) != (ALIE, "byzpy")
    }
    took = [found["seconds"] for found in theirs.values() if found]
    cells = [f"{theirs[peer]['seconds']:.3f}" if theirs.get(peer) else "–" for peer in PEERS]
    ratio = f"{min(took) / here['seconds']:.1f}" if took else "–"
    return [name, str(n), str(here.get("passes", "–")), f"{here['seconds']:.3f}", *cells, ratio]


def main(tiny: bool, peers: Path | None) -> None:
    d, repeats = (2_000, 1) if tiny else (1_000_000, 5)
    sizes, rules, forms = ((20,), ("median", "krum", ALIE), list(FLAGS)[:1]) if tiny else ((20, 50), RULES, list(FLAGS))
    rows = [compared(name, n, d, repeats, None if tiny else peers) for n in sizes for name in rules]
    flags = []
    for name in forms:
        found = measured(Path(sys.executable), "benchmarks.rules", "--own", name, "15", str(d), str(repeats))
        ratio = found["svd"] / found["seconds"]
        flags.append([name, f"{found['seconds']:.4f}", f"{found['svd']:.2f}", f"{ratio:.0f}"])
    print(header("python -m benchmarks.rules", ("torch", "numpy")))
    print(f"\nCPU seconds, d = {d:,}, f = n / 5.\n")
    print(table(("rule", "n", "passes", "fedgen", *PEERS, "faster peer / fedgen"), rows))
    print("\nFlag, n = 15.\n")
    print(table(("", "fedgen", "by singular values", "ratio"), flags))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--own"]:
        name, *sizes = sys.argv[2:]
        print(json.dumps(own(name, *map(int, sizes))))
    else:
        folder = Path(sys.argv[sys.argv.index("--peers") + 1]) if "--peers" in sys.argv else ENVIRONMENT_OF_PEERS
        main("--tiny" in sys.argv, folder)
