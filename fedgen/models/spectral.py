"""Spectral normalisation away from training: the singular vectors of other weights than the module's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from fedgen.parameters import Tensors

ITERATIONS = 30


class Normalised(NamedTuple):
    """Names of a weight and of its left and right singular vectors; dim: of the weight's outputs."""

    weight: str
    left: str
    right: str
    dim: int


def derived(module: nn.Module, tensors: Tensors) -> Tensors:
    """{name of a buffer: singular vector} of every weight that torch's spectral norm divides, for the weights given.

    A module in training refines its vectors by one iteration a step, and they stay with the client.  Averaged
    weights have others, which follow from the weights alone: power iterations from the module's own vectors on.
    """
    found: Tensors = {}
    for each in _normalised(module):
        weight = tensors[each.weight] if each.weight in tensors else module.get_parameter(each.weight).detach()
        matrix = weight.movedim(each.dim, 0).flatten(1)
        left, right = module.get_buffer(each.left), module.get_buffer(each.right)
        for _ in range(ITERATIONS):
            right = normalize(matrix.mT @ left, dim=0)
            left = normalize(matrix @ right, dim=0)
        found |= {each.left: left, each.right: right}
    return found


def _normalised(module: nn.Module) -> Iterator[Normalised]:
    """The weights under torch.nn.utils.parametrizations.spectral_norm, and under the older hook of that name."""
    for path, part in module.named_modules():
        if isinstance(part, _SpectralNorm) and hasattr(part, "_u"):  # a vector is divided by its length alone
            weight = f"{path.rpartition('.')[0]}.original"
            yield Normalised(weight, f"{path}._u", f"{path}._v", part.dim)
        for hook in part._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                name = f"{path}.{hook.name}" if path else hook.name
                yield Normalised(f"{name}_orig", f"{name}_u", f"{name}_v", hook.dim)
