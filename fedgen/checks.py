"""Whether data, model and the parts of an experiment fit together; every complaint names the setting and the fix."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedgen import registry
from fedgen.config import Experiment
from fedgen.data.targets import Targets
from fedgen.errors import SettingError
from fedgen.models.model import Model
from fedgen.takes import check_takes


def check_targets(experiment: Experiment, targets: Targets) -> None:
    """Raises SettingError where a part is not made for the kind of targets that the data have."""
    chosen = [
        ("data.partition", "partition", experiment.data.partition),
        ("training.method", "method", experiment.training.method),
        *(("training.wrappers", "wrapper", wrapper) for wrapper in experiment.training.wrappers),
        ("byzantine.attack", "attack", experiment.byzantine.attack),
    ]
    for setting, kind, choice in chosen:
        check_takes(setting, kind, choice.name, registry.find(kind, choice.name), targets)


def check_batches(experiment: Experiment, model: Model, counts: Sequence[int], root: Tensor | None) -> None:
    """Raises SettingError where a module that normalises over its batch would get a single sample.

    counts: samples of each client.  root: sample numbers of the server, if it trains.
    """
    smallest = model.smallest_batch
    name = type(model.module).__name__
    because = f"{name} cannot be trained on a single sample, as it normalises over its batch"
    if experiment.training.batch_size < smallest:
        raise SettingError(
            f"training.batch_size = {experiment.training.batch_size}: {because}; give at least {smallest}"
        )
    if root is not None and len(root) < smallest:
        raise SettingError(f"aggregation.rule.root_samples = {len(root)}: {because}; give at least {smallest}")
    short = [client for client, count in enumerate(counts) if count < smallest]
    if short:
        named = ", ".join(map(str, short[:10]))
        raise SettingError(
            f"model.name {because}, and {len(short)} of the clients hold no more: {named}"
            f"{', ...' if len(short) > 10 else ''}; lower data.clients, choose another data.partition, or normalise "
            "with GroupNorm"
        )
