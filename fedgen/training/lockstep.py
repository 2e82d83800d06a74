"""What engines that train a block in lockstep share: clients in order of their steps, one step after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgen.device import beside
from fedgen.errors import SettingError
from fedgen.parameters import Array
from fedgen.training.trainer import Task, Trained

StepGradients = Callable[["Step"], Tensor]
"""Writes step.gradients[k, d] of the mean loss of each client; returns the sums of losses[k]."""


@dataclass(frozen=True)
class Step:
    """One step of the clients that still take one.

    rows[k, d], gradients[k, d] to be written, x[k, b, ...], y[k, b], of which client i takes the first sizes[i];
    common: every client still holds the same row, rows[0]; generators[k]: where the engine draws for each client.
    """

    rows: Tensor
    gradients: Tensor
    x: Tensor
    y: Tensor
    sizes: Array
    common: bool
    generators: Sequence[torch.Generator] = ()

    @property
    def real(self) -> Array:
        """bool[k, b]: which samples are taken."""
        mask: Array = np.arange(self.y.shape[1]) < self.sizes[:, None]
        return mask


def in_lockstep(task: Task, gradients_of: StepGradients) -> Trained:
    """All steps of all clients; those with fewer steps leave the stack early.

    Raises SettingError for a module with running statistics, which the padding of short batches would enter, or with
    other tensors that training changes.
    """
    if task.model.layout.statistics or task.buffers:
        raise SettingError("training.engine: a module that training changes needs 'sequential' or 'reference'")
    order = _longest_first(task.batches.sizes)
    common = task.start.stride(0) == 0 or len(task.start) == 1
    start = task.start if common else _ordered(task.start, order)
    control = None if task.adjustment.control is None else _ordered(task.adjustment.control, order)
    rows = start.clone(memory_format=torch.contiguous_format)
    gradients = start.new_empty(start.shape)
    state = {name: _ordered(value, order).clone() for name, value in task.optimizer_state.items()}
    sizes = task.batches.sizes if order is None else task.batches.sizes[order]
    samples = _samples(task, order)
    generators = _generators(task, order)
    total = rows.new_zeros(len(rows))

    for number, (active, width) in enumerate(zip((sizes > 0).sum(0).tolist(), sizes.max(0).tolist(), strict=True)):
        x, y = samples(number, active, width)
        step = Step(
            rows=rows[:active],
            gradients=gradients[:active],
            x=x,
            y=y,
            sizes=sizes[:active, number],
            common=common and number == 0,
            generators=generators[:active],
        )
        total[:active].add_(gradients_of(step))
        held = None if control is None else control[:active]
        task.adjustment.apply(step.gradients, step.rows, start[:active], held)
        task.optimizer.step(step.rows, step.gradients, {name: value[:active] for name, value in state.items()})

    losses = total / beside(np.maximum(sizes.sum(1), 1), total)
    if order is None:
        return Trained(rows, losses, state, task.batches.steps)
    back = beside(order.argsort(), rows)
    return Trained(rows[back], losses[back], {name: value[back] for name, value in state.items()}, task.batches.steps)


def _longest_first(sizes: Array) -> Array | None:
    """The order of clients by falling number of steps; None where they have it."""
    steps = (sizes > 0).sum(1)
    order: Array | None = np.argsort(-steps, kind="stable") if (steps[1:] > steps[:-1]).any() else None
    return order


def _samples(task: Task, order: Array | None) -> Callable[[int, int, int], tuple[Tensor, Tensor]]:
    """(step, clients, width) -> (x, y) of the step."""
    if task.batches.whole and order is None:
        return lambda number, active, width: (task.samples.x[:active, :width], task.samples.y[:active, :width])
    held = _ordered(task.samples.index, order)
    index = task.batches.index if order is None else task.batches.index[order]
    places = held.gather(1, beside(index.reshape(len(index), -1), held)).view(index.shape)
    return lambda number, active, width: task.samples.take(places[:active, number, :width])


def _generators(task: Task, order: Array | None) -> list[torch.Generator]:
    if task.seeds is None:
        return []
    return [torch.Generator().manual_seed(seed) for seed in _ordered(task.seeds, order).tolist()]


def _ordered(tensor: Tensor, order: Array | None) -> Tensor:
    return tensor if order is None else tensor[beside(order, tensor)]
