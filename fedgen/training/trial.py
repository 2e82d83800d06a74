"""What is measured of a module before a run: engines that pad and stack are right only for modules that bear it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from fedgen.errors import SettingError
from fedgen.models.model import Model, measured_by, own_generator, seed_generator, takes_channels_last
from fedgen.training.lockstep import Step, StepGradients
from fedgen.training.memory import changed, memory_of

PASSES = 3
"""Training passes after which a constant that changes has been seen to change."""


def measured(model: Model, x: Tensor, y: Tensor) -> Model:
    """The model with what is to be known of its module, tried on x[s, ...], y[s]; as it is where the module fails.

    Raises SettingError where two modules that begin alike do not compute alike.
    """
    try:
        kept, remembers = changing(model, x, y)
        return replace(
            model,
            channels_last=takes_channels_last(model, x[:2]),
            kept=kept,
            remembers=remembers,
            smallest_batch=smallest_batch(model, x, y),
        )
    except SettingError:
        raise
    except Exception:
        return model


def drawing(model: Model, x: Tensor, y: Tensor) -> bool:
    """Whether a training pass over x[s, ...], y[s] takes numbers from torch's generator.

    Raises SettingError where it takes them from numpy's or Python's, which no engine begins anew for each client.
    """
    module = model.fresh()
    with own_generator(), _others_kept() as others:
        before = torch.default_generator.get_state()
        _trained(model, module, x, y)
        drawn = not torch.equal(before, torch.default_generator.get_state())
        if others():
            raise SettingError(
                f"model.name {type(module).__name__}: a training pass draws from numpy's or Python's random numbers, "
                "which do not begin anew for each client; draw with torch, such as torch.rand"
            )
    return drawn


def changing(model: Model, x: Tensor, y: Tensor) -> tuple[tuple[str, ...], str]:
    """(names of the constants that training passes over x[s, ...], y[s] change, such as counters and singular vectors;
    an attribute that is no buffer and changes, "" where none does).

    Raises SettingError where another module that begins like the first does not compute what it does.
    """
    module, again = model.fresh(), model.fresh()
    constants = [name for name, _ in module.named_buffers() if name not in measured_by(module)]
    before = {name: module.get_buffer(name).clone() for name in constants}
    memory = memory_of(module)
    losses = _losses(model, module, x, y)
    if not torch.allclose(losses, _losses(model, again, x, y), equal_nan=True):
        raise SettingError(
            f"model.name {type(module).__name__}: two modules from the same seed compute different outputs, so that no "
            "result could be repeated; keep what changes in buffers, and draw with torch, such as torch.rand"
        )
    kept = tuple(name for name in constants if not _same(module.get_buffer(name), before[name]))
    return kept, changed(memory, memory_of(module))


def _losses(model: Model, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """[PASSES, s] of training passes, from the seed of replica 0 on."""
    with own_generator():
        seed_generator(model.seed)
        return torch.stack([_trained(model, module, x, y) for _ in range(PASSES)])


def smallest_batch(model: Model, x: Tensor, y: Tensor) -> int:
    """Samples that a training pass needs: 2 for a module that normalises over its batch, else 1."""

    def works(count: int) -> bool:
        try:
            with own_generator():
                return bool(_trained(model, model.fresh(), x[:count], y[:count]).isfinite().all())
        except Exception:
            return False

    return 2 if len(x) > 1 and works(2) and not works(1) else 1


def lockstep_fails(model: Model, x: Tensor, y: Tensor, gradients_of: StepGradients) -> str:
    """Why the gradients of an engine that pads are not autograd's; "" where they are.

    Two clients hold two samples each and a third place that is padding, a sample of zeros or a real one: neither may
    change anything, as the samples of a batch are to be treated one by one.
    """
    held = x[:2]
    count = len(x[:2])
    row = model.row_of(model.fresh())[None].requires_grad_()
    with own_generator():
        seed_generator(0)
        losses = model.loss(model.forward(model.layout.view(row[0]), held), y[:2])
        (expected,) = torch.autograd.grad(losses.mean(), row)
    for padding in (torch.zeros_like(x[:1]), x[-1:]):
        for common in (True, False):
            step = Step(
                rows=row.detach().expand(2, -1).contiguous(),
                gradients=torch.empty(2, row.shape[1]),
                x=torch.cat([held, padding]).expand(2, count + 1, *x.shape[1:]).contiguous(),
                y=torch.cat([y[:2], y[-1:]]).expand(2, count + 1, *y.shape[1:]).contiguous(),
                sizes=np.array([count, count]),
                common=common,
                generators=[torch.Generator().manual_seed(0) for _ in range(2)],
            )
            with own_generator():
                seed_generator(0)
                gradients_of(step)
            if not torch.allclose(step.gradients, expected.expand(2, -1), rtol=1e-3, atol=1e-5):
                return "its samples do not count one by one: others of the batch, or padding, change its gradients"
    return ""


def length_matters(model: Model, x: Tensor) -> bool:
    """Whether what a module makes of two samples depends on how many of x[s, ...] are in their batch."""
    module = model.fresh()
    with own_generator(), torch.no_grad():
        expected = module(model.arranged(x[:2]))[:2]
        close = 1e-4 * expected.abs().max() + 1e-6
        for count in range(3, len(x) + 1):
            if not bool(((module(model.arranged(x[:count]))[:2] - expected).abs() <= close).all()):
                return True
    return False


def _trained(model: Model, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Losses of a training pass."""
    with torch.no_grad():
        return model.loss(module(model.arranged(x)), y)


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one.nan_to_num(), other.nan_to_num()))


@contextmanager
def _others_kept() -> Iterator[Callable[[], bool]]:
    """Yields whether numpy's or Python's generator was used in here; both are left as they were."""
    ours = random.getstate()
    numpys = np.random.get_state()

    def used() -> bool:
        return repr(np.random.get_state()) != repr(numpys) or random.getstate() != ours

    try:
        yield used
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)
