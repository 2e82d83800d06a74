"""Shares of the stages in the time of a round, for three sizes of clients.

python -m benchmarks.profile [--tiny]

One process, one thread, the serial pool, no evaluation. Milliseconds per round are measured without a profiler; shares
are from cProfile, by file, and somewhat too high for code with many calls.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.engines import CASES, Case
from benchmarks.harness import header, table
from fedgen.federation import Federation
from fedgen.server.pools.pool import Interrupt, SerialPool
from fedgen.server.rounds.session import Session
from fedgen.server.rounds.star import Star
from fedgen.server.store.checkpoint import Standing
from fedgen.server.store.journal import Journal

STAGES = {
    "fedgen/federation.py": "cohort, clients' data",
    "fedgen/training/batches.py": "batches, random numbers",
    "fedgen/streams.py": "batches, random numbers",
    "fedgen/training/optimizers.py": "optimiser",
    "fedgen/training/gradients.py": "optimiser",
    "fedgen/training/lockstep.py": "steps of the block",
    "fedgen/training/trainer.py": "steps of the block",
    "fedgen/training/": "forward and backward",
    "fedgen/models/": "forward and backward",
    "fedgen/evaluation/": "forward and backward",
    "/torch/": "forward and backward",
    "fedgen/rows.py": "norms and admission",
    "fedgen/admission.py": "norms and admission",
    "fedgen/clients/": "differences, block sums",
    "fedgen/methods/": "differences, block sums",
}
"""Part of a path -> stage; the first match counts. Files without a match belong to "server and logs"."""
SERVER = "server and logs"
ORDER = list(dict.fromkeys([*STAGES.values(), SERVER]))


def session_of(case: Case, folder: Path) -> Session:
    """A federation of the case, with the engine that fedgen chooses."""
    federation = Federation(case.experiment("auto"))
    standing = Standing(0, federation.method.initial_state(0))
    return Session(federation, SerialPool(federation, Interrupt()), standing, Journal(folder))


def play(session: Session, rounds: int) -> float:
    """Seconds per round."""
    began = perf_counter()
    for _ in range(rounds):
        session.journal.commit(Star().play_round(session, evaluate=False))
    return (perf_counter() - began) / rounds


def stage_of(path: str) -> str:
    return next((stage for part, stage in STAGES.items() if part in path), SERVER)


def shares(profile: cProfile.Profile) -> dict[str, float]:
    """Share of each stage; the time of built-ins counts for their callers."""
    spent: dict[str, float] = defaultdict(float)
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (path, _, _), (_, _, own, _, callers) in stats.items():
        if path != "~":
            spent[stage_of(path)] += own
            continue
        for (caller, _, _), (_, _, part, _) in callers.items():
            spent[stage_of(caller)] += part
    whole = sum(spent.values())
    return {stage: seconds / whole for stage, seconds in spent.items()}


def measure(case: Case) -> tuple[str, float, dict[str, float]]:
    """(engine, milliseconds per round, shares)."""
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(case, Path(folder))
        play(session, case.rounds)
        best = min(play(session, case.rounds) for _ in range(5))
        profile = cProfile.Profile()
        profile.runcall(play, session, 3 * case.rounds)
        session.journal.close()
        return str(session.federation.experiment.training.engine), 1_000 * best, shares(profile)


def main(tiny: bool) -> None:
    cases = [replace(case, rounds=1) if tiny else case for case in CASES.values()]
    found = [measure(case) for case in cases]
    rows = [[stage, *(f"{part.get(stage, 0):.0%}" for _, _, part in found)] for stage in ORDER]
    print(header("python -m benchmarks.profile", ("torch", "numpy")))
    print()
    print(table(("", *(case.title for case in cases)), [
        ["engine", *(engine for engine, _, _ in found)],
        ["ms a round", *(f"{milliseconds:.1f}" for _, milliseconds, _ in found)],
        ["ms a client", *(f"{each[1] / case.cohort:.2f}" for each, case in zip(found, cases, strict=True))],
        *rows,
    ]))  # fmt: skip


if __name__ == "__main__":
    main("--tiny" in sys.argv)
