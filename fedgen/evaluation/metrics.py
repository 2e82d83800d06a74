"""Metrics: outputs[b, ...] and targets[b, ...] -> one number a sample, [b]; reports show the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedgen.data.targets import IGNORED, TargetKind, Targets
from fedgen.errors import SettingError
from fedgen.evaluation.measure import Measure, measure
from fedgen.registry import register


@register("metric", "accuracy")
@measure("classes", lower_is_better=False)
def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the largest of outputs[b, c] is the target, else 0."""
    return (outputs.argmax(-1) == targets).double()


@register("metric", "token_accuracy")
@measure("tokens", lower_is_better=False)
def token_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of a sample's tokens that count for which the largest of outputs[b, t, c] is the target."""
    counted = targets != IGNORED
    right = (outputs.argmax(-1) == targets) & counted
    return right.sum(-1).double() / counted.sum(-1).clamp_min(1)


@register("metric", "label_accuracy")
@measure("labels", lower_is_better=False)
def label_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share of a sample's labels that outputs[b, c] > 0 gets right: one minus the Hamming loss."""
    return ((outputs > 0) == (targets > 0.5)).double().mean(-1)


@register("metric", "exact_match_accuracy")
@measure("labels", lower_is_better=False)
def exact_match_accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where outputs[b, c] > 0 gets every label of the sample right, else 0: subset accuracy."""
    return ((outputs > 0) == (targets > 0.5)).all(-1).double()


@register("metric", "label_f1")
@measure("labels", lower_is_better=False)
def label_f1(outputs: Tensor, targets: Tensor) -> Tensor:
    """2 |Y & Z| / (|Y| + |Z|), Y the sample's labels, Z those with outputs[b, c] > 0; 1 where both are empty.

    Source: S. Godbole, S. Sarawagi, Discriminative methods for multi-labeled classification, 2004; the mean over
    samples.
    """
    said, true = outputs > 0, targets > 0.5
    both = (said & true).sum(-1).double()
    either = (said.sum(-1) + true.sum(-1)).double()
    return (2 * both / either.clamp_min(1)).where(either > 0, 1.0)


@register("metric", "r_squared")
@dataclass(frozen=True, kw_only=True)
class RSquared(Measure):
    """1 - (output - target)^2 / variance: of what the training targets vary, the share that is explained.

    Means over a sample's outputs[b, ...] and over the samples; the variance is that of the training targets, so that it
    is one number for every set of samples.  1 at best, 0 for their mean, less for worse.

    Raises SettingError where the training targets do not vary.
    """

    targets: Targets
    takes: ClassVar[tuple[TargetKind, ...]] = ("numbers",)
    lower_is_better: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.targets.variance == 0:
            raise SettingError(
                "model.metrics 'r_squared': all training targets are equal, so there is no variance to explain; choose "
                "absolute_error"
            )

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        errors = (outputs - targets.view_as(outputs)).square().reshape(len(outputs), -1).mean(1)
        return 1 - errors.double() / self.targets.variance
