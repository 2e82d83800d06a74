"""Client optimisers: one in-place step for a whole block of rows, and the torch optimiser it must agree with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from fedgen.parameters import Tensors
from fedgen.registry import register


class Optimizer(Protocol):
    """What is registered as an "optimizer"."""

    def state(self, rows: Tensor) -> Tensors:
        """Fresh state for rows[n, d]: {name: [n, d]}."""
        ...

    def step(self, rows: Tensor, gradients: Tensor, state: Tensors) -> None:
        """One step of rows[k, d], in place in rows and state[k, d]; gradients may be overwritten."""
        ...

    def reference(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """torch's own optimiser of the same settings."""
        ...

    @property
    def reference_names(self) -> dict[str, str]:
        """State name here -> its name in the torch optimiser's state."""
        ...


@register("optimizer", "sgd")
@dataclass(frozen=True, kw_only=True)
class Sgd:
    """Gradient descent with heavy-ball momentum.

    u <- momentum * u + g + weight_decay * w;  w <- w - lr * u

    As torch.optim.SGD has it: lr multiplies the buffer, the first buffer is the first gradient.
    """

    lr: Annotated[float, Field(gt=0, description="learning rate")] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="momentum")] = 0.0
    weight_decay: Annotated[float, Field(ge=0, description="L2 penalty, added to the gradient")] = 0.0

    def state(self, rows: Tensor) -> Tensors:
        return {"momentum": torch.zeros_like(rows)} if self.momentum else {}

    def step(self, rows: Tensor, gradients: Tensor, state: Tensors) -> None:
        if self.weight_decay:
            gradients.add_(rows, alpha=self.weight_decay)
        if self.momentum:
            gradients = state["momentum"].mul_(self.momentum).add_(gradients)
        rows.sub_(gradients, alpha=self.lr)

    def reference(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)

    @property
    def reference_names(self) -> dict[str, str]:
        return {"momentum": "momentum_buffer"} if self.momentum else {}
