"""What engines that train a block in lockstep share: clients in order of their steps, one step after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.errors import SettingError
from fedgen.training.trainer import Task, Trained

StepGradients = Callable[["Step"], Tensor]
"""Writes step.gradients[k, d] of the mean loss of each client; returns the sums of losses[k]."""


@dataclass(frozen=True)
class Step:
    """One step of the clients that still take one.

    rows[k, d], gradients[k, d] to be written, x[k, b, ...], y[k, b], real bool[k, b]; common: every client still holds
    the same row, rows[0].
    """

    rows: Tensor
    gradients: Tensor
    x: Tensor
    y: Tensor
    real: Tensor
    common: bool


def in_lockstep(task: Task, gradients_of: StepGradients) -> Trained:
    """All steps of all clients; those with fewer steps leave the stack early.

    Raises SettingError for a module with running statistics, which the padding of short batches would enter, or with
    frozen parameters.
    """
    if task.model.layout.size > task.model.parameters.size:
        raise SettingError(
            "training.engine: a module with running statistics or frozen parameters needs 'sequential' or 'reference'"
        )
    steps, order = task.batches.steps, None
    if bool((steps[1:] > steps[:-1]).any()):
        order = steps.argsort(descending=True, stable=True)
    common = task.start.stride(0) == 0 or len(task.start) == 1
    steps, index, taken = (_ordered(each, order) for each in (steps, task.batches.index, task.batches.taken))
    start = task.start if common else _ordered(task.start, order)
    control = None if task.adjustment.control is None else _ordered(task.adjustment.control, order)
    client = torch.arange(len(steps)) if order is None else order
    whole = task.batches.whole and order is None
    rows, gradients = start.clone(memory_format=torch.contiguous_format), torch.empty(start.shape)
    state = {name: _ordered(value, order).clone() for name, value in task.optimizer_state.items()}
    total = torch.zeros(len(rows))

    real_counts, active_counts = taken.sum(2), (steps[None, :] > torch.arange(int(steps[0]))[:, None]).sum(1)
    widths = real_counts.amax(0)
    for number, (active, width) in enumerate(zip(active_counts.tolist(), widths.tolist(), strict=True)):
        chosen = index[:active, number, :width]
        step = Step(
            rows=rows[:active],
            gradients=gradients[:active],
            x=task.x[:active, :width] if whole else task.x[client[:active, None], chosen],
            y=task.y[:active, :width] if whole else task.y[client[:active, None], chosen],
            real=taken[:active, number, :width],
            common=common and number == 0,
        )
        total[:active] += gradients_of(step)
        held = None if control is None else control[:active]
        task.adjustment.apply(step.gradients, step.rows, start[:active], held)
        task.optimizer.step(step.rows, step.gradients, {name: value[:active] for name, value in state.items()})

    losses = total / real_counts.sum(1).clamp_min(1)
    if order is None:
        return Trained(rows, losses, state, steps)
    back = order.argsort()
    return Trained(rows[back], losses[back], {name: value[back] for name, value in state.items()}, steps[back])


def _ordered(tensor: Tensor, order: Tensor | None) -> Tensor:
    return tensor if order is None else tensor[order]
