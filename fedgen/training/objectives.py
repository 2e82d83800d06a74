"""Losses of the stacked engine: per-sample values and their gradient, for a whole block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedgen.evaluation import losses
from fedgen.models.model import PerSample
from fedgen.parameters import Array

Objective = Callable[[Array, Any], tuple[Array, Array]]
"""(outputs[n, b, ...], targets[n, b, ...]) -> (losses[n, b], d losses / d outputs [n, b, ...])."""


def cross_entropy(outputs: Array, targets: Any) -> tuple[Array, Array]:
    """outputs[n, b, c], targets[n, b]: loss log sum exp(o) - o_target, gradient softmax(o) - onehot."""
    shifted = outputs - outputs.max(-1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(-1, keepdims=True)
    n, b = targets.shape
    place = np.arange(n)[:, None], np.arange(b)[None, :], targets
    values = np.log(sums[..., 0]) - shifted[place]
    gradient = np.divide(exponentials, sums, out=exponentials)
    gradient[place] -= 1
    return values, gradient


def mean_squared_error(outputs: Array, targets: Any) -> tuple[Array, Array]:
    """outputs[n, b, o], targets[n, b, o] or [n, b]: mean of squares over the outputs of a sample."""
    wanted = targets.reshape(outputs.shape).astype(np.float32)
    difference = outputs - wanted
    size = np.float32(difference[0, 0].size)
    return (difference * difference).reshape(*targets.shape[:2], -1).mean(-1), 2 * difference / size


OBJECTIVES: dict[PerSample, Objective] = {
    losses.cross_entropy: cross_entropy,
    losses.mean_squared_error: mean_squared_error,
}
"""Loss -> its stacked form; by identity, as a user's loss may have any name."""
