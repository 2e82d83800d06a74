"""MNIST over 100 clients with two classes each, CNN, 10 clients a round: accuracy of the last ten rounds, CPU seconds.

python -m benchmarks.mnist [--tiny]
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import header, table
from fedgen import Experiment, run

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
        federation={"rounds": 12 if tiny else 200, "cohort": 10},
        runtime={"backend": "serial", "checkpoint_every": 1_000},
        tracking={"report": False},
    )


def measure(seed: int, tiny: bool) -> tuple[int, str, str]:
    """(seed, mean test accuracy of the last ten rounds, CPU seconds), evaluation of every round included."""
    before = cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        accuracy = run(experiment(seed, tiny), Path(folder) / "run").history["accuracy"]
    return seed, f"{accuracy[-LAST:].mean():.4f}", f"{cpu_seconds() - before:.0f}"


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(tiny: bool) -> None:
    rows = [measure(seed, tiny) for seed in range(1 if tiny else 3)]
    print(header("python -m benchmarks.mnist"))
    print()
    print(table(("seed", f"test accuracy, mean of the last {LAST} rounds", "CPU s"), rows))


if __name__ == "__main__":
    main("--tiny" in sys.argv)
