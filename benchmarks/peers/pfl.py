"""pfl-research: SimulatedBackend and FederatedAveraging, users as tensors in memory, no evaluation, no callbacks.

python -m benchmarks.peers.pfl WORK
"""
# mypy: disable-error-code="import-not-found,misc"

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn.functional import cross_entropy

from benchmarks.peers.common import Batch, Work, load, measure, network


class User(PyTorchTensorDataset):
    """A user with the ready batches of a round; pfl itself caches only batches of one epoch."""

    def __init__(self, batches: list[Batch], name: int) -> None:
        super().__init__(batches[0], user_id=str(name))
        self.ready = batches

    def iter(self, batch_size: int | None) -> Iterator[Batch]:
        return iter(self.ready)


def main(work: Work) -> None:
    asyncio.set_event_loop(asyncio.new_event_loop())
    module = network(work)
    module.loss = lambda x, y: cross_entropy(module(x), y)  # type: ignore[assignment]
    # Called once, in the first round, which pfl always evaluates.
    module.metrics = lambda x, y: {"loss": Weighted(0.0, 1)}  # type: ignore[assignment]
    local_sgd = torch.optim.SGD
    model = PyTorchModel(module, local_sgd, torch.optim.SGD(module.parameters(), lr=1.0))
    users = [User(batches, name) for name, batches in enumerate(work.clients)]
    data = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", range(len(users))))
    backend, algorithm = SimulatedBackend(data, data), FederatedAveraging()
    training = NNTrainHyperParams(
        local_batch_size=len(work.clients[0][0][1]), local_num_epochs=1, local_learning_rate=work.lr
    )
    played = 0

    def play(rounds: int) -> None:
        nonlocal played
        played += rounds
        settings = NNAlgorithmParams(
            played, evaluation_frequency=1 << 30, train_cohort_size=work.cohort, val_cohort_size=0
        )
        algorithm.run(settings, backend, model, training, NNEvalHyperParams(None), send_metrics_to_platform=False)

    measure(work, ("pfl",), play, module)


if __name__ == "__main__":
    main(load(sys.argv[1]))
