"""`runtime.backend = "auto"`: chooses between training in this process and on Ray workers.

The choice follows from a cost model, with counted operations and the constants below, so that it is the same in each
run on the same machine. The result of a run does not depend on it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Literal

from fedgen.config import RuntimeSection
from fedgen.federation import Federation
from fedgen.server.pools.pool import default_workers
from fedgen.server.words import counted, human_seconds
from fedgen.training.cost import sample_flops

FLOPS_A_SECOND = 2e10
"""Training speed of one core. Measured on AMD EPYC: 8e9 for the quickstart's network, 3e10 for one with 700,000
weights, 5e10 for convolutions."""

START_S = 10.0
"""Time to start Ray with two workers and to stop it, measured on 2 cores."""

BLOCK_S = 0.002
"""Overhead of sending a block to a worker and back, measured on 2 cores."""

BYTES_A_SECOND = 1e9
"""Bandwidth of rows between processes."""


@dataclass(frozen=True)
class Backend:
    """Where blocks are trained, with the reason; no reason if the experiment sets the backend."""

    name: Literal["ray", "serial"]
    reason: str = ""


@dataclass(frozen=True)
class Load:
    """The work of a run. block_s, sending_s: seconds to train and to send one block."""

    blocks: int
    block_s: float
    sending_s: float
    rounds: int
    workers: int

    @property
    def saved_s(self) -> float:
        """Seconds per round that workers save by training in parallel, less the time to send blocks."""
        waves = ceil(self.blocks / self.workers)
        return (self.blocks - waves) * self.block_s - self.blocks * self.sending_s


def backend_of(federation: Federation, rounds: int, environment: Mapping[str, str] = os.environ) -> Backend:
    """The backend for the remaining rounds; environment: may set RAY_ADDRESS."""
    runtime = federation.experiment.runtime
    if runtime.backend != "auto":
        return Backend(runtime.backend)
    if federation.experiment.training.device != "cpu":
        return Backend("serial", f'training.device = "{federation.experiment.training.device}" is used by one process')
    if asked := _asks_for_ray(runtime, environment):
        return Backend("ray", f"{asked} is given")
    if alone := _alone(_blocks_a_round(federation), default_workers()):  # counting operations takes a second
        return Backend("serial", alone)
    return decided(load_of(federation, rounds))


def _asks_for_ray(runtime: RuntimeSection, environment: Mapping[str, str]) -> str:
    """Name of a setting that asks for Ray; empty if there is none."""
    given = {
        "runtime.address": runtime.address is not None,
        "RAY_ADDRESS": bool(environment.get("RAY_ADDRESS")),
        "runtime.workers": runtime.workers != "auto",
    }
    return next((name for name, is_set in given.items() if is_set), "")


def _alone(blocks: int, workers: int) -> str:
    """Why workers cannot save time, whatever a block costs; empty if they can."""
    if blocks < 2:
        return "a round is one block, which one worker would train alone"
    return "there is one CPU core" if workers < 2 else ""


def decided(load: Load) -> Backend:
    """Ray if its workers save more time than their start takes."""
    if alone := _alone(load.blocks, load.workers):
        return Backend("serial", alone)
    blocks = f"{load.blocks} blocks per round of about {human_seconds(load.block_s)} each"
    if load.saved_s <= 0:
        return Backend("serial", f"{blocks} are too small to be sent to workers")
    saved = load.rounds * load.saved_s
    work = f"{blocks} in {counted(load.rounds, 'round')}"
    if saved <= START_S:
        start = human_seconds(START_S)
        return Backend(
            "serial", f"{work}: workers would save about {human_seconds(saved)}, but Ray takes {start} to start"
        )
    return Backend("ray", f"{work}: workers save about {human_seconds(saved)}")


def load_of(federation: Federation, rounds: int) -> Load:
    """The work of an average round."""
    experiment = federation.experiment
    size = federation.learner.model.layout.size
    block = _clients_a_block(federation)
    flops = sample_flops(federation.learner.model, federation.dataset.x) * _samples_a_client(federation)
    rows = 2 * block if experiment.federation.mode == "gossip" else 0  # a peer's model goes to its worker and back
    return Load(
        blocks=_blocks_a_round(federation),
        block_s=block * flops / FLOPS_A_SECOND,
        sending_s=BLOCK_S + rows * 4 * size / BYTES_A_SECOND,
        rounds=rounds,
        workers=default_workers(),
    )


def _clients_a_block(federation: Federation) -> int:
    return min(int(federation.experiment.training.block), _clients_a_round(federation))


def _blocks_a_round(federation: Federation) -> int:
    return ceil(_clients_a_round(federation) / _clients_a_block(federation))


def _clients_a_round(federation: Federation) -> int:
    """Mean number of clients per round; in virtual time, of peers whose training ends in a tick."""
    experiment = federation.experiment
    if experiment.federation.mode == "star" or experiment.gossip.clock == "rounds":
        return experiment.cohort_size
    least, most = experiment.virtual_time.training_ticks
    return ceil(experiment.cohort_size / ((least + most) / 2))


def _samples_a_client(federation: Federation) -> float:
    """Mean number of samples per client and round, each counted as often as it is used."""
    training = federation.experiment.training
    held = [len(shard) for shard in federation.shards]
    if training.steps is None:
        return (training.epochs or 1) * sum(held) / len(held)
    return training.steps * sum(min(training.batch_size, count) for count in held) / len(held)
