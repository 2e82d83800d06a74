"""Shared by all measured systems: the work, the network, the clock, and the result as one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import process_time

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import vector_to_parameters

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Work:
    """The same federated averaging for every system: SGD clients, one cohort per round.

    clients: the batches (x[b, ...], y[b]) of each client's round, one per local step.
    start: row[d] of the initial global model, its parameters in torch's order.
    warmup: rounds before the clock starts; then `repeats` times `rounds` rounds are measured.
    """

    model: str
    cohort: int
    lr: float
    warmup: int
    rounds: int
    repeats: int
    start: Tensor
    clients: list[list[Batch]]

    @property
    def steps(self) -> int:
        return len(self.clients[0])

    def save(self, path: Path) -> None:
        torch.save(vars(self), path)


def load(path: str) -> Work:
    """Read the work from a file, and limit this process to one thread."""
    torch.set_num_threads(1)
    return Work(**torch.load(path))


def network(work: Work) -> nn.Sequential:
    """A new module with the work's initial parameters."""
    module = nn.Sequential(*(_mlp() if work.model == "mlp" else _cnn()))
    vector_to_parameters(work.start.clone(), module.parameters())
    return module


def _mlp() -> list[nn.Module]:
    return [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)]


def _cnn() -> list[nn.Module]:
    layers = [nn.Conv2d(1, 32, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.MaxPool2d(2), nn.ReLU()]
    return [*layers, nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10)]


def mean_loss(work: Work, outputs: Callable[[Tensor], Tensor]) -> float:
    """Mean cross-entropy over every client's samples."""
    batches = [batch for client in work.clients for batch in client]
    with torch.no_grad():
        losses = [cross_entropy(outputs(x), y, reduction="sum").double() for x, y in batches]
    return float(torch.stack(losses).sum()) / sum(len(y) for _, y in batches)


def measure(
    work: Work,
    packages: Sequence[str],
    play: Callable[[int], None],
    outputs: Callable[[Tensor], Tensor],
    clock: Callable[[], float] = process_time,
) -> None:
    """Play rounds against the clock and print the result as one line of JSON.

    play(n) plays n more rounds; outputs(x) are those of the current global model; clock() gives CPU seconds.
    """
    before = mean_loss(work, outputs)
    play(work.warmup)
    rates = rates_of(play, work.cohort, work.rounds, work.repeats, clock)
    result = {
        "updates_per_cpu_second": max(rates),
        "rates": rates,
        "loss_before": before,
        "loss_after": mean_loss(work, outputs),
        "versions": {name: version(name) for name in (*packages, "torch")},
    }
    print(json.dumps(result), flush=True)


def rates_of(
    play: Callable[[int], None], updates: int, rounds: int, repeats: int, clock: Callable[[], float] = process_time
) -> list[float]:
    """Updates per CPU second of each repeat."""
    rates = []
    for _ in range(repeats):
        began = clock()
        play(rounds)
        rates.append(updates * rounds / (clock() - began))
    return rates
