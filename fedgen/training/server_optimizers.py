"""Server optimisers: how the holder of a model applies an aggregated update, over any leading dimensions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from fedgen.parameters import Layout, Tensors
from fedgen.registry import register

Rate = Annotated[float, Field(gt=0, description="server learning rate")]
Beta = Annotated[float, Field(ge=0, lt=1, description="decay of a running mean")]
Adaptivity = Annotated[
    float, Field(gt=0, description="added to the denominator: smaller adapts more (the paper's tau)")
]

PREFIX = "server_optimizer."


class ServerOptimizer(Protocol):
    """What is registered as a "server_optimizer"; d columns of parameters, without statistics."""

    def state(self, model: Tensor) -> Tensors:
        """Fresh state for model[..., d], under names that begin with "server_optimizer."."""
        ...

    def step(self, model: Tensor, update: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        """(model, state) after one update[..., d]; nothing is changed in place."""
        ...


def opened(optimizer: ServerOptimizer, model: Tensor, layout: Layout) -> Tensors:
    """The holder's state before the first update: "model"[..., d] of that layout, and the optimiser's."""
    return {"model": model, **optimizer.state(model[..., layout.parameters])}


def stepped(optimizer: ServerOptimizer, state: Tensors, update: Tensor, layout: Layout) -> Tensors:
    """The holder's state after one aggregated update[..., d]: the optimiser steps the parameters.

    Statistics are what their aggregate says, whatever the optimiser: model <- model + update, variances from 0 on, as
    rounding may leave them below.
    """
    model = state["model"]
    trained = layout.parameters
    measured = layout.measured
    moved, changed = optimizer.step(model[..., trained], update[..., trained], state)
    if layout.statistics:
        moved = torch.cat([moved, model[..., measured] + update[..., measured]], dim=-1)
        for name in layout.variances:
            moved[..., layout.columns[name][0]].clamp_(min=0)
    return {**state, **changed, "model": moved}


@register("server_optimizer", "sgd")
@dataclass(frozen=True, kw_only=True)
class ServerSgd:
    """The aggregated update as a negative gradient: lr 1 and momentum 0 give federated averaging.

    u <- momentum * u + update;  model <- model + lr * u

    Source: T. Hsu, H. Qi, M. Brown, arXiv 1909.06335 (2019), FedAvgM.
    """

    lr: Rate = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1, description="server momentum")] = 0.0

    def state(self, model: Tensor) -> Tensors:
        return {f"{PREFIX}momentum": torch.zeros_like(model)} if self.momentum else {}

    def step(self, model: Tensor, update: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        if self.momentum:
            update = self.momentum * state[f"{PREFIX}momentum"] + update
            return model + self.lr * update, {f"{PREFIX}momentum": update}
        return model + (update if self.lr == 1 else self.lr * update), {}


@dataclass(frozen=True, kw_only=True)
class Adaptive(ABC):
    """What the adaptive server optimisers of Reddi et al. share: they differ in the second moment alone.

    m <- beta1 m + (1 - beta1) update;  v <- second(v, update^2);  model <- model + lr * m / (sqrt(v) + tau)

    Source: S. Reddi et al., Adaptive federated optimization, arXiv 2003.00295 (2021), algorithm 2.  As there, moments
    are not corrected for their start; v starts at tau^2.
    """

    lr: Rate = 0.1
    beta1: Beta = 0.9
    tau: Adaptivity = 1e-3

    def state(self, model: Tensor) -> Tensors:
        return {
            f"{PREFIX}first": torch.zeros_like(model),
            f"{PREFIX}second": torch.full_like(model, self.tau**2),
        }

    def step(self, model: Tensor, update: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        first = self.beta1 * state[f"{PREFIX}first"] + (1 - self.beta1) * update
        second = self.second(state[f"{PREFIX}second"], update * update)
        moved = model + self.lr * first / (second.sqrt() + self.tau)
        return moved, {f"{PREFIX}first": first, f"{PREFIX}second": second}

    @abstractmethod
    def second(self, before: Tensor, square: Tensor) -> Tensor:
        """v after one update whose square is given."""


@register("server_optimizer", "adagrad")
@dataclass(frozen=True, kw_only=True)
class Adagrad(Adaptive):
    """FedAdagrad: v <- v + update^2, with lr, beta1, tau as in algorithm 2 of arXiv 2003.00295."""

    beta1: Beta = 0.0

    def second(self, before: Tensor, square: Tensor) -> Tensor:
        return before + square


@register("server_optimizer", "adam")
@dataclass(frozen=True, kw_only=True)
class ServerAdam(Adaptive):
    """FedAdam: v <- beta2 v + (1 - beta2) update^2, as in algorithm 2 of arXiv 2003.00295."""

    beta2: Beta = 0.99

    def second(self, before: Tensor, square: Tensor) -> Tensor:
        return self.beta2 * before + (1 - self.beta2) * square


@register("server_optimizer", "yogi")
@dataclass(frozen=True, kw_only=True)
class Yogi(Adaptive):
    """FedYogi: v <- v - (1 - beta2) update^2 sign(v - update^2), as in algorithm 2 of arXiv 2003.00295."""

    beta2: Beta = 0.99

    def second(self, before: Tensor, square: Tensor) -> Tensor:
        return before - (1 - self.beta2) * square * (before - square).sign()
