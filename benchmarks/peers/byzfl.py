"""ByzFL: its Client and Server under the FedAvg loop of its benchmark, without attackers and with the plain average.

Only clients of the round get the new model; ByzFL's own loop hands it to all of them.

python -m benchmarks.peers.byzfl WORK
"""
# mypy: disable-error-code="import-not-found,misc"

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from byzfl import Client, Server
from byzfl.fed_framework import models
from torch.utils.data import DataLoader

from benchmarks.peers.common import Batch, Work, load, measure, network


class Ready(DataLoader[Any]):
    """A client's batches of a round, already cut; ByzFL requires a DataLoader."""

    def __init__(self, batches: list[Batch]) -> None:
        super().__init__(batches, batch_size=None)  # type: ignore[arg-type]
        self.ready = batches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        return iter(self.ready)


def main(work: Work) -> None:
    models.work = partial(network, work)
    sgd = {
        "model_name": "work", "device": "cpu", "optimizer_name": "SGD", "learning_rate": work.lr, "weight_decay": 0.0,
        "milestones": [], "learning_rate_decay": 1.0,
    }  # fmt: skip
    own = {
        "loss_name": "CrossEntropyLoss", "LabelFlipping": False, "momentum": 0.0, "nb_labels": 10,
        "store_per_client_metrics": False,
    }  # fmt: skip
    clients = [Client({**sgd, **own, "training_dataloader": Ready(batches)}) for batches in work.clients]
    average = {"name": "Average", "parameters": {}}
    server = Server({**sgd, "test_loader": Ready([]), "aggregator_info": average, "pre_agg_list": []})

    def play(rounds: int) -> None:
        for _ in range(rounds):
            state, weights = server.get_dict_parameters(), []
            for number in np.random.choice(len(clients), work.cohort, replace=False):
                client = clients[number]
                client.set_model_state(state)
                client.compute_model_update(work.steps)
                weights.append(client.get_flat_parameters())
            server.update_model_with_weights(weights)

    measure(work, ("byzfl",), play, server.model)


if __name__ == "__main__":
    main(load(sys.argv[1]))
