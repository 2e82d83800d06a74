"""Local training of a block: batches, engine and optimiser bound together for the methods to call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from fedgen.contracts import Block
from fedgen.models.model import Model
from fedgen.parameters import Tensors
from fedgen.training.batches import Batches, draw_batches
from fedgen.training.optimizers import Optimizer


@dataclass(frozen=True)
class Task:
    """What an engine computes: n clients' steps from their start rows; nothing in it is changed.

    start[n, d], x[n, m, ...], y[n, m]; optimizer_state {name: [n, d]}.
    """

    model: Model
    start: Tensor
    x: Tensor
    y: Tensor
    batches: Batches
    optimizer: Optimizer
    optimizer_state: Tensors


@dataclass(frozen=True)
class Trained:
    """rows[n, d], losses[n] (mean over the samples seen, each before its step), optimizer_state {name: [n, d]}."""

    rows: Tensor
    losses: Tensor
    optimizer_state: Tensors


class Engine(Protocol):
    """What is registered as an "engine"; all agree with `reference` within float32 tolerance."""

    def train(self, task: Task) -> Trained: ...


@dataclass(frozen=True)
class Trainer:
    """Local training as the experiment's [training] table describes it."""

    model: Model
    engine: Engine
    optimizer: Optimizer
    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    keep_optimizer: bool = False
    prefix: str = field(default="optimizer.", repr=False)

    def train(self, block: Block) -> Trained:
        """The block after its local epochs or steps; with `keep_optimizer`, optimizer_state is client state."""
        batches = draw_batches(block, self.batch_size, self.epochs, self.steps)
        state = self.optimizer.state(block.start)
        if self.keep_optimizer:
            state = {name: block.stored(self.prefix + name, fresh).clone() for name, fresh in state.items()}
        trained = self.engine.train(Task(self.model, block.start, block.x, block.y, batches, self.optimizer, state))
        kept = {self.prefix + name: value for name, value in trained.optimizer_state.items()}
        return Trained(trained.rows, trained.losses, kept if self.keep_optimizer else {})
