"""The reference engine: one client after another, one torch module, torch's own optimiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedgen.parameters import Tensors
from fedgen.registry import register
from fedgen.training.trainer import Task, Trained


@register("engine", "reference")
@dataclass(frozen=True, kw_only=True)
class Reference:
    """A plain loop over clients and steps: slow, any module, what every other engine is tested against."""

    def train(self, task: Task) -> Trained:
        clients = [_train_one(task, client) for client in range(len(task.start))]
        rows, losses, states = zip(*clients, strict=True)
        merged = {name: torch.stack([state[name] for state in states]) for name in task.optimizer_state}
        return Trained(torch.stack(rows), torch.stack(losses), merged)


def _train_one(task: Task, client: int) -> tuple[Tensor, Tensor, Tensors]:
    module, layout = task.model.module, task.model.layout
    parameters = dict(module.named_parameters())
    _load(parameters, layout.view(task.start[client]))
    optimizer = task.optimizer.reference(list(parameters.values()))
    names = task.optimizer.reference_names
    for name, torch_name in names.items():
        for key, value in layout.view(task.optimizer_state[name][client]).items():
            optimizer.state[parameters[key]][torch_name] = value.clone()

    total, seen = torch.zeros(()), 0
    for index, taken in zip(task.batches.index[client], task.batches.taken[client], strict=True):
        if not taken.any():
            break
        x, y = task.x[client, index[taken]], task.y[client, index[taken]]
        optimizer.zero_grad()
        losses = task.model.loss(module(x), y)
        losses.mean().backward()
        optimizer.step()
        total, seen = total + losses.detach().sum(), seen + len(y)

    row = layout.flatten({key: parameter.detach() for key, parameter in parameters.items()})
    state = {
        name: layout.flatten({key: optimizer.state[parameters[key]][torch_name] for key in parameters})
        for name, torch_name in names.items()
    }
    return row, total / max(seen, 1), state


def _load(parameters: dict[str, nn.Parameter], values: Tensors) -> None:
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(values[key])
