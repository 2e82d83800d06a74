"""Metrics: outputs[b, ...] and targets[b] -> one number a sample, [b]; reports show the mean."""

from __future__ import annotations

from torch import Tensor

from fedgen.registry import register


@register("metric", "accuracy")
def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest of outputs[b, c] is the target, else 0."""
    return (outputs.argmax(-1) == targets).double()


@register("metric", "absolute_error")
def absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over a sample's outputs[b, ...] of |output - target|."""
    return (outputs - targets.view_as(outputs)).abs().flatten(1).mean(1)


setattr(accuracy, "lower_is_better", False)  # noqa: B010
setattr(absolute_error, "lower_is_better", True)  # noqa: B010
