"""Resolves every "auto" that affects a result, from model size and cohort alone, never from the machine."""

from __future__ import annotations

from fedgen.config import Experiment
from fedgen.data.folder import data_folder
from fedgen.rows import SLICE

BLOCK_BYTES_LEAST, BLOCK_BYTES_MOST = 2 << 20, 64 << 20
"""Memory of a block's rows where the experiment leaves it to us; training holds a few copies of them."""


def resolved(experiment: Experiment, size: int, engine: str) -> Experiment:
    """The experiment with every "auto" that decides its result replaced, from model size and cohort alone."""
    block = experiment.training.block
    if block == "auto":
        block = _block_size(experiment, 4 * size)
    width = experiment.aggregation.slice
    return experiment.replace(
        training={
            "block": block,
            "engine": engine,
            "epochs": None if experiment.training.steps else experiment.training.epochs or 1,
            "keep_optimizer": experiment.keeps_optimizer,
        },
        aggregation={
            "slice": SLICE if width == "auto" else width,
            "weights": "samples" if experiment.weighs_samples else "equal",
        },
        runtime={"data_dir": str(data_folder(experiment.runtime.data_dir))},
    )


def _block_size(experiment: Experiment, row_bytes: int) -> int:
    """A quarter of the cohort, for up to four workers; more where rows are so small that sending them costs more than
    training, fewer where they are so large that a block would not fit.

    In gossip every peer has rows of its own: blocks of equal size that stay in a core's cache.
    """
    cohort = experiment.cohort_size
    if experiment.federation.mode == "gossip":
        return -(-cohort // -(-cohort * row_bytes // (2 * BLOCK_BYTES_LEAST)))
    return max(1, min(max(-(-cohort // 4), BLOCK_BYTES_LEAST // row_bytes), BLOCK_BYTES_MOST // row_bytes, cohort))
