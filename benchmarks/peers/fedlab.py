"""FedLab: its standalone pipeline with the serial FedAvg trainer; a client's data are a list of batches.

python -m benchmarks.peers.fedlab WORK
"""
# mypy: disable-error-code="import-not-found,misc"

from __future__ import annotations

import sys

from fedlab.contrib.algorithm.fedavg import FedAvgSerialClientTrainer, FedAvgServerHandler
from fedlab.contrib.dataset.basic_dataset import FedDataset
from fedlab.core.standalone import StandalonePipeline

from benchmarks.peers.common import Batch, Work, load, measure, network


class Users(FedDataset):
    """Returns the batches of a client's round."""

    def __init__(self, clients: list[list[Batch]]) -> None:
        super().__init__()
        self.num, self.clients = len(clients), clients

    def get_dataloader(self, id: int, batch_size: int, type: str = "train") -> list[Batch]:
        return self.clients[id]


class Pipeline(StandalonePipeline):
    def evaluate(self) -> None:
        """Nothing is evaluated."""


def main(work: Work) -> None:
    clients = len(work.clients)
    trainer = FedAvgSerialClientTrainer(network(work), clients)
    trainer.setup_dataset(Users(work.clients))
    trainer.setup_optim(epochs=1, batch_size=len(work.clients[0][0][1]), lr=work.lr)
    handler = FedAvgServerHandler(network(work), global_round=0, sample_ratio=work.cohort / clients)
    pipeline = Pipeline(handler, trainer)

    def play(rounds: int) -> None:
        handler.global_round += rounds
        pipeline.main()

    measure(work, ("fedlab",), play, handler.model)


if __name__ == "__main__":
    main(load(sys.argv[1]))
