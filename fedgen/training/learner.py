"""How an experiment trains: its model, trainer and server optimiser, and the device that they work on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fedgen import registry
from fedgen.config import Experiment
from fedgen.data.dataset import Dataset
from fedgen.device import device_of
from fedgen.models.fitted import fitted
from fedgen.models.model import Model
from fedgen.streams import Streams
from fedgen.training.choose import TRIED, choose_engine
from fedgen.training.server_optimizers import ServerOptimizer
from fedgen.training.trainer import Trainer
from fedgen.training.trial import measured

LONGEST_TRIED = 128
"""Samples up to which it is tried before the run whether a module minds the length of its batches."""


@dataclass(frozen=True)
class Learner:
    """What a method or a method wrapper trains with, if it has a field `learner`; rules and attacks get none."""

    model: Model
    trainer: Trainer
    server_optimizer: ServerOptimizer
    device: torch.device


def tried_model(experiment: Experiment, dataset: Dataset, streams: Streams) -> Model:
    """The model on the host, checked against the data and measured on a few samples."""
    model = fitted(experiment.model, dataset, streams.seed_for("initial_model", 0))
    return measured(model, dataset.x[:TRIED], dataset.y[:TRIED])


def engine_of(experiment: Experiment, model: Model, dataset: Dataset) -> tuple[str, str]:
    """(engine, why it is not a faster one), as `choose_engine`, tried on the host."""
    training = experiment.training
    samples = max(TRIED, min(training.batch_size + 1, LONGEST_TRIED))
    return choose_engine(training.engine, model, dataset.x[:samples], dataset.y[:samples], training.device)


def learner_of(experiment: Experiment, model: Model, engine: str) -> Learner:
    """Everything on the device of the experiment.

    Raises SettingError where there is no such device.
    """
    training = experiment.training
    device = device_of(training.device)
    model = replace(model, device=device)
    optimizer = experiment.federation.server_optimizer
    trainer = Trainer(
        model=model,
        engine=registry.build("engine", engine, {}),
        optimizer=registry.build("optimizer", training.optimizer.name, training.optimizer.params),
        batch_size=training.batch_size,
        epochs=None if training.steps else training.epochs or 1,
        steps=training.steps,
        keep_optimizer=experiment.keeps_optimizer,
        schedule=registry.build("schedule", training.schedule.name, training.schedule.params),
        proximal=training.proximal,
        clip_norm=training.clip_norm,
    )
    return Learner(model, trainer, registry.build("server_optimizer", optimizer.name, optimizer.params), device)
