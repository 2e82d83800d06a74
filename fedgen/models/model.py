"""A model as functions of flat rows: one torch module, any number of parameter sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedgen.parameters import Layout, Tensors
from fedgen.streams import Streams

PerSample = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Model:
    """What training engines and evaluation see of a network.

    make() -> a fresh module, initialised from torch's generator; loss and metrics give one number a sample;
    channels_last: images reach the module in torch's memory format of that name.  xavier: first parameters are drawn by
    Xavier's law instead.
    """

    make: Callable[[], nn.Module]
    loss: PerSample
    metrics: Mapping[str, PerSample]
    channels_last: bool = False
    xavier: bool = False

    @cached_property
    def module(self) -> nn.Module:
        """The one module whose code runs; its own parameters are never trained."""
        return self.fresh()

    @cached_property
    def scratch(self) -> nn.Module:
        """A second module, whose parameters the sequential engine makes views of the row it trains."""
        return self.fresh()

    def fresh(self) -> nn.Module:
        """A module of its own; torch's generator is left as it was."""
        with own_generator():
            return self.make()

    @cached_property
    def parameters(self) -> Layout:
        """Of what gradients train: the first columns of a row."""
        trained = {name: each for name, each in self.module.named_parameters() if each.requires_grad}
        return Layout({name: tuple(parameter.shape) for name, parameter in trained.items()})

    @cached_property
    def layout(self) -> Layout:
        """Of a row: trained parameters, then frozen ones and floating-point buffers (running statistics)."""
        rest = {name: tuple(tensor.shape) for name, tensor in held_by(self.module).items()}
        shapes = {**self.parameters.shapes, **rest}
        return Layout(shapes, scale_free=scale_free(self.module), running=running_statistics(shapes))

    def initial(self, streams: Streams, replica: int) -> Tensor:
        """row[d] as torch, or Xavier's law, initialises the module, from a seed of this experiment and replica."""
        with own_generator():
            seed_generator(streams.seed_for("initial_model", replica))
            module = self.make()
            if self.xavier:
                draw_xavier(module)
            return self.row_of(module)

    def row_of(self, module: nn.Module) -> Tensor:
        """row[d] of what a module holds."""
        return self.layout.flatten(held_by(module))

    def forward(self, tensors: Tensors, x: Tensor) -> Tensor:
        """Outputs of the module with these parameters."""
        return functional_call(self.module, tensors, (x,))  # type: ignore[no-any-return]

    def arranged(self, x: Tensor) -> Tensor:
        """x[s, ...] in the memory format that the module computes with; the same numbers."""
        return x.to(memory_format=torch.channels_last) if self.channels_last else x

    def masked_loss(self, tensors: Tensors, x: Tensor, y: Tensor, taken: Tensor) -> Tensor:
        """Mean loss over the samples of x[b, ...] with taken[b]; 0 where none is."""
        losses = self.loss(self.forward(tensors, x), y)
        return (losses * taken).sum() / taken.sum().clamp_min(1)

    def evaluate(self, rows: Tensor, x: Tensor, y: Tensor) -> Tensors:
        """Mean loss and metrics of rows[..., d] over x[s, ...], y[s]: {name: float64[...]}."""
        self.module.eval()
        try:
            x = self.arranged(x)
            with torch.no_grad():
                each = [self._measure(row, x, y) for row in rows.reshape(-1, self.layout.size)]
        finally:
            self.module.train()
        lead = rows.shape[:-1]
        return {name: torch.stack([one[name] for one in each]).reshape(lead) for name in each[0]}

    def _measure(self, row: Tensor, x: Tensor, y: Tensor) -> Tensors:
        outputs = self.forward(self.layout.view(row), x)
        measures = {**self.metrics, "loss": self.loss}
        return {name: measure(outputs, y).double().mean() for name, measure in measures.items()}


def draw_xavier(module: nn.Module) -> None:
    """Every weight uniform in +- sqrt(6 / (fan_in + fan_out)), every bias 0; a norm's own weights stay as they are.

    Source: X. Glorot, Y. Bengio, Understanding the difficulty of training deep feedforward networks, 2010, equation 16.
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def scale_free(module: nn.Module) -> frozenset[str]:
    """Names of the parameters of layers that a normalisation follows at once: in a sequence, or as the module itself
    says with an attribute `scale_free`."""
    named = set(getattr(module, "scale_free", ()))
    for path, sequence in module.named_modules():
        if isinstance(sequence, nn.Sequential):
            for (name, layer), (_, after) in pairwise(sequence.named_children()):
                if isinstance(after, NORMS):
                    named |= {".".join(filter(None, (path, name, each))) for each, _ in layer.named_parameters()}
    return frozenset(named)


def running_statistics(names: Iterable[str]) -> dict[str, str]:
    """Name of a running variance -> name of the running mean beside it, among the names of a row's tensors."""
    variances = [name for name in names if name.rpartition(".")[2] == "running_var"]
    return {name: name.removesuffix("running_var") + "running_mean" for name in variances}


def takes_channels_last(model: Model, x: Tensor) -> bool:
    """Whether x[s, c, h, w] may reach the module with its channels last: oneDNN's convolutions and torch's pooling are
    half as fast again so, but a module may ask for the memory of its input (`view`) in its own order."""
    if x.dim() != 4 or not any(isinstance(part, nn.Conv2d) for part in model.module.modules()):
        return False
    try:
        with own_generator(), torch.no_grad():
            tensors = model.layout.view(model.row_of(model.module))
            model.forward(tensors, x.to(memory_format=torch.channels_last))
    except Exception:
        return False
    return True


def own_generator() -> AbstractContextManager[None]:
    """What is drawn from torch's generator in here leaves no trace outside."""
    return torch.random.fork_rng(devices=[])


def seed_generator(seed: int) -> None:
    """Of the CPU alone: torch.manual_seed also formats a stack and queues a call for every device that is not there."""
    torch.default_generator.manual_seed(seed)


def held_by(module: nn.Module) -> Tensors:
    """What a row holds of a module: parameters and floating-point buffers, by name."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    buffers = {name: buffer for name, buffer in module.named_buffers() if buffer.is_floating_point()}
    return {**parameters, **buffers}
