"""Summary metrics over honest peers: mean, 10th percentile, worst."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan

import torch
from torch import Tensor

from fedgen.aggregation.variance_correction import FACTOR
from fedgen.aggregation.variances import variances
from fedgen.clients import peer
from fedgen.contracts import Diagnostics
from fedgen.evaluation.held_out import with_domain_means
from fedgen.federation import Federation
from fedgen.parameters import Tensors
from fedgen.rows import columns_of
from fedgen.server.directions import directions, spread_names
from fedgen.server.rounds.measures import Metrics, honest
from fedgen.server.rounds.session import EVALUATION_SAMPLES, Session

EVALUATION_PEERS = 64
"""Number of peers per evaluation task."""


def honest_peers(federation: Federation, round: int) -> Tensor:
    """int64[k]: honest peers of this round, as in `honest`."""
    everyone = torch.arange(federation.experiment.data.clients)
    return everyone[honest(federation, everyone, round)]


def summary(session: Session, values_of: Tensors) -> Metrics:
    """Mean of every metric [N] over the honest peers.

    A metric that is no loss and declares its better direction also gets its 10th percentile and its worst value.
    """
    peers = honest_peers(session.federation, session.standing.round)
    declared = directions(session.federation)
    metrics: dict[str, float] = {}
    for name, values in values_of.items():
        of_honest = values[peers]
        metrics[name] = float(of_honest.mean())
        if name in declared and (names := spread_names(name)):
            p10, worst = names
            sign = -1 if declared[name] else 1
            metrics[p10] = sign * float((sign * of_honest).quantile(0.1))
            metrics[worst] = sign * float((sign * of_honest).min())
    return {**with_domain_means(session.federation.evaluations, metrics)}


def measured(session: Session, state: Tensors) -> Tensors:
    """{metric: float64[N]}: every peer on all evaluation samples, summed in order."""
    federation = session.federation
    peers = len(state["model"])
    parts = [
        peer.PeersPart(number, samples, part)
        for number, evaluation in enumerate(federation.evaluations)
        for samples in columns_of(len(evaluation.y), EVALUATION_SAMPLES)
        for part in columns_of(peers, EVALUATION_PEERS)
    ]
    sums: Tensors = {}
    counts: dict[str, int] = {}
    own = {name: value for name, value in state.items() if name not in federation.common_state}
    results = session.evaluated(peer.evaluate_peers, parts, own)
    for part, (metrics, count) in zip(parts, results, strict=True):
        for name, values in metrics.items():
            sums.setdefault(name, torch.zeros(peers, dtype=torch.float64))[part.peers] += values * count
            counts[name] = counts.get(name, 0) + (count if part.peers.start == 0 else 0)
    return {name: total / counts[name] for name, total in sums.items()}


def consensus_distance(federation: Federation, models: Tensor, round: int) -> float:
    """Root mean squared distance of the honest peers' models[N, d] from their mean, without statistics."""
    peers = honest_peers(federation, round)
    models = models[:, federation.method.layout.parameters]
    centre = mean_of(models, peers)
    squares = sum(float((models[part] - centre).square().sum()) for part in peers.split(EVALUATION_PEERS))
    return float((squares / len(peers)) ** 0.5)


def mean_of(models: Tensor, peers: Tensor) -> Tensor:
    """float64[d]: mean of some rows of models[N, d], summed in parts, as a copy of all may not fit into memory."""
    total = torch.zeros(models.shape[1], dtype=torch.float64)
    for part in peers.split(EVALUATION_PEERS):
        total += models[part].sum(0, dtype=torch.float64)
    return total / len(peers)


@dataclass(frozen=True)
class HonestMeans:
    """Means over the honest peers.

    aggregation: scalars of the rule. factor, by_weight: per weight tensor, the factor of the variance correction and
    other diagnostics of the rule. variance: per weight tensor; empty if no models were given.
    """

    aggregation: Metrics
    factor: Metrics
    by_weight: dict[str, Metrics]
    variance: Metrics


def honest_means(federation: Federation, round: int, models: Tensor | None, diagnostics: Diagnostics) -> HonestMeans:
    """models[N, d]: of all peers."""
    peers = honest_peers(federation, round)
    layout = federation.method.layout
    # NaN marks peers that did not merge; a mean over no peers is None.
    by_weight = {
        name: dict(zip(layout.weights, map(_defined, value[peers].nanmean(0).tolist()), strict=True))
        for name, value in diagnostics.by_weight.items()
    }
    variance: Metrics = {}
    if models is not None:
        # A numpy index, because numpy reads a tensor of one element as a number.
        measured = variances(models, layout)[peers.numpy()].mean(0).tolist()
        variance = dict(zip(layout.weights, measured, strict=True))
    return HonestMeans(
        aggregation={name: _defined(float(value[peers].nanmean())) for name, value in diagnostics.scalars.items()},
        factor=by_weight.pop(FACTOR, {}),
        by_weight=by_weight,
        variance=variance,
    )


def _defined(mean: float) -> float | None:
    return None if isnan(mean) else mean
