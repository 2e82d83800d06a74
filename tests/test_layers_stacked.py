"""Every layer of the stacked engine against torch's own forward and backward, by being registered."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedgen.evaluation.losses import binary_cross_entropy, cross_entropy
from fedgen.models.model import PerSample
from fedgen.training.layers import LAYERS, Draws
from fedgen.training.objectives import OBJECTIVES

IMAGE, VECTOR = (3, 6, 7), (5,)

CASES: dict[type[nn.Module], list[tuple[Callable[[], nn.Module], tuple[int, ...]]]] = {
    nn.Linear: [(lambda: nn.Linear(5, 4), VECTOR), (lambda: nn.Linear(5, 4, bias=False), VECTOR)],
    nn.ReLU: [(nn.ReLU, VECTOR), (nn.ReLU, IMAGE)],
    nn.Tanh: [(nn.Tanh, IMAGE)],
    nn.Flatten: [(nn.Flatten, IMAGE)],
    nn.Dropout: [(partial(nn.Dropout, share), VECTOR) for share in (0.0, 0.3, 1.0)] + [(nn.Dropout, IMAGE)],
    nn.LayerNorm: [
        (lambda: nn.LayerNorm(5), VECTOR),
        (lambda: nn.LayerNorm((6, 7)), IMAGE),
        (lambda: nn.LayerNorm(5, elementwise_affine=False), VECTOR),
    ],
    nn.Conv2d: [
        (lambda: nn.Conv2d(3, 4, 3), IMAGE),
        (lambda: nn.Conv2d(3, 4, (2, 3), stride=(2, 1), padding=(1, 0), bias=False), IMAGE),
    ],
    nn.MaxPool2d: [(lambda: nn.MaxPool2d(2), IMAGE), (lambda: nn.MaxPool2d(3, stride=2), IMAGE)],
    nn.AvgPool2d: [(lambda: nn.AvgPool2d(2), IMAGE), (lambda: nn.AvgPool2d((2, 3), stride=1), IMAGE)],
}


EACH_CASE = [case for cases in CASES.values() for case in cases]


def close(ours: Any, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(np.ascontiguousarray(ours)), theirs.detach(), rtol=1e-4, atol=1e-4)


def test_every_registered_layer_has_cases() -> None:
    assert set(CASES) == set(LAYERS)


@pytest.mark.parametrize(("make", "shape"), EACH_CASE, ids=[f"{make()}-{shape}" for make, shape in EACH_CASE])
@pytest.mark.parametrize("common", [False, True])
@given(n=st.integers(1, 4), b=st.integers(1, 3), seed=st.integers(0, 99))
def test_layer_is_torchs(
    make: Callable[[], nn.Module], shape: tuple[int, ...], common: bool, n: int, b: int, seed: int
) -> None:
    torch.manual_seed(seed)
    modules = [make() for _ in range(n)]
    if common:
        modules = [modules[0]] * n
    x = torch.randn(n, b, *shape).round(decimals=1)  # equal values, so that pooling meets ties
    layer = LAYERS[type(modules[0])](modules[0], "here.")
    held = modules[:1] if common else modules
    parameters = {
        f"here.{name}": torch.stack([dict(module.named_parameters())[name].detach() for module in held]).numpy()
        for name, _ in modules[0].named_parameters()
    }
    gradients = {name: np.full((n, *value.shape[1:]), np.nan, np.float32) for name, value in parameters.items()}
    draws = Draws([torch.Generator().manual_seed(client) for client in range(n)], np.full(n, b))
    y, saved = layer.forward(parameters, x.numpy().copy(), draws)
    dy = torch.randn(y.shape)
    dx = layer.backward(parameters, saved, dy.numpy().copy(), gradients, True)

    for client, module in enumerate(modules):
        inputs = x[client].clone().requires_grad_()
        torch.manual_seed(client)
        outputs = module(inputs)
        torch.testing.assert_close(
            torch.from_numpy(np.ascontiguousarray(y[client])), outputs.detach(), rtol=1e-4, atol=1e-5
        )
        tensors = [inputs, *module.parameters()]
        slopes = torch.autograd.grad(outputs, tensors, dy[client], allow_unused=True)
        assert dx is not None
        close(dx[client], slopes[0])
        for (name, _), slope in zip(module.named_parameters(), slopes[1:], strict=True):
            close(gradients[f"here.{name}"][client], slope)


@pytest.mark.parametrize("loss", OBJECTIVES, ids=lambda loss: loss.__name__)
@given(n=st.integers(1, 3), b=st.integers(1, 4), c=st.integers(1, 5), seed=st.integers(0, 99))
def test_objective_is_the_loss_and_its_gradient(loss: PerSample, n: int, b: int, c: int, seed: int) -> None:
    torch.manual_seed(seed)
    outputs = (3 * torch.randn(n, b, c)).requires_grad_()
    targets = torch.randint(c, (n, b)) if loss is cross_entropy else torch.randn(n, b, c)
    if loss is binary_cross_entropy:
        targets = (targets > 0).float()
    losses, slope = OBJECTIVES[loss](outputs.detach().numpy().copy(), targets.numpy())
    expected = loss(outputs.flatten(0, 1), targets.flatten(0, 1))
    torch.testing.assert_close(torch.from_numpy(losses).flatten(), expected.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        torch.from_numpy(slope), torch.autograd.grad(expected.sum(), outputs)[0], rtol=1e-4, atol=1e-5
    )
