"""Metrics of a round: means over honest clients, and an event for values that are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor

from fedgen.federation import Federation
from fedgen.parameters import Tensors
from fedgen.server.rounds.session import Session
from fedgen.tracking.record import Metrics as Metrics


class Report(Protocol):
    """The report of a block: clients[n], weights[n], and metrics {name: [n]} that clients measured in training."""

    @property
    def clients(self) -> Tensor: ...

    @property
    def weights(self) -> Tensor: ...

    @property
    def metrics(self) -> Tensors: ...


def honest(federation: Federation, clients: Tensor, round: int) -> Tensor:
    """bool[n]: honest clients of this round; before byzantine.start, those that are honest in that round."""
    return ~federation.byzantine_among(clients, max(round, federation.experiment.byzantine.start))


def own_metrics(session: Session, reports: Sequence[Report], weighted: bool) -> Metrics:
    """Means of the training metrics over honest clients, weighted or equal.

    A value that is not finite is logged with its clients.
    """
    means: Metrics = {}
    for name in dict.fromkeys(name for report in reports for name in report.metrics):
        measured = [report for report in reports if name in report.metrics]
        clients = torch.cat([report.clients for report in measured])
        own = honest(session.federation, clients, session.standing.round)
        values = torch.cat([report.metrics[name] for report in measured]).double()[own]
        weights = torch.cat([report.weights for report in measured])[own]
        if len(values) == 0:
            means[name] = None
            continue
        means[name] = float((values * weights).sum() / weights.sum() if weighted else values.mean())
        broken = clients[own][~torch.isfinite(values)].sort().values.tolist()
        if broken:
            _note(session, [name], f"{name} of {len(broken)} honest, the first client {broken[0]}", clients=broken)
    return means


def note_not_finite(session: Session, metrics: Metrics) -> None:
    """Log the evaluation metrics that are not finite."""
    names = [name for name, value in metrics.items() if value is not None and not isfinite(value)]
    if names:
        _note(session, names, ", ".join(names))


def _note(session: Session, names: list[str], what: str, **who: list[int]) -> None:
    reason = f"{what}: training diverged, or a loss or metric is not defined for what the model puts out"
    session.journal.event("not_finite", session.standing.round, metrics=names, **who, reason=reason)
