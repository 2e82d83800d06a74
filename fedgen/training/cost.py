"""What training on one sample costs, counted and never timed: the same on every machine."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fedgen.models.model import Model, own_generator

FORWARD_AND_BACK = 3
"""Training passes in units of the forward pass: the backward one computes two products of its size for each of it."""


def sample_flops(model: Model, x: Tensor) -> float:
    """Floating-point operations of a training pass over one sample of x[s, ...].

    Counted are products of matrices, convolutions and attention, at least one multiplication and one addition for every
    parameter; where the module cannot be counted, that alone.
    """
    least = 2.0 * model.layout.size
    return FORWARD_AND_BACK * max(least, _forward_flops(model, x))


def _forward_flops(model: Model, x: Tensor) -> float:
    """Of two samples, of which some modules need as many, divided by their number; 0 where the module fails."""
    held = x[:2]
    counter = FlopCounterMode(display=False)
    try:
        with own_generator(), torch.no_grad(), warnings.catch_warnings(), counter:
            warnings.simplefilter("ignore")
            model.fresh()(model.arranged(held))
    except Exception:  # a module that fails says so where it is trained
        return 0.0
    return counter.get_total_flops() / len(held)
