"""The stacked engine: every client of a block in one product a layer, with backward written by hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from fedgen.errors import SettingError
from fedgen.models.model import Model
from fedgen.registry import register
from fedgen.training.layers import LAYERS, Arrays, Draws, Dropout, Layer
from fedgen.training.lockstep import Step, in_lockstep
from fedgen.training.objectives import OBJECTIVES, Objective
from fedgen.training.trainer import Task, Trained


@register("engine", "stacked")
@dataclass(frozen=True, kw_only=True)
class Stacked:
    """Batched matrix products over the block, for sequences of known layers: the fastest for small models.

    While all clients still hold the start row, the forward pass is one product over all their samples.
    Raises SettingError for a model with a layer, or a loss, that has no stacked form.
    """

    def draws(self, model: Model) -> bool:
        return network_of(model).draws

    def train(self, task: Task) -> Trained:
        with np.errstate(all="ignore"):  # a client that diverges is admission's business
            return in_lockstep(task, network_of(task.model).gradients_of)


@dataclass(frozen=True)
class Network:
    """A sequence of stacked layers and the objective at its end.

    first: the first layer with parameters, where backward ends; columns {name: (columns of a row, shape)} of each
    parameter.
    """

    layers: tuple[Layer, ...]
    first: int
    objective: Objective
    columns: dict[str, tuple[slice, tuple[int, ...]]]

    @property
    def draws(self) -> bool:
        return any(isinstance(layer, Dropout) for layer in self.layers)

    def gradients_of(self, step: Step) -> Tensor:
        """As `lockstep.StepGradients`."""
        held = self._views(step.rows[:1] if step.common else step.rows)
        targets = self._views(step.gradients)
        x = step.x.numpy()
        real = step.real
        saved = []
        draws = Draws(step.generators, step.sizes)
        for layer in self.layers:
            x, kept = layer.forward(held, x, draws)
            saved.append(kept)
        losses, dy = self.objective(x, step.y.numpy())
        weights = real / step.sizes[:, None].astype(np.float32)
        dy *= weights.reshape(*weights.shape, *[1] * (dy.ndim - 2))
        for place in reversed(range(self.first, len(self.layers))):
            dx = self.layers[place].backward(held, saved[place], dy, targets, place > self.first)
            dy = dy if dx is None else dx
        return torch.from_numpy((losses * real).sum(1))

    def _views(self, rows: Tensor) -> Arrays:
        array = rows.numpy()
        return {name: array[:, part].reshape(len(array), *shape) for name, (part, shape) in self.columns.items()}


@lru_cache(maxsize=8)
def network_of(model: Model) -> Network:
    """The stacked form of a model.

    Raises SettingError where a layer or the loss has none.
    """
    leaves = _leaves(model.module, "")
    layers = tuple(_layer(leaf, prefix) for prefix, leaf in leaves)
    first = next(place for place, (_, leaf) in enumerate(leaves) if list(leaf.parameters()))
    if model.loss not in OBJECTIVES:
        raise SettingError("training.engine 'stacked' does not know this model.loss; use engine 'vmap'")
    return Network(layers, first, OBJECTIVES[model.loss], model.layout.columns)


def _leaves(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    """(prefix of parameter names, layer) of a sequence, nested ones unrolled."""
    if type(module).forward is not nn.Sequential.forward:
        return [(prefix, module)]
    # Not named_children: it leaves out a layer that is used a second time.
    children = [(name, child) for name, child in module._modules.items() if child is not None]
    return [leaf for name, child in children for leaf in _leaves(child, f"{prefix}{name}.")]


def _layer(module: nn.Module, prefix: str) -> Layer:
    if type(module) not in LAYERS:
        raise SettingError(
            f"training.engine 'stacked' has no layer {type(module).__name__}; known: "
            f"{', '.join(sorted(each.__name__ for each in LAYERS))}; use engine 'vmap' or 'sequential'"
        )
    return LAYERS[type(module)](module, prefix)
