"""Which engine trains a model, where the experiment leaves the choice to us."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgen.errors import SettingError
from fedgen.models.model import Model
from fedgen.training.stacked import stacking_fails
from fedgen.training.vmap import per_client

LOCKSTEP_SIZE = 100_000
"""Parameters up to which lockstep beats one client after another: beyond, a block leaves the cache."""


def choose_engine(setting: str, model: Model, x: Tensor, y: Tensor) -> tuple[str, str]:
    """(engine, why it is not a faster one, where that is so), by model and size alone.

    x[s, ...], y[s]: a few samples, on which the faster engines are tried.

    Raises SettingError where the experiment asks for an engine that cannot train the model.
    """
    fails = {"stacked": stacking_fails, "vmap": _lockstep_fails}.get(setting)
    if fails is not None and (reason := fails(model, x, y)):
        raise SettingError(f"training.engine {setting!r} cannot train this model ({reason}); use 'auto'")
    if setting != "auto":
        return setting, ""
    name = type(model.module).__name__
    if model.layout.size > model.parameters.size:
        return "sequential", f"{name} has running statistics or frozen parameters, and is trained client by client"
    if model.layout.size > LOCKSTEP_SIZE:
        return "sequential", ""
    if not stacking_fails(model, x, y):
        return "stacked", ""
    if _draws(model):
        return "sequential", f"{name} draws random numbers, and is trained client by client"
    reason = _vmap_fails(model, x, y)
    if reason:
        return "sequential", f"{name} is trained client by client, vmap cannot take it: {reason}"
    return "vmap", ""


def _lockstep_fails(model: Model, x: Tensor, y: Tensor) -> str:
    if model.layout.size > model.parameters.size:
        return "running statistics or frozen parameters"
    return "it draws random numbers" if _draws(model) else _vmap_fails(model, x, y)


def _draws(model: Model) -> bool:
    return any(isinstance(part, torch.nn.modules.dropout._DropoutNd) for part in model.module.modules())


def _vmap_fails(model: Model, x: Tensor, y: Tensor) -> str:
    row, taken = model.row_of(model.module), torch.ones(2, len(y), dtype=torch.bool)
    try:
        for common, rows in ((True, row), (False, row.expand(2, -1).contiguous())):
            gradient = per_client(model.masked_loss, common)
            gradient(model.layout.view(rows), x.expand(2, *x.shape), y.expand(2, *y.shape), taken)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return ""
