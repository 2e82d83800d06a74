"""The vmap engine: one step of every client of the block at once, for any module that torch.func can vectorise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from fedgen.models.model import own_generator
from fedgen.registry import register
from fedgen.training.lockstep import Step, in_lockstep
from fedgen.training.trainer import Task, Trained


@register("engine", "vmap")
@dataclass(frozen=True, kw_only=True)
class Vmap:
    """Steps of all clients in lockstep through torch.func.vmap, for any module that it can vectorise."""

    draws: ClassVar[bool] = True

    def train(self, task: Task) -> Trained:
        layout = task.model.layout
        gradient = vmap(grad_and_value(task.model.masked_loss), randomness="different")

        def gradients_of(step: Step) -> Tensor:
            tensors, losses = gradient(layout.view(step.rows), step.x, step.y, step.real)
            torch.cat([tensors[name].reshape(len(step.rows), -1) for name in layout.shapes], dim=1, out=step.gradients)
            sums: Tensor = losses * step.real.sum(1)
            return sums

        with own_generator():
            task.seed(0)
            return in_lockstep(task, gradients_of)
