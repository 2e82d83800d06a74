"""Divides the training samples among the clients and checks the shards of any partition."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgen.data.dataset import Dataset
from fedgen.data.partition import Partition, Shard
from fedgen.errors import SettingError
from fedgen.own_code import explained


def divide(
    partition: Partition, name: str, dataset: Dataset, training: Tensor, clients: int, generator: np.random.Generator
) -> list[Tensor]:
    """Sample numbers of each client, of those in `training`.

    Raises SettingError where the partition gives anything but one shard a client, none empty, none sharing a sample.
    """
    labels = dataset.y[training].numpy()
    wanted = inspect.signature(partition.split).parameters
    known = {key: value for key, value in _offered(dataset, training).items() if key in wanted}
    try:
        split: Any = partition.split(labels, clients, generator, **known)
        shards = [np.asarray(shard) for shard in split]
    except SettingError:
        raise
    except Exception as error:
        if ":" not in name:
            raise
        raise SettingError(f"data.partition {name!r} failed ({explained(error)})") from error
    if wrong := _complaint(shards, clients, len(labels)):
        raise SettingError(f"data.partition {name!r}: {wrong}")
    return [training[torch.from_numpy(shard.astype(np.int64))] for shard in shards]


def _offered(dataset: Dataset, training: Tensor) -> dict[str, object]:
    """What `split` may ask for by the names of its arguments."""
    columns = {"domain": dataset.domain, "client": dataset.client}
    return {
        "x": dataset.x[training].numpy(),
        "numbers": training.numpy(),
        **{name: None if column is None else column[training].numpy() for name, column in columns.items()},
    }


def _complaint(shards: list[Shard], clients: int, samples: int) -> str:
    """What is wrong with the shards of a partition; "" where nothing is."""
    if len(shards) != clients:
        return f"gave {len(shards)} shards for data.clients = {clients}; give one a client"
    owner = np.full(samples, -1)
    for client, shard in enumerate(shards):
        if shard.size == 0:
            return f"leaves client {client} without samples"
        if shard.ndim != 1 or not np.issubdtype(shard.dtype, np.integer):
            return f"the shard of client {client} must be a list of whole numbers; got {shard.dtype}{list(shard.shape)}"
        if shard.min() < 0 or shard.max() >= samples:
            return (
                f"the shard of client {client} has numbers from {shard.min()} to {shard.max()}; they count the "
                f"{samples} samples that are divided, 0 to {samples - 1}"
            )
        if len(np.unique(shard)) < len(shard):
            return f"the shard of client {client} holds a sample twice"
        taken = owner[shard]
        if taken.max() >= 0:
            return f"clients {taken.max()} and {client} both hold sample {shard[taken.argmax()]}"
        owner[shard] = client
    return ""
