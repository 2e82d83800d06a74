"""Local training of a block: batches, engine and optimiser bound together for the methods to call."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from fedgen.contracts import Block, Samples
from fedgen.models.model import Model, seed_generator
from fedgen.parameters import Tensors
from fedgen.training.batches import Batches, draw_batches
from fedgen.training.gradients import Adjustment
from fedgen.training.optimizers import Optimizer
from fedgen.training.schedules import Constant, Schedule

KEPT = "optimizer."
"""Begins the names under which an optimiser's state is client state."""

BUFFER, BUFFERS = "buffer.", "buffers"
"""Begins the names under which constants that training changes are client state; 1 at clients that hold them."""


@dataclass(frozen=True)
class Task:
    """What an engine computes: n clients' steps from their start rows; nothing in it is changed.

    start[n, d], samples of the n clients; optimizer_state {name: [n, p] or [n, 1]} of the p trained columns; seeds
    int64[n]: of what a module draws by itself (dropout), one a client.  buffers {name: [n, ...]}: the constants that
    training changes, as each client holds them.
    """

    model: Model
    start: Tensor
    samples: Samples
    batches: Batches
    optimizer: Optimizer
    optimizer_state: Tensors
    adjustment: Adjustment = field(default_factory=Adjustment)
    seeds: Tensor | None = None
    buffers: Tensors = field(default_factory=dict)

    def seed(self, client: int) -> None:
        """Begin the client's own random numbers; engines call it in `own_generator`."""
        if self.seeds is not None:
            seed_generator(int(self.seeds[client]))


@dataclass(frozen=True)
class Trained:
    """rows[n, d], losses[n] (mean over the samples seen, each before its step), optimizer_state {name: [n, ...]},
    steps[n] taken, buffers {name: [n, ...]} as in the task.

    All of it is fresh memory that the caller may write to.  client_state: what of it a client keeps until it trains
    again; the trainer says so, no engine.
    """

    rows: Tensor
    losses: Tensor
    optimizer_state: Tensors
    steps: Tensor
    buffers: Tensors = field(default_factory=dict)
    client_state: Tensors = field(default_factory=dict)


class Engine(Protocol):
    """What is registered as an "engine"; all agree with `reference` within float32 tolerance."""

    def draws(self, model: Model) -> bool:
        """Whether training this model may take random numbers, so that the task is to carry seeds."""
        ...

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
    schedule: Schedule = field(default_factory=Constant)
    proximal: float = 0.0
    clip_norm: float | None = None

    def optimizer_of(self, round: int) -> Optimizer:
        """The optimiser with the learning rate of this round."""
        return self.optimizer.scaled(self.schedule.factor(round))

    def train(self, block: Block, control: Tensor | None = None) -> Trained:
        """The block after its local epochs or steps.

        control[n, d] is added to every gradient.  The client_state that is returned is looked for in the block: the
        optimiser's state with `keep_optimizer`, and the constants that training changes.
        """
        state = self._kept(block) or self.optimizer.state(block.start[:, : self.model.parameters.size])
        trained = self.engine.train(
            Task(
                model=self.model,
                start=block.start,
                samples=block.samples,
                batches=draw_batches(block, self.batch_size, self.epochs, self.steps, self.model.smallest_batch),
                optimizer=self.optimizer_of(block.round),
                optimizer_state=state,
                adjustment=Adjustment(self.proximal, self.clip_norm, control),
                seeds=self._seeds(block) if self.engine.draws(self.model) else None,
                buffers=self._buffers(block),
            )
        )
        kept = {KEPT + name: value for name, value in trained.optimizer_state.items()} if self.keep_optimizer else {}
        if trained.buffers:
            kept |= {BUFFERS: torch.ones(len(trained.rows), dtype=torch.bool, device=trained.rows.device)}
            kept |= {BUFFER + name: value for name, value in trained.buffers.items()}
        return replace(trained, steps=trained.steps.to(trained.rows.device), client_state=kept)

    def _kept(self, block: Block) -> Tensors:
        """The optimiser's state from the rounds before; nothing where the block's clients hold none."""
        if not self.keep_optimizer:
            return {}
        names = (name.removeprefix(KEPT) for name in block.client_state if name.startswith(KEPT))
        return {name: block.client_state[KEPT + name] for name in names}

    def _buffers(self, block: Block) -> Tensors:
        """{name: [n, ...]}: the constants that training changes, as the clients hold them, replica 0's at first."""
        first = {name: value.expand(len(block.clients), *value.shape) for name, value in self.model.first_kept.items()}
        if BUFFERS not in block.client_state:
            return first
        known = block.client_state[BUFFERS]
        return {
            name: torch.where(known.view(-1, *[1] * (value.dim() - 1)), block.client_state[BUFFER + name], value)
            for name, value in first.items()
        }

    @staticmethod
    def _seeds(block: Block) -> Tensor:
        words = block.streams.words("module", block.round, block.clients, 1)[:, 0]
        return torch.from_numpy(words.astype("int64"))
