"""Memory of generated samples, over a whole run."""

from __future__ import annotations

import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.harness import table
from fedgen import Experiment, run

CLIENTS, FEATURES, CLASSES = 10, 64, 10


def memory_table(tiny: bool) -> str:
    """Peak memory of a run with one round of all clients, less that of a run that generates nothing, divided by the
    size of all training samples; in a separate process."""
    target = 200 if tiny else 20_000
    spawned = ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1)
    with spawned:
        nothing, everything = (spawned.submit(_peak, each).result() for each in (0, target))
    kept = 4 * CLIENTS * CLASSES * target * FEATURES
    rows = [
        [
            f"{CLIENTS} clients, {CLASSES} classes, d = {FEATURES}, {target:,} a class: samples kept, MB",
            f"{kept / 1e6:.0f}",
        ],
        ["extra memory of the run, in multiples of these", f"{(everything - nothing) / kept:.2f}"],
    ]
    return table(("memory", "value"), rows)


def _peak(target: int) -> int:
    """Peak memory of this process in bytes, after a run on digits."""
    experiment = Experiment(
        data={"dataset": "digits", "partition": {"name": "label_skew"}, "clients": CLIENTS},
        model={"name": "logistic"},
        training={"wrappers": [{"name": "ggeur", "target": target}], "batch_size": 512},
        federation={"rounds": 1, "cohort": 1.0},
        runtime={"backend": "serial"},
        tracking={"report": False},
    )
    with tempfile.TemporaryDirectory() as folder:
        run(experiment, Path(folder) / "run")
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
