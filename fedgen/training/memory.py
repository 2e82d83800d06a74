"""State of a module outside its parameters and buffers: counters, caches, random generators."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn

TORCHS = frozenset(vars(nn.Module()))
"""Attributes that every module has."""

DEPTH = 4


def memory_of(module: nn.Module) -> dict[str, object]:
    """{attribute: what tells whether it has changed} of a module and its parts, without parameters, buffers and parts.

    >>> module = nn.Linear(1, 1)
    >>> before = memory_of(module)
    >>> module.calls = [1]
    >>> memory_of(module).keys() - before.keys()
    {'calls'}
    """
    return {
        ".".join(filter(None, (path, name))): _mark(value, DEPTH)
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if name not in TORCHS
    }


def changed(before: dict[str, object], after: dict[str, object]) -> str:
    """The first attribute that is not what it was, "" where all are."""
    return next((name for name, mark in after.items() if name not in before or before[name] != mark), "")


def hooked(module: nn.Module) -> str:
    """Name of a parameter with a hook on its gradient, "" where none has any."""
    for name, parameter in module.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return name
    return ""


def _mark(value: object, depth: int) -> object:
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().cpu().contiguous().reshape(-1).tolist()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState | random.Random):
        return repr(value.get_state() if isinstance(value, np.random.RandomState) else value.getstate())
    if depth and isinstance(value, dict):
        return [(repr(key), _mark(item, depth - 1)) for key, item in value.items()]
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_mark(item, depth - 1) for item in value]
    return id(value)
