"""Flower: a ClientApp under the FedAvg strategy.

python -m benchmarks.peers.flower WORK        a Grid in memory hands messages straight to the ClientApp, in one process
python -m benchmarks.peers.flower ray WORK    Flower's simulation on Ray, one worker; CPU time of all its processes
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from time import process_time
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.peers.common import Work, load, measure, network

WORK = "FEDGEN_BENCHMARK_WORK"
client_app = ClientApp()


@cache
def client_side() -> tuple[Work, nn.Module, torch.optim.Optimizer]:
    """State of the training process between messages."""
    work = load(os.environ[WORK])
    module = network(work)
    return work, module, torch.optim.SGD(module.parameters(), lr=work.lr)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    work, module, optimizer = client_side()
    module.load_state_dict(message.content["arrays"].to_torch_state_dict())  # type: ignore[union-attr]
    batches = work.clients[int(context.node_config["partition-id"])]
    for x, y in batches:
        optimizer.zero_grad()
        cross_entropy(module(x), y).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": sum(len(y) for _, y in batches)})
    return Message(RecordDict({"arrays": ArrayRecord(module.state_dict()), "metrics": metrics}), reply_to=message)


class MemoryGrid(Grid):
    """Passes every message directly to the ClientApp, without queues, threads or other processes."""

    def __init__(self, nodes: int) -> None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # whom messages come from
        configs: list[UserConfig] = [{"partition-id": node, "num-partitions": nodes} for node in range(nodes)]
        self.contexts = {
            node: Context(run_id=0, node_id=node, node_config=config, state=RecordDict(), run_config={})
            for node, config in enumerate(configs, start=1)
        }

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return [client_app(message, self.contexts[message.metadata.dst_node_id]) for message in messages]

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def unused(self, *_: Any, **__: Any) -> Any:
        """The rest of a Grid, which FedAvg does not use."""
        raise NotImplementedError

    run = property(unused)
    set_run = create_message = push_messages = pull_messages = unused


def serve(grid: Grid, clock: Callable[[], float]) -> None:
    """The server's side: FedAvg rounds against the clock."""
    work = load(os.environ[WORK])
    strategy = FedAvg(work.cohort / len(work.clients), 0.0, min_train_nodes=work.cohort)
    module = network(work)
    arrays = ArrayRecord(module.state_dict())

    def play(rounds: int) -> None:
        nonlocal arrays
        arrays = strategy.start(grid, arrays, num_rounds=rounds).arrays

    def outputs(x: Tensor) -> Tensor:
        module.load_state_dict(arrays.to_torch_state_dict())
        return module(x)  # type: ignore[no-any-return]

    measure(work, ("flwr",), play, outputs, clock)


def tree_seconds() -> float:
    """CPU seconds of this process and all its descendants."""
    parents, ticks = {}, {}
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split() if folder.name.isdigit() else []
        except OSError:
            continue
        if fields:
            parents[int(folder.name)], ticks[int(folder.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    family, found = {os.getpid()}, 0
    while found < len(family):
        found = len(family)
        family |= {process for process, parent in parents.items() if parent in family}
    return sum(ticks[process] for process in family) / os.sysconf("SC_CLK_TCK")


def simulate() -> None:
    """Flower's own simulation: Ray, one worker with one CPU."""
    from flwr.simulation import run_simulation

    from benchmarks.peers import flower  # by this name Ray's worker can import what it is to run

    server_app = ServerApp()
    server_app.main()(lambda grid, context: serve(grid, tree_seconds))
    resources = {"init_args": {"num_cpus": 1}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(server_app, flower.client_app, len(load(os.environ[WORK]).clients), backend_config=resources)  # type: ignore[arg-type]


if __name__ == "__main__":
    *mode, path = sys.argv[1:]
    os.environ[WORK] = path
    logging.getLogger("flwr").setLevel(logging.ERROR)
    if mode == ["ray"]:
        simulate()
    else:
        serve(MemoryGrid(len(load(path).clients)), process_time)
