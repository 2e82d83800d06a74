"""Losses: outputs[b, ...] and targets[b, ...] -> one number a sample, [b]."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from fedgen.data.targets import IGNORED
from fedgen.evaluation.measure import measure
from fedgen.registry import register


@register("loss", "cross_entropy")
@measure("classes", lower_is_better=True)
def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(outputs[b, c])[targets[b]]: classification."""
    # gather instead of nll_loss, which vmap decomposes in Python: a quarter of a small step.
    return -functional.log_softmax(outputs, dim=-1).gather(-1, targets[..., None]).squeeze(-1)


@register("loss", "mean_squared_error")
@register("metric", "mean_squared_error")
@measure("numbers", "labels", "classes", lower_is_better=True)
def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over a sample's outputs[b, ...] of (output - target)^2: regression."""
    return (outputs - targets.view_as(outputs)).square().reshape(len(outputs), -1).mean(1)


@register("loss", "absolute_error")
@register("metric", "absolute_error")
@measure("numbers", "labels", "classes", lower_is_better=True)
def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over a sample's outputs[b, ...] of |output - target|: regression that outliers move little."""
    return (outputs - targets.view_as(outputs)).abs().reshape(len(outputs), -1).mean(1)


@register("loss", "huber")
@measure("numbers", lower_is_better=True)
def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over a sample's outputs[b, ...] of r^2 / 2 where r = |output - target| <= 1, else r - 1/2.

    Source: P. J. Huber, Robust estimation of a location parameter, 1964, with k = 1.
    """
    each = functional.huber_loss(outputs, targets.view_as(outputs), reduction="none")
    return each.reshape(len(outputs), -1).mean(1)


@register("loss", "binary_cross_entropy")
@measure("labels", lower_is_better=True)
def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over the labels of -log p where the sample has the label, else -log(1 - p), p = sigmoid(outputs[b, c])."""
    return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(-1)


@register("loss", "token_cross_entropy")
@measure("tokens", lower_is_better=True)
def token_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over a sample's tokens that count of -log softmax(outputs[b, t, c])[targets[b, t]]: next-token models."""
    counted = targets != IGNORED
    each = cross_entropy(outputs, targets.where(counted, 0))
    return (each * counted).sum(-1) / counted.sum(-1).clamp_min(1)
