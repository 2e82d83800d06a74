"""gossipy: its GossipSimulator with torch handlers. In every round each node pushes to a random neighbour; a receiver
merges and makes one step (PUSH, MERGE_UPDATE).

A round is one time step, so that every time step has messages. Nothing is evaluated. gossipy-dfl 0.0.1 sets no upper
bound on torch and runs with fedgen's; torchvision, which it imports for unused data sets, is replaced by a stub.

python -m benchmarks.peers.gossipy WORK
"""
# mypy: disable-error-code="import-not-found,misc"

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

import torch
from gossipy import set_seed
from gossipy.core import AntiEntropyProtocol, CreateModelMode, Message, StaticP2PNetwork
from gossipy.data import DataDispatcher
from gossipy.data.handler import ClassificationDataHandler
from gossipy.model.handler import TorchModelHandler
from gossipy.model.nn import TorchMLP
from gossipy.node import GossipNode
from gossipy.simul import GossipSimulator, SimulationEventReceiver
from rich import reconfigure

from benchmarks.peers.common import rates_of


class Sent(SimulationEventReceiver):
    """Counts messages; a message is one merge and one step of its receiver."""

    count = 0

    def update_message(self, failed: bool, msg: Message | None = None) -> None:
        assert not failed
        self.count += 1

    def update_timestep(self, t: int) -> None:
        pass

    def update_end(self) -> None:
        pass


def simulator(work: dict[str, Any]) -> GossipSimulator:
    x, y = (torch.cat(parts) for parts in zip(*work["shards"], strict=True))
    sizes = [len(labels) for _, labels in work["shards"]]
    data = DataDispatcher(ClassificationDataHandler(x, y, test_size=0), len(sizes), False, auto_assign=False)
    data.set_assignments([part.tolist() for part in torch.arange(len(y)).split(sizes)], None)
    sgd = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
    handler = TorchModelHandler(
        net=TorchMLP(64, 10, (64, 64)),
        optimizer=torch.optim.SGD,
        optimizer_params=sgd,
        criterion=torch.nn.CrossEntropyLoss(),
        local_epochs=0,  # one step
        batch_size=16,
        create_model_mode=CreateModelMode.MERGE_UPDATE,
    )
    network = StaticP2PNetwork(len(sizes), work["hears"].numpy())
    nodes = GossipNode.generate(data, network, handler, round_len=1, sync=True)
    made = GossipSimulator(nodes, data, delta=1, protocol=AntiEntropyProtocol.PUSH)
    made.init_nodes()
    return made


def main(work: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    reconfigure(quiet=True)  # no progress bar
    set_seed(0)
    simulation, sent, peers = simulator(work), Sent(), len(work["shards"])
    simulation.add_receiver(sent)
    simulation.start(work["warmup"])
    before = simulation.nodes[0].model_handler.model.model[0].weight.detach().clone()
    rates = rates_of(simulation.start, peers, work["rounds"], work["repeats"])
    assert sent.count == peers * (work["warmup"] + work["rounds"] * work["repeats"])
    assert not torch.equal(before, simulation.nodes[0].model_handler.model.model[0].weight)
    print(json.dumps({"rates": rates, "versions": {name: version(name) for name in ("gossipy-dfl", "torch")}}))


if __name__ == "__main__":
    main(torch.load(sys.argv[1]))
