"""A model as functions of flat rows: one torch module, any number of parameter sets."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from threading import RLock
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fedgen.device import HOST
from fedgen.lazy import lazy_property
from fedgen.models.spectral import derived
from fedgen.parameters import Layout, Tensors
from fedgen.streams import Streams

PerSample = Callable[[Tensor, Tensor], Tensor]


@runtime_checkable
class NamesScaleFree(Protocol):
    """A module that says which of its parameters a normalisation follows at once."""

    scale_free: Collection[str]


@runtime_checkable
class NamesStatistics(Protocol):
    """A part of a module that says which of its buffers it measures of its inputs."""

    statistics: Collection[str]


_GENERATOR = RLock()
"""Held while torch's generator, which all threads of a process share, is ours."""


@dataclass(frozen=True, eq=False)
class Model:
    """What training engines and evaluation see of a network.

    make() -> a fresh module, initialised from torch's generator; loss and metrics give one number a sample;
    channels_last: images reach the module in torch's memory format of that name.  xavier: first parameters are
    drawn by Xavier's law instead.  seed: from which replica 0 is initialised; all clients have its constants.  kept:
    names of the constants that training changes, which stay with the client.  remembers: an attribute that is
    no buffer and that training changes, so that each client trains a module of its own.  smallest_batch: fewest
    samples of a step.  device: of rows and samples; modules are initialised on the host, the same for any device.
    """

    make: Callable[[], nn.Module]
    loss: PerSample
    metrics: Mapping[str, PerSample]
    channels_last: bool = False
    xavier: bool = False
    seed: int = 0
    kept: tuple[str, ...] = ()
    remembers: str = ""
    smallest_batch: int = 1
    device: torch.device = HOST

    @lazy_property
    def module(self) -> nn.Module:
        """The one module whose code runs; its own parameters are never trained."""
        return self.fresh()

    @lazy_property
    def scratch(self) -> nn.Module:
        """A second module, whose parameters the sequential engine makes views of the row it trains."""
        return self.fresh()

    def fresh(self) -> nn.Module:
        """A new module, initialised as replica 0; torch's generator keeps its state."""
        with own_generator():
            seed_generator(self.seed)
            return self._placed(self.make())

    def _placed(self, module: nn.Module) -> nn.Module:
        return module if self.device == HOST else module.to(self.device)

    @lazy_property
    def parameters(self) -> Layout:
        """Of what gradients train: the first columns of a row."""
        return Layout({name: tuple(parameter.shape) for name, parameter in trained_of(self.module).items()})

    @lazy_property
    def layout(self) -> Layout:
        """Of a row: trained parameters, then the statistics that the module measures."""
        statistics = {name: tuple(buffer.shape) for name, buffer in measured_by(self.module).items()}
        return Layout(
            {**self.parameters.shapes, **statistics},
            scale_free=scale_free(self.module),
            running=running_statistics(statistics),
            statistics=frozenset(statistics),
        )

    @lazy_property
    def first_kept(self) -> Tensors:
        """{name: tensor}: what replica 0 begins with of the constants that training changes."""
        return {name: self.module.get_buffer(name).clone() for name in self.kept}

    def initial(self, streams: Streams, replica: int) -> Tensor:
        """row[d] as torch, or Xavier's law, initialises the module, from a seed of this experiment and replica."""
        with own_generator():
            seed_generator(streams.seed_for("initial_model", replica))
            module = self.make()
            if self.xavier:
                draw_xavier(module)
            return self.row_of(self._placed(module))

    def row_of(self, module: nn.Module) -> Tensor:
        """row[d] of what a module holds."""
        return self.layout.flatten(travelling(module))

    def state_dict(self, row: Tensor) -> Tensors:
        """What `state_dict()` of the module holds with the tensors of row[d], so that `load_state_dict` takes it."""
        module = self.fresh()
        values = self.layout.view(row)
        vectors = derived(module, values)
        held = {**travelling(module), **{name: module.get_buffer(name) for name in vectors}}
        for name, value in {**values, **vectors}.items():
            held[name].copy_(value)
        return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}

    def forward(self, tensors: Tensors, x: Tensor) -> Tensor:
        """Outputs of the module with these tensors; those that are missing are its own, which stay as they are."""
        kept = {name: value.clone() for name, value in self.first_kept.items()}
        try:
            return functional_call(self.module, {**kept, **tensors}, (x,))  # type: ignore[no-any-return]
        finally:
            for held, name, tensor in self._shared:
                held[name] = tensor

    @lazy_property
    def _shared(self) -> list[tuple[dict[str, Tensor | None], str, Tensor | None]]:
        """Where a module that stands at two places holds its tensors: torch's functional_call leaves others there."""
        every = list(self.module.named_modules(remove_duplicate=False))
        twice = {part for _, part in every if sum(part is other for _, other in every) > 1}
        homes = [home for part in twice for home in (part._parameters, part._buffers)]
        return [(home, name, tensor) for home in homes for name, tensor in home.items()]

    def arranged(self, x: Tensor) -> Tensor:
        """x[s, ...] in the memory format that the module computes with; the same numbers."""
        return x.to(memory_format=torch.channels_last) if self.channels_last else x

    def masked_loss(self, tensors: Tensors, x: Tensor, y: Tensor, taken: Tensor) -> Tensor:
        """Mean loss over the samples of x[b, ...] with taken[b]; 0 where none is."""
        losses = self.loss(self.forward(tensors, x), y)
        return (losses * taken).sum() / taken.sum().clamp_min(1)

    def evaluate(self, rows: Tensor, x: Tensor, y: Tensor) -> Tensors:
        """Mean loss and metrics of rows[..., d] over x[s, ...], y[s]: {name: float64[...]}."""
        model = replace(self) if self.remembers else self  # with a module that remembers nothing yet
        with torch.no_grad(), own_generator(), evaluating(model.module):
            x = self.arranged(x)
            each = [model._measure(row, x, y) for row in rows.reshape(-1, self.layout.size)]
        lead = rows.shape[:-1]
        return {name: torch.stack([one[name] for one in each]).reshape(lead) for name in each[0]}

    def _measure(self, row: Tensor, x: Tensor, y: Tensor) -> Tensors:
        tensors = self.layout.view(row)
        seed_generator(self.seed)  # for a module that draws in evaluation too
        outputs = self.forward({**tensors, **derived(self.module, tensors)}, x)
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
    named = set(module.scale_free) if isinstance(module, NamesScaleFree) else set()
    for path, sequence in module.named_modules():
        if isinstance(sequence, nn.Sequential):
            for (name, layer), (_, after) in pairwise(sequence.named_children()):
                if isinstance(after, NORMS):
                    named |= {".".join(filter(None, (path, name, each))) for each, _ in layer.named_parameters()}
    return frozenset(named)


