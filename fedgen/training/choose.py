"""Which engine trains a model, where the experiment leaves the choice to us."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from fedgen.models.model import Model
from fedgen.training.stacked import can_stack

LOCKSTEP_SIZE = 100_000
"""Parameters up to which lockstep beats one client after another: beyond, a block leaves the cache."""


def choose_engine(setting: str, model: Model, x: Tensor, y: Tensor) -> tuple[str, str]:
    """(engine, why it is not the faster one, where that is so), by model and size alone.

    x[s, ...], y[s]: a few samples, on which vmap is tried for modules that have no stacked form.
    """
    if setting != "auto":
        return setting, ""
    if model.layout.size > model.parameters.size:
        return "sequential", f"{type(model.module).__name__} keeps running statistics, which padded batches would spoil"
    if model.layout.size > LOCKSTEP_SIZE:
        return "sequential", ""
    if can_stack(model.module, model.loss.__name__):
        return "stacked", ""
    reason = _vmap_fails(model, x, y)
    if reason:
        return "sequential", f"{type(model.module).__name__} is trained client by client, vmap cannot take it: {reason}"
    return "vmap", ""


def _vmap_fails(model: Model, x: Tensor, y: Tensor) -> str:
    rows = model.layout.flatten({name: value.detach() for name, value in model.module.named_parameters()})
    tensors = model.layout.view(rows.expand(2, -1).contiguous())
    taken = torch.ones(2, len(y), dtype=torch.bool)
    try:
        gradient = vmap(grad_and_value(model.masked_loss), randomness="different")
        gradient(tensors, x.expand(2, *x.shape), y.expand(2, *y.shape), taken)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""
