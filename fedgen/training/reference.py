"""The reference engine: one client after another, one torch module, torch's own optimiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedgen.device import beside
from fedgen.models.model import Model, own_generator, travelling
from fedgen.parameters import Tensors
from fedgen.registry import register
from fedgen.training.trainer import Task, Trained


@register("engine", "reference")
@dataclass(frozen=True, kw_only=True)
class Reference:
    """A plain loop over clients and steps: slow, any module, what every other engine is tested against."""

    def draws(self, model: Model) -> bool:
        return True

    def train(self, task: Task) -> Trained:
        with own_generator():
            clients = [_train_one(task, client) for client in range(len(task.start))]
        rows, losses, states, buffers = zip(*clients, strict=True)
        merged = {name: torch.stack([state[name] for state in states]) for name in task.optimizer_state}
        held = {name: torch.stack([each[name] for each in buffers]) for name in task.buffers}
        return Trained(torch.stack(rows), torch.stack(losses), merged, task.batches.steps, held)


def _train_one(task: Task, client: int) -> tuple[Tensor, Tensor, Tensors, Tensors]:
    module = task.model.fresh()
    layout = task.model.parameters
    adjustment = task.adjustment
    parameters = {name: each for name, each in module.named_parameters() if each.requires_grad}
    anchors = task.model.layout.view(task.start[client])
    for name, held in travelling(module).items():
        held.copy_(anchors[name])
    for name, value in task.buffers.items():
        module.get_buffer(name).copy_(value[client])
    optimizer = task.optimizer.reference(list(parameters.values()))
    for name, torch_name in task.optimizer.reference_names.items():
        for key, value in _split(task, task.optimizer_state[name][client]).items():
            optimizer.state[parameters[key]][torch_name] = value.clone()
    control = None if adjustment.control is None else layout.view(adjustment.control[client])

    held = task.samples.index[client]
    task.seed(client)
    total = task.start.new_zeros(())
    seen = 0
    for index, size in zip(task.batches.index[client], task.batches.sizes[client].tolist(), strict=True):
        if size == 0:
            break
        x, y = task.samples.take(held[beside(index[:size], held)])
        optimizer.zero_grad()
        losses = task.model.loss(module(task.model.arranged(x)), y)
        distance = sum(((value - anchors[key]) ** 2).sum() for key, value in parameters.items())
        linear = sum((value * control[key]).sum() for key, value in parameters.items()) if control else 0.0
        (losses.mean() + adjustment.proximal / 2 * distance + linear).backward()
        if adjustment.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters.values(), adjustment.clip_norm)
        optimizer.step()
        total, seen = total + losses.detach().sum(), seen + len(y)

    row = task.model.row_of(module)
    state = {name: _joined(task, optimizer, parameters, name) for name in task.optimizer_state}
    buffers = {name: module.get_buffer(name).clone() for name in task.buffers}
    return row, total / max(seen, 1), state, buffers


def _split(task: Task, value: Tensor) -> Tensors:
    """A client's optimiser state [d], or its one number [1], for each parameter."""
    layout = task.model.parameters
    return layout.view(value) if value.shape[0] == layout.size else dict.fromkeys(layout.shapes, value[0])


def _joined(task: Task, optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], name: str) -> Tensor:
    torch_name = task.optimizer.reference_names[name]
    layout = task.model.parameters
    held = {key: optimizer.state[parameter][torch_name] for key, parameter in parameters.items()}
    if task.optimizer_state[name].shape[1] == layout.size:
        return layout.flatten(held)
    number: Tensor = next(iter(held.values()))
    return number.reshape(1)
