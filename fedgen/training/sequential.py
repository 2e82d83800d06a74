"""The sequential engine: one client after another, parameters and gradients in two flat buffers, for large models."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.device import beside
from fedgen.models.model import Model, own_generator
from fedgen.parameters import Tensors
from fedgen.registry import register
from fedgen.training.trainer import Task, Trained


@register("engine", "sequential")
@dataclass(frozen=True, kw_only=True)
class Sequential:
    """One preallocated model whose parameters and buffers are views of a flat row: any module, one client at a time."""

    def draws(self, model: Model) -> bool:
        return True

    def train(self, task: Task) -> Trained:
        rows = task.start.clone(memory_format=torch.contiguous_format)
        state = {name: value.clone() for name, value in task.optimizer_state.items()}
        buffers = {name: value.clone(memory_format=torch.contiguous_format) for name, value in task.buffers.items()}
        gradient = rows.new_zeros(1, task.model.parameters.size)
        with own_generator():
            losses = [_train_one(task, client, rows, gradient, state, buffers) for client in range(len(rows))]
        return Trained(rows, torch.stack(losses), state, task.batches.steps, buffers)


def _train_one(task: Task, client: int, rows: Tensor, gradient: Tensor, states: Tensors, buffers: Tensors) -> Tensor:
    """One client's steps, in place in rows[client]; returns its mean loss."""
    module = task.model.fresh() if task.model.remembers else task.model.scratch
    here = slice(client, client + 1)
    trained = task.model.parameters.size
    values = task.model.layout.view(rows[client])
    slopes = task.model.parameters.view(gradient[0])
    for name, parameter in module.named_parameters():
        if name in slopes:
            parameter.data, parameter.grad = values[name], slopes[name]
    for name, buffer in module.named_buffers():
        if name in buffers:
            buffer.data = buffers[name][client]
        else:
            buffer.data = values[name] if name in values else task.model.module.get_buffer(name).clone()
    row, start = rows[here, :trained], task.start[here, :trained]
    state = {name: value[here] for name, value in states.items()}
    control = None if task.adjustment.control is None else task.adjustment.control[here]
    held = task.samples.index[client]
    task.seed(client)
    total = row.new_zeros(())
    seen = 0
    for index, size in zip(task.batches.index[client], task.batches.sizes[client].tolist(), strict=True):
        if size == 0:
            break
        x, y = task.samples.take(held[beside(index[:size], held)])
        gradient.zero_()
        each = task.model.loss(module(task.model.arranged(x)), y)
        each.mean().backward()
        task.adjustment.apply(gradient, row, start, control)
        task.optimizer.step(row, gradient, state)
        total, seen = total + each.detach().sum(), seen + size
    for name, value in buffers.items():
        value[client] = module.get_buffer(name)  # a module may have put another tensor in its place
    return total / max(seen, 1)
