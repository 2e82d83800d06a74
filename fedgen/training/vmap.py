"""The vmap engine: one step of every client of the block at once, for any module that torch.func can vectorise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from fedgen.device import beside
from fedgen.models.model import Model, own_generator
from fedgen.parameters import Tensors
from fedgen.registry import register
from fedgen.training.lockstep import Step, StepGradients, in_lockstep
from fedgen.training.trainer import Task, Trained


def per_client(loss: Callable[..., Tensor], common: bool) -> Callable[..., tuple[Tensors, Tensor]]:
    """loss(tensors, x, y, taken) -> its gradients and values for n clients at once; `common` tensors are the same for
    all, so that the forward pass is one product a layer."""
    in_dims = (None if common else 0, 0, 0, 0)
    return vmap(grad_and_value(loss), in_dims, randomness="different")


@register("engine", "vmap")
@dataclass(frozen=True, kw_only=True)
class Vmap:
    """Steps of all clients in lockstep through torch.func.vmap, for any module that it can vectorise."""

    def draws(self, model: Model) -> bool:
        return True

    def train(self, task: Task) -> Trained:
        with own_generator():
            task.seed(0)
            return in_lockstep(task, gradients_of(task.model))


def gradients_of(model: Model) -> StepGradients:
    """As `lockstep.StepGradients`, of any model."""
    layout = model.layout

    def write(step: Step) -> Tensor:
        held = layout.view(step.rows[0] if step.common else step.rows)
        gradient = per_client(model.masked_loss, step.common)
        tensors, losses = gradient(held, step.x, step.y, beside(step.real, step.x))
        torch.cat([tensors[name].reshape(len(step.rows), -1) for name in layout.shapes], dim=1, out=step.gradients)
        sums: Tensor = losses * beside(step.sizes, losses)
        return sums

    return write
