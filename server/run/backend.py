"""`runtime.backend = "auto"`: whether a run's blocks are trained in this process or by workers on Ray.

A model of time decides, from counted operations and the constants below, so that the same run on the same machine is
decided in the same way each time. The result of a run does not depend on it.
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
"""Of training on one core. Measured on AMD EPYC: 8e9 for the quickstart's network, 3e10 for one of 700,000 weights,
5e10 for convolutions."""

START_S = 10.0
"""Seconds that Ray takes to start with two workers and to end, measured on 2 cores."""

BLOCK_S = 0.002
"""Seconds that a block takes to a worker and back, measured on 2 cores."""

BYTES_A_SECOND = 1e9
"""Of rows that cross between processes."""


@dataclass(frozen=True)
class Backend:
    """Where blocks are trained, and why; no reason where the experiment says so itself."""

    name: Literal["ray", "serial"]
    reason: str = ""


@dataclass(frozen=True)
class Load:
    """What a run has to do: blocks a round, seconds that one takes on a core and on its way, rounds, workers."""

    blocks: int
    block_s: float
    sending_s: float
    rounds: int
    workers: int

    @property
    def saved_s(self) -> float:
        """Seconds of a round that workers save: what is trained beside other blocks, less what is sent."""
        waves = ceil(self.blocks / self.workers)
        return (self.blocks - waves) * self.block_s - self.blocks * self.sending_s


def backend_of(federation: Federation, rounds: int, environment: Mapping[str, str] = os.environ) -> Backend:
    """The backend of the rounds that are left; environment: where RAY_ADDRESS may stand."""
    runtime = federation.experiment.runtime
    if runtime.backend != "auto":
        return Backend(runtime.backend)
    if federation.experiment.training.device != "cpu":
        return Backend("serial", f'training.device = "{federation.experiment.training.device}" is used by one process')
    if asked := _asks_for_ray(runtime, environment):
        return Backend("ray", f"{asked} is given")
    return decided(load_of(federation, rounds))


def _asks_for_ray(runtime: RuntimeSection, environment: Mapping[str, str]) -> str:
    """The setting of Ray's that is given, "" where none is."""
    given = {
        "runtime.address": runtime.address is not None,
        "RAY_ADDRESS": bool(environment.get("RAY_ADDRESS")),
        "runtime.workers": runtime.workers != "auto",
    }
    return next((name for name, there in given.items() if there), "")


def decided(load: Load) -> Backend:
    """Ray where its workers save more than their start takes."""
    if load.blocks < 2:
        return Backend("serial", "a round is one block, which one worker would train alone")
    if load.workers < 2:
        return Backend("serial", "there is one CPU core")
    told = f"{load.blocks} blocks a round of about {human_seconds(load.block_s)} each"
    if load.saved_s <= 0:
        return Backend("serial", f"{told} are too small to be sent to workers")
    saved = load.rounds * load.saved_s
    told = f"{told} in {counted(load.rounds, 'round')}"
    if saved <= START_S:
        start = human_seconds(START_S)
        return Backend(
            "serial", f"{told}: workers would save about {human_seconds(saved)}, and Ray takes {start} to start"
        )
    return Backend("ray", f"{told}: workers save about {human_seconds(saved)}")


def load_of(federation: Federation, rounds: int) -> Load:
    """The mean round of a federation, as its experiment describes it."""
    experiment, size = federation.experiment, federation.learner.model.layout.size
    clients = _clients_a_round(federation)
    block = min(int(experiment.training.block), clients)
    flops = sample_flops(federation.learner.model, federation.dataset.x) * _samples_a_client(federation)
    rows = 2 * block if experiment.federation.mode == "gossip" else 0  # a peer's model goes to its worker and back
    return Load(
        blocks=ceil(clients / block),
        block_s=block * flops / FLOPS_A_SECOND,
        sending_s=BLOCK_S + rows * 4 * size / BYTES_A_SECOND,
        rounds=rounds,
        workers=default_workers(),
    )


def _clients_a_round(federation: Federation) -> int:
    """In virtual time, where a round is a tick, those whose training ends in one."""
    experiment = federation.experiment
    if experiment.federation.mode == "star" or experiment.gossip.clock == "rounds":
        return experiment.cohort_size
    least, most = experiment.virtual_time.training_ticks
    return ceil(experiment.cohort_size / ((least + most) / 2))


def _samples_a_client(federation: Federation) -> float:
    """Samples that a client of mean size trains on in a round, each as often as it is seen."""
    training = federation.experiment.training
    held = [len(shard) for shard in federation.shards]
    if training.steps is None:
        return (training.epochs or 1) * sum(held) / len(held)
    return training.steps * sum(min(training.batch_size, count) for count in held) / len(held)
