"""Two Ray workers on two cores against one: the CNN with a cohort of 40.

python -m benchmarks.workers [--tiny]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks.harness import header, table
from fedgen.config import Experiment
from fedgen.federation import Federation
from fedgen.server.pools.pool import Interrupt
from fedgen.server.pools.ray_pool import RayPool
from fedgen.server.rounds.session import Session
from fedgen.server.rounds.star import Star
from fedgen.server.store.checkpoint import Standing
from fedgen.server.store.journal import Journal


def experiment(tiny: bool) -> Experiment:
    """MNIST over 100 clients, the 225,034-parameter CNN, two steps of 32 samples each."""
    data = {"dataset": "digits" if tiny else "mnist", "clients": 100, "partition": "iid"}
    model = {"name": "mlp"} if tiny else {"name": "cnn"}
    return Experiment(data=data, model=model, training={"steps": 2}, federation={"cohort": 40})


def seconds_a_round(federation: Federation, workers: int, rounds: int) -> float:
    """Median wall time of a round without evaluation, workers warm."""
    pool = RayPool(federation, workers, Interrupt())
    try:
        with tempfile.TemporaryDirectory() as folder:
            journal = Journal(Path(folder))
            session = Session(federation, pool, Standing(0, federation.method.initial_state(0)), journal)
            times = []
            for _ in range(rounds + 2):
                began = perf_counter()
                journal.commit(Star().play_round(session, evaluate=False))
                times.append(perf_counter() - began)
            journal.close()
    finally:
        pool.close()
    return median(times[2:])


def main(tiny: bool) -> None:
    federation = Federation(experiment(tiny))
    rounds = 2 if tiny else 15
    alternating = [(seconds_a_round(federation, 1, rounds), seconds_a_round(federation, 2, rounds)) for _ in range(2)]
    one, two = (min(times) for times in zip(*alternating, strict=True))
    print(header("python -m benchmarks.workers"))
    print()
    print(table(("workers", "s a round"), [(1, f"{one:.3f}"), (2, f"{two:.3f}"), ("ratio", f"{one / two:.2f}")]))


if __name__ == "__main__":
    main("--tiny" in sys.argv)
