"""MNIST over 100 clients with two classes each, CNN, 10 clients a round: accuracy of the last ten rounds, CPU seconds.

python -m benchmarks.mnist [--tiny] [SEED ...]

One process with one thread, the serial pool. Only the last ten rounds are evaluated.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from statistics import mean
from time import process_time

from benchmarks.harness import header, table
from fedgen import Experiment
from fedgen.federation import Federation
from fedgen.server.pools.pool import Interrupt, SerialPool
from fedgen.server.rounds.session import Session
from fedgen.server.rounds.star import Star
from fedgen.server.store.checkpoint import Standing
from fedgen.server.store.journal import Journal

LAST = 10


def experiment(seed: int, tiny: bool) -> Experiment:
    """Settings chosen on the validation accuracy of another seed."""
    return Experiment(
        experiment={"seed": seed},
        data={
            "dataset": "digits" if tiny else "mnist",
            "clients": 100,
            "partition": {"name": "classes", "per_client": 2},
        },
        model={"name": "mlp"} if tiny else {"name": "cnn"},
        training={"optimizer": {"name": "sgd", "lr": 0.1}, "batch_size": 32, "epochs": 1},
        federation={"rounds": 12 if tiny else 200, "cohort": 10, "server_optimizer": {"name": "sgd", "momentum": 0.5}},
        runtime={"backend": "serial"},
    )


def measure(seed: int, tiny: bool) -> tuple[int, str, str]:
    """(seed, mean test accuracy of the last ten rounds, CPU seconds from the experiment to the last round)."""
    began = process_time()
    federation = Federation(experiment(seed, tiny))
    rounds = federation.experiment.federation.rounds
    accuracies = []
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        standing = Standing(0, federation.method.initial_state(0))
        session = Session(federation, SerialPool(federation, Interrupt()), standing, journal)
        for number in range(rounds):
            record = Star().play_round(session, evaluate=number >= rounds - LAST)
            journal.commit(record)
            accuracies += [record.metrics["accuracy"] or 0.0] if number >= rounds - LAST else []
        journal.close()
    return seed, f"{mean(accuracies):.4f}", f"{process_time() - began:.0f}"


def main(tiny: bool, seeds: list[int]) -> None:
    rows = [measure(seed, tiny) for seed in seeds or range(1 if tiny else 3)]
    print(header("python -m benchmarks.mnist"))
    print()
    print(table(("seed", f"test accuracy, mean of the last {LAST} rounds", "CPU s"), rows))


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--tiny"]
    main("--tiny" in sys.argv, [int(word) for word in words])
