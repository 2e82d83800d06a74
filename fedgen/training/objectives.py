"""Losses of the stacked engine: per-sample values and their gradient, for a whole block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedgen.evaluation import losses
from fedgen.models.model import PerSample
from fedgen.parameters import Array

Objective = Callable[[Array, Array], tuple[Array, Array]]
"""(outputs[n, b, ...], targets[n, b, ...]) -> (losses[n, b], d losses / d outputs [n, b, ...])."""


def cross_entropy(outputs: Array, targets: Array) -> tuple[Array, Array]:
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


def mean_squared_error(outputs: Array, targets: Array) -> tuple[Array, Array]:
    """outputs[n, b, o], targets[n, b, o] or [n, b]: mean of squares over the outputs of a sample."""
    difference = outputs - targets.reshape(outputs.shape).astype(np.float32)
    return _mean(difference * difference), 2 * difference / _size(difference)


def absolute_error(outputs: Array, targets: Array) -> tuple[Array, Array]:
    """outputs[n, b, o], targets[n, b, o] or [n, b]: mean of |o - target| over the outputs of a sample."""
    difference = outputs - targets.reshape(outputs.shape).astype(np.float32)
    return _mean(np.abs(difference)), np.sign(difference) / _size(difference)


def huber(outputs: Array, targets: Array) -> tuple[Array, Array]:
    """outputs[n, b, o], targets[n, b, o] or [n, b]: mean of r^2 / 2 for r <= 1, else r - 1/2; gradient clip(o - y)."""
    difference = outputs - targets.reshape(outputs.shape).astype(np.float32)
    clipped = np.clip(difference, -1, 1)
    return _mean(clipped * (difference - clipped / 2)), clipped / _size(difference)


def binary_cross_entropy(outputs: Array, targets: Array) -> tuple[Array, Array]:
    """outputs[n, b, c], targets[n, b, c]: mean of max(o, 0) - o y + log(1 + e^-|o|); gradient sigmoid(o) - y."""
    small = np.exp(-np.abs(outputs))
    values = np.maximum(outputs, 0) - outputs * targets + np.log1p(small)
    sigmoid = np.where(outputs >= 0, 1, small) / (1 + small)
    return _mean(values), (sigmoid - targets) / _size(outputs)


def _mean(values: Array) -> Array:
    """values[n, b, ...] -> [n, b]: the mean of each sample."""
    means: Array = values.reshape(*values.shape[:2], -1).mean(-1)
    return means


def _size(values: Array) -> np.float32:
    """Numbers of a sample."""
    return np.float32(values[0, 0].size)


OBJECTIVES: dict[PerSample, Objective] = {
    losses.cross_entropy: cross_entropy,
    losses.mean_squared_error: mean_squared_error,
    losses.absolute_error: absolute_error,
    losses.huber: huber,
    losses.binary_cross_entropy: binary_cross_entropy,
}
"""Loss -> its stacked form; by identity, as a user's loss may have any name."""
