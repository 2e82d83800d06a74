"""The experiments of the GGEUR benchmarks: three cases, with and without the wrapper.

Office LDS: one client per domain, 512 features, 20 rounds of one epoch, batch 16; accuracy is the mean over domains.
Banking77: ten clients, 384 features, 15 rounds of three epochs, batch 64. Both: Adam with lr .001, all clients in every
round, minimum_count = 1; other settings have their defaults unless a row names them.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgen import Experiment, run
from fedgen.server.store.journal import read_lines

Row = dict[str, Any]
CLOSED: Row = {"rounds": 0}
"""A head in closed form, no rounds."""


@dataclass(frozen=True)
class Case:
    """One case. published_target: samples per class in the scripts of the public implementation. held_back: share of
    the training samples for validation. validation_seeds: seeds of the splits for choices. targets: numbers of samples
    per class to choose from."""

    name: str
    office: bool
    beta: float
    published_target: int
    held_back: float
    validation_seeds: tuple[int, ...]
    targets: tuple[int, ...]

    def experiment(self, seed: int, ggeur: Row | None, validation: bool = False, **tables: Any) -> Experiment:
        """The experiment; ggeur: settings of the wrapper, and `rounds` and `lr`; None: no wrapper."""
        settings = {"minimum_count": 1, **(ggeur or {})}
        rounds, lr = settings.pop("rounds", 20 if self.office else 15), settings.pop("lr", 0.001)
        return Experiment(
            experiment={"seed": seed},
            data={
                "dataset": {"name": "office_caltech10", "seed": seed, "beta": self.beta}
                if self.office
                else "banking77",
                "partition": {"name": "domains" if self.office else "label_skew", "beta": self.beta, "seed": seed},
                "clients": 4 if self.office else 10,
                "validation": self.held_back if validation else 0.0,
            },
            model={"name": "logistic"},
            training={
                "optimizer": {"name": "adam", "lr": lr},
                "batch_size": 16 if self.office else 64,
                "epochs": 1 if self.office else 3,
                "wrappers": [] if ggeur is None else [{"name": "ggeur", **settings}],
            },
            federation={"rounds": rounds, "cohort": 1.0},
            runtime={"backend": "serial", "checkpoint_every": 1_000},
            tracking={"report": False},
            **tables,
        )

    def accuracies(self, seed: int, ggeur: Row | None, validation: bool = False, **tables: Any) -> list[float]:
        """Accuracy of every round in per cent; with GGEUR the first is after the setup exchange."""
        name = "domain_accuracy" if self.office else "accuracy"
        with tempfile.TemporaryDirectory() as folder:
            result = run(self.experiment(seed, ggeur, validation, **tables), Path(folder) / "run")
            records = read_lines(result.folder / "metrics.jsonl")
        return [100 * record["metrics"][f"validation_{name}" if validation else name] for record in records]


OFFICE_1 = Case("Office LDS, beta .1", True, 0.1, 50, 0.3, tuple(range(21, 37)), (50, 100, 200))
OFFICE_5 = Case("Office LDS, beta .5", True, 0.5, 50, 0.3, tuple(range(21, 37)), (50, 100, 200))
BANKING = Case("Banking77, beta .1", False, 0.1, 100, 0.2, (21, 22, 23), (50, 100))
CASES = (OFFICE_1, OFFICE_5, BANKING)
