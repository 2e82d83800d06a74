"""Client optimisers: one in-place step for a whole block of rows, and the torch optimiser it must agree with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Protocol, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from fedgen.parameters import Tensors
from fedgen.registry import register

Rate = Annotated[float, Field(gt=0, description="learning rate")]
Decay = Annotated[float, Field(ge=0, description="L2 penalty, added to the gradient")]
Beta = Annotated[float, Field(ge=0, lt=1, description="decay of a running mean")]


class Optimizer(Protocol):
    """What is registered as an "optimizer"."""

    @property
    def lr(self) -> float:
        """Learning rate."""
        ...

    def scaled(self, factor: float) -> Self:
        """The same with its learning rate times `factor`."""
        ...

    def state(self, rows: Tensor) -> Tensors:
        """Fresh state for rows[n, d]: {name: [n, d]}, or [n, 1] for one number a client."""
        ...

    def step(self, rows: Tensor, gradients: Tensor, state: Tensors) -> None:
        """One step of rows[k, d], in place in rows and state[k, ...]; gradients may be overwritten."""
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
    """Gradient descent with heavy-ball or Nesterov momentum.

    u <- momentum * u + g + weight_decay * w;  w <- w - lr * u;  Nesterov: w <- w - lr * (g + momentum * u)

    As torch.optim.SGD has it: lr multiplies the buffer, the first buffer is the first gradient.
    """

    lr: Rate = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="momentum")] = 0.0
    nesterov: Annotated[bool, Field(description="Nesterov's form of the momentum")] = False
    weight_decay: Decay = 0.0

    def scaled(self, factor: float) -> Self:
        return replace(self, lr=self.lr * factor)

    def state(self, rows: Tensor) -> Tensors:
        return {"momentum": rows.new_zeros(rows.shape)} if self.momentum else {}

    def step(self, rows: Tensor, gradients: Tensor, state: Tensors) -> None:
        if self.weight_decay:
            gradients.add_(rows, alpha=self.weight_decay)
        if self.momentum:
            buffer = state["momentum"].mul_(self.momentum).add_(gradients)
            gradients = gradients.add_(buffer, alpha=self.momentum) if self.nesterov else buffer
        rows.sub_(gradients, alpha=self.lr)

    def reference(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        nesterov = self.nesterov and self.momentum > 0
        return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=nesterov)

    @property
    def reference_names(self) -> dict[str, str]:
        return {"momentum": "momentum_buffer"} if self.momentum else {}


@register("optimizer", "adam")
@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adaptive moments.

    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2, with g + weight_decay * w for g;
    w <- w - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon), at a client's step t = 1, 2, ...

    Source: D. Kingma, J. Ba, arXiv 1412.6980 (2015), algorithm 1; as torch.optim.Adam has it.
    """

    lr: Rate = 0.001
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    epsilon: Annotated[float, Field(gt=0, description="added to the denominator")] = 1e-8
    weight_decay: Decay = 0.0

    def scaled(self, factor: float) -> Self:
        return replace(self, lr=self.lr * factor)

    def state(self, rows: Tensor) -> Tensors:
        moments = {name: rows.new_zeros(rows.shape) for name in ("first", "second")}
        return {**moments, "steps": rows.new_zeros(len(rows), 1)}

    def step(self, rows: Tensor, gradients: Tensor, state: Tensors) -> None:
        if self.weight_decay:
            gradients.add_(rows, alpha=self.weight_decay)
        first = state["first"]
        second = state["second"]
        steps = state["steps"].add_(1)
        first.lerp_(gradients, 1 - self.beta1)
        second.mul_(self.beta2).addcmul_(gradients, gradients, value=1 - self.beta2)
        powers = steps.double()
        rate = (self.lr / (1 - self.beta1**powers)).float()
        root = (1 - self.beta2**powers).sqrt().float()
        torch.sqrt(second, out=gradients).div_(root).add_(self.epsilon)
        torch.div(first, gradients, out=gradients).mul_(rate)
        rows.sub_(gradients)

    def reference(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(parameters, self.lr, betas, self.epsilon, self.weight_decay)

    @property
    def reference_names(self) -> dict[str, str]:
        return {"first": "exp_avg", "second": "exp_avg_sq", "steps": "step"}