def running_statistics(names: Collection[str]) -> dict[str, str]:
    """Name of a running variance -> name of the running mean beside it, among the names of a row's statistics."""
    variances = [name for name in names if name.rpartition(".")[2] == "running_var"]
    pairs = {name: name.removesuffix("running_var") + "running_mean" for name in variances}
    return {variance: mean for variance, mean in pairs.items() if mean in names}


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


@contextmanager
def own_generator() -> Iterator[None]:
    """What is drawn from torch's generator in here leaves no trace outside, and other threads draw before or after."""
    with _GENERATOR, torch.random.fork_rng(devices=range(torch.cuda.device_count()) if _with_gpus() else []):
        yield


def seed_generator(seed: int) -> None:
    """Of the host, and of GPUs in use: torch.manual_seed also queues a call for every device that is not there."""
    torch.default_generator.manual_seed(seed)
    if _with_gpus():
        torch.cuda.manual_seed_all(seed)


def _with_gpus() -> bool:
    return bool(torch.cuda.is_initialized())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode; then every part of it in the mode in which it was."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def trained_of(module: nn.Module) -> Tensors:
    """The parameters that gradients train, by name; a tensor that is used twice has one name."""
    return {name: each.detach() for name, each in module.named_parameters() if each.requires_grad}


def measured_by(module: nn.Module) -> Tensors:
    """The statistics that a module measures of its inputs, by name: floating-point buffers called running_..., and
    those that a part of it lists in an attribute `statistics`."""
    named = set()
    for path, part in module.named_modules():
        own = [name for name in part._buffers if name.startswith("running_")]
        told = part.statistics if isinstance(part, NamesStatistics) else ()
        named |= {".".join(filter(None, (path, name))) for name in (*own, *told)}
    buffers = {name: buffer for name, buffer in module.named_buffers() if name in named}
    return {name: buffer for name, buffer in buffers.items() if buffer.is_floating_point()}


def travelling(module: nn.Module) -> Tensors:
    """What a row holds of a module, by name: its trained parameters and its statistics."""
    return {**trained_of(module), **measured_by(module)}
