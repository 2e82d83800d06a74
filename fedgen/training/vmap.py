"""The vmap engine: one step of every client of the block at once, for any module that torch.func can vectorise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.func import grad_and_value, vmap

from fedgen.registry import register
from fedgen.training.trainer import Task, Trained


@register("engine", "vmap")
@dataclass(frozen=True, kw_only=True)
class Vmap:
    """Steps of all clients in lockstep through torch.func.vmap; clients with fewer steps leave the stack early."""

    def train(self, task: Task) -> Trained:
        order = task.batches.steps.argsort(descending=True, stable=True)
        steps, rows = task.batches.steps[order], task.start[order].clone()
        state = {name: value[order].clone() for name, value in task.optimizer_state.items()}
        index, taken = task.batches.index[order], task.batches.taken[order]
        total, seen = torch.zeros(len(rows)), taken.sum((1, 2))
        gradient = vmap(grad_and_value(task.model.masked_loss))
        layout = task.model.layout

        for step in range(int(steps[0])):
            active = int((steps > step).sum())
            width = int(taken[:active, step].sum(1).max())
            chosen, real = index[:active, step, :width], taken[:active, step, :width]
            client = order[:active, None]
            tensors, losses = gradient(layout.view(rows[:active]), task.x[client, chosen], task.y[client, chosen], real)
            task.optimizer.step(
                rows[:active], layout.flatten(tensors), {name: value[:active] for name, value in state.items()}
            )
            total[:active] += losses * real.sum(1)

        back = order.argsort()
        losses = total / seen.clamp_min(1)
        return Trained(rows[back], losses[back], {name: value[back] for name, value in state.items()})
