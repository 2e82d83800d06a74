"""Samples on which states are evaluated: the test set, the validation set, their domains, a backdoor's trigger."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgen.contracts import Attack
from fedgen.data.dataset import Dataset
from fedgen.parameters import Tensors


@dataclass(frozen=True)
class Evaluation:
    """Samples that are held back: a name ("" for the test set) that begins the metrics' names.

    only: {metric: the name it has here}, where not all are wanted.  domain: of one domain alone, so that the mean of
    these is "domain_accuracy".
    """

    prefix: str
    x: Tensor
    y: Tensor
    only: Mapping[str, str] | None = None
    domain: bool = False

    def on(self, device: torch.device) -> Evaluation:
        """The same samples on that device."""
        return replace(self, x=self.x.to(device), y=self.y.to(device))

    def by_domain(self, domain: Tensor, names: Sequence[str]) -> list[Evaluation]:
        """The samples of each domain that has any; its accuracy is "webcam_accuracy"."""
        parts = []
        for number, name in enumerate(names):
            own = domain == number
            only = {"accuracy": f"{self.prefix}{name}_accuracy"}
            if bool(own.any()):
                parts.append(Evaluation(self.prefix, self.x[own], self.y[own], only, domain=True))
        return parts

    def named(self, metrics: Tensors) -> Tensors:
        """A method's metrics of these samples by the names under which they are reported."""
        if self.only is None:
            return {self.prefix + name: value for name, value in metrics.items()}
        return {name: metrics[metric] for metric, name in self.only.items()}


def held_out(dataset: Dataset, validation: Tensor, measures: Collection[str], attack: Attack) -> list[Evaluation]:
    """The test set; where there are such, the validation set (sample numbers), the domains of both, and the test
    samples with a backdoor's trigger."""
    sets = [Evaluation("", dataset.test_x, dataset.test_y)]
    if len(validation):
        sets.append(Evaluation("validation_", dataset.x[validation], dataset.y[validation]))
    if "accuracy" in measures and dataset.domain is not None and dataset.test_domain is not None:
        domains = (dataset.test_domain, dataset.domain[validation])
        for whole, domain in zip(tuple(sets), domains, strict=False):
            sets += whole.by_domain(domain, dataset.domains)
    triggered = attack.triggered(dataset.test_x, dataset.test_y) if "accuracy" in measures else None
    if triggered is not None and len(triggered[1]):
        sets.append(Evaluation("", *triggered, only={"accuracy": "backdoor_rate"}))
    return sets


def with_domain_means(sets: Sequence[Evaluation], metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics and, where the data have domains, the mean accuracy of the domains, which all weigh the same."""
    by_prefix: dict[str, list[float]] = {}
    for held in sets:
        if held.domain and held.only is not None:
            by_prefix.setdefault(held.prefix, []).extend(metrics[name] for name in held.only.values())
    means = {f"{prefix}domain_accuracy": sum(values) / len(values) for prefix, values in by_prefix.items()}
    return {**metrics, **means}
