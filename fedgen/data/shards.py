"""Sample numbers: which are for training and whose, which are held back, which the server trains on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedgen import registry
from fedgen.config import Experiment
from fedgen.data.dataset import Dataset
from fedgen.data.divide import divide
from fedgen.errors import SettingError
from fedgen.streams import Streams


def hold_back(share: float, samples: int, streams: Streams) -> tuple[Tensor, Tensor]:
    """(numbers for training, numbers held back for validation), each in order; share: of all `samples`."""
    shuffled = _shuffled("validation", torch.arange(samples), streams)
    held = int(share * samples + 0.5)
    return shuffled[held:].sort().values, shuffled[:held].sort().values


def shards_of(experiment: Experiment, dataset: Dataset, training: Tensor, streams: Streams) -> list[Tensor]:
    """The numbers of each client, of those in `training`.

    Raises SettingError where there are too few samples, or the partition fails.
    """
    section = experiment.data
    if section.clients > len(training):
        raise SettingError(
            f"data.clients = {section.clients} is more than the {len(training)} training samples of {dataset.name!r}; "
            "lower data.clients or data.validation"
        )
    partition = registry.build("partition", section.partition.name, section.partition.params)
    generator = np.random.default_rng(streams.seed_for("partition"))
    return divide(partition, section.partition.name, dataset, training, section.clients, generator)


def root_of(experiment: Experiment, wanted: int, held: Tensor, streams: Streams) -> tuple[Tensor | None, Tensor]:
    """Of the numbers held back, the `wanted` ones that the server trains on (None where 0 are), and the others.

    Raises SettingError where fewer are held back.
    """
    if not wanted:
        return None, held
    if wanted > len(held):
        raise SettingError(
            f"aggregation.rule = {experiment.aggregation.rule.name!r} learns from root_samples = {wanted} samples "
            f"at the server, and data.validation = {experiment.data.validation} holds back {len(held)}; raise "
            "data.validation or lower root_samples"
        )
    shuffled = _shuffled("root", held, streams)
    return shuffled[:wanted].sort().values, shuffled[wanted:].sort().values


def _shuffled(purpose: str, numbers: Tensor, streams: Streams) -> Tensor:
    keys = streams.words(purpose, 0, numbers, 1)[:, 0]
    return numbers[torch.from_numpy(keys.argsort(kind="stable"))]
