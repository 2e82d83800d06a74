"""Server optimisers: how the holder of a model applies an aggregated update, over any leading dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from fedgen.parameters import Tensors
from fedgen.registry import register


class ServerOptimizer(Protocol):
    """What is registered as a "server_optimizer"."""

    def state(self, model: Tensor) -> Tensors:
        """Fresh state for model[..., d], under names that begin with "server_optimizer."."""
        ...

    def step(self, model: Tensor, update: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        """(model, state) after one update[..., d]; nothing is changed in place."""
        ...


@register("server_optimizer", "sgd")
@dataclass(frozen=True, kw_only=True)
class ServerSgd:
    """The aggregated update as a negative gradient: lr 1 and momentum 0 give federated averaging.

    u <- momentum * u + update;  model <- model + lr * u

    Source: T. Hsu, H. Qi, M. Brown, arXiv 1909.06335 (2019), FedAvgM.
    """

    lr: Annotated[float, Field(gt=0, description="server learning rate")] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1, description="server momentum")] = 0.0

    def state(self, model: Tensor) -> Tensors:
        return {"server_optimizer.momentum": torch.zeros_like(model)} if self.momentum else {}

    def step(self, model: Tensor, update: Tensor, state: Tensors) -> tuple[Tensor, Tensors]:
        if self.momentum:
            update = self.momentum * state["server_optimizer.momentum"] + update
            state = {"server_optimizer.momentum": update}
        return model + self.lr * update, state
