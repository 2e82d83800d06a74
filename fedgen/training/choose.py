"""Which engine trains a model, where the experiment leaves the choice to us."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

from torch import Tensor

from fedgen.device import HOST
from fedgen.errors import SettingError
from fedgen.models.model import Model
from fedgen.training import stacked, vmap
from fedgen.training.memory import hooked
from fedgen.training.trial import drawing, length_matters, lockstep_fails

LOCKSTEP_SIZE = 100_000
"""Parameters up to which lockstep beats one client after another: beyond, a block leaves the cache."""

TRIED = 8
"""Samples on which most of a module is tried before the run."""

Trial = Callable[[Model, Tensor, Tensor], str]


def choose_engine(setting: str, model: Model, x: Tensor, y: Tensor, device: str = "cpu") -> tuple[str, str]:
    """(engine, why it is not a faster one, where that is so), by trial and by size.

    x[s, ...], y[s]: samples, as many as the longest batch, on which the faster engines are tried; all is tried on the
    host, whatever the device of the training.

    Raises SettingError where the experiment asks for an engine that cannot train the model.
    """
    draws = _draws(model, x[:TRIED], y[:TRIED])
    tried: dict[str, Trial] = {"stacked": _stacked_fails, "vmap": partial(_vmap_fails, draws)}
    fails = tried.get(setting)
    if setting == "stacked" and device != HOST.type:
        raise SettingError(
            f"training.engine 'stacked' computes with numpy on the host, and training.device = {device!r}; use 'auto'"
        )
    if fails is not None and (reason := _alone(model) or fails(model, x, y)):
        raise SettingError(f"training.engine {setting!r} cannot train this model ({reason}); use 'auto'")
    if setting != "auto":
        return setting, ""
    name = f"{type(model.module).__name__} is trained client by client"
    if reason := _alone(model):
        return "sequential", f"{name}: {reason}"
    if model.layout.size > LOCKSTEP_SIZE:
        return "sequential", ""
    if device == HOST.type and not _stacked_fails(model, x, y):
        return "stacked", ""
    if reason := _vmap_fails(draws, model, x, y):
        return "sequential", f"{name}: {reason}"
    return "vmap", ""


def _alone(model: Model) -> str:
    """Why clients cannot be trained in lockstep, whatever the engine; "" where they can."""
    if model.layout.statistics:
        return "it has running statistics"
    if model.remembers:
        return (
            f"training changes its attribute {model.remembers!r}, which begins anew with each client; register a "
            "buffer for what is to be kept"
        )
    if name := hooked(model.module):
        return f"its parameter {name!r} has a hook on its gradient"
    if not model.kept:
        return ""
    return (
        f"training changes its buffer {model.kept[0]!r}, which stays with each client; to average it, list it "
        "in an attribute `statistics` of its module"
    )


def _stacked_fails(model: Model, x: Tensor, y: Tensor) -> str:
    """Known layers may have options that their stacked form does not know, and be put together in ways it does not
    see."""
    try:
        return lockstep_fails(model, x[:TRIED], y[:TRIED], stacked.network_of(model).gradients_of)
    except Exception as error:
        return _line(error)


def _draws(model: Model, x: Tensor, y: Tensor) -> bool:
    try:
        return drawing(model, x, y)
    except SettingError:
        raise
    except Exception:  # a module that fails says so where it is trained
        return False


def _vmap_fails(draws: bool, model: Model, x: Tensor, y: Tensor) -> str:
    if draws:
        return "it draws random numbers, which torch.func would draw for the whole block"
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            reason = lockstep_fails(model, x[:TRIED], y[:TRIED], vmap.gradients_of(model))
            if not reason and length_matters(model, x):
                reason = "what it makes of a sample depends on the length of the batch"
    except Exception as error:
        return f"vmap cannot take it: {_line(error)}"
    slow = any("batching rule" in str(each.message) for each in told)
    return reason or ("vmap would take it client by client, and slower" if slow else "")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
