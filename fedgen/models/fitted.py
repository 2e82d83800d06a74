"""The model of an experiment, checked against its data before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedgen import registry
from fedgen.config import ModelSection
from fedgen.data.dataset import Dataset
from fedgen.errors import SettingError
from fedgen.models.model import Model, PerSample, own_generator
from fedgen.models.networks import Network
from fedgen.own_code import explained
from fedgen.takes import check_takes


def fitted(section: ModelSection, dataset: Dataset, seed: int) -> Model:
    """The model that the section names, with inputs and outputs of the data; seed: of its replica 0.

    Raises SettingError where it cannot take the samples, or loss and metrics cannot take outputs and targets.
    """
    model = Model(
        _maker(section, dataset),
        _measure("loss", section.loss, dataset),
        {name: _measure("metric", name, dataset) for name in section.metrics},
        xavier=section.init == "xavier",
        seed=seed,
    )
    _check_module(section.name, model)
    if model.parameters.size == 0:
        raise SettingError(f"model.name {section.name!r} has no parameters to train")
    _check_measures(section, model, _outputs(section, model, dataset.x[:2]), dataset.y[:2])
    return model


def _check_module(name: str, model: Model) -> None:
    try:
        made = model.module
    except Exception as error:
        if isinstance(error, SettingError) or ":" not in name:
            raise
        raise SettingError(f"model.name {name!r} cannot be made ({explained(error)})") from error
    if not isinstance(made, nn.Module):
        raise SettingError(f"model.name {name!r} must make a torch.nn.Module; it made {type(made).__name__}")


def _maker(section: ModelSection, dataset: Dataset) -> Callable[[], nn.Module]:
    with own_generator():
        network = registry.build("model", section.name, section.params)
    if isinstance(network, nn.Module):
        return lambda: registry.build("model", section.name, section.params)
    if not isinstance(network, Network):
        raise SettingError(
            f"model.name {section.name!r} is neither a torch.nn.Module nor a class whose module(input_shape, outputs) "
            "makes one"
        )
    if dataset.kind == "tokens" and ":" not in section.name:
        raise SettingError(
            f"model.name {section.name!r} gives one row of outputs a sample, and the targets of the data are tokens; "
            "name a torch.nn.Module of your own, 'module:Class', that gives outputs[b, t, c]"
        )
    # Two values, so that the model does not keep the data alive.
    input_shape = dataset.input_shape
    outputs = dataset.targets.outputs
    return lambda: network.module(input_shape, outputs)


def _measure(kind: str, name: str, dataset: Dataset) -> Any:
    part = registry.build(kind, name, {}, targets=dataset.targets)
    check_takes("model.loss" if kind == "loss" else "model.metrics", kind, name, part, dataset.targets)
    return part


def _outputs(section: ModelSection, model: Model, x: Tensor) -> Tensor:
    """Of two samples, in evaluation or in training: a module that fails in one of them alone will say so itself."""
    tensors = model.layout.view(model.row_of(model.module))
    try:
        for training in (False, True):
            model.module.train(training)
            try:
                with own_generator(), torch.no_grad():
                    outputs: object = model.forward(tensors, x)
                break
            except Exception as error:
                why = explained(error).partition("\n")[0]
        else:
            raise SettingError(
                f"model.name {section.name!r} cannot take the samples of the data, which are "
                f"{str(x.dtype).removeprefix('torch.')}{list(x.shape[1:])} each; given a batch x{list(x.shape)} it "
                f"raised {why}"
            )
    finally:
        model.module.train()
    if not isinstance(outputs, Tensor) or outputs.dim() == 0 or len(outputs) != len(x):
        got = f"{list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
        raise SettingError(
            f"model.name {section.name!r} must give one tensor of outputs, [b, ...], for a batch x{list(x.shape)}; it "
            f"gave {got}"
        )
    return outputs


def _check_measures(section: ModelSection, model: Model, outputs: Tensor, y: Tensor) -> None:
    """Loss and metrics must give one number a sample."""
    measures: Mapping[str, PerSample] = {
        f"model.loss {section.loss!r}": model.loss,
        **{f"model.metrics {name!r}": measure for name, measure in model.metrics.items()},
    }
    for name, measure in measures.items():
        try:
            got: object = tuple(measure(outputs, y).shape)
        except Exception as error:
            got = explained(error)
        if got != (len(y),):
            raise SettingError(
                f"{name} must give one number a sample, shape {(len(y),)}, for outputs {tuple(outputs.shape)} and "
                f"targets {tuple(y.shape)}; it gave {got}"
            )
