"""Losses: outputs[b, ...] and targets[b] -> one number a sample, [b]."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fedgen.registry import register


@register("loss", "cross_entropy")
def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(outputs[b, c])[targets[b]]: classification."""
    # gather instead of nll_loss, which vmap decomposes in Python: a quarter of a small step.
    return -functional.log_softmax(outputs, dim=-1).gather(-1, targets[..., None]).squeeze(-1)


@register("loss", "mean_squared_error")
def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over a sample's outputs[b, ...] of (output - target)^2: regression."""
    return (outputs - targets.view_as(outputs)).square().flatten(1).mean(1)


setattr(cross_entropy, "lower_is_better", True)  # noqa: B010
setattr(mean_squared_error, "lower_is_better", True)  # noqa: B010
