"""The better direction of each metric, which losses and metrics declare as `lower_is_better`."""

from __future__ import annotations

from fedgen.evaluation.measure import declared as declared_by
from fedgen.federation import Federation
from fedgen.server.words import split_metric


def directions(federation: Federation) -> dict[str, bool]:
    """{reported metric: whether a lower value is better}, without metrics that declare nothing."""
    model = federation.learner.model
    measures = {**model.metrics, "loss": model.loss}
    declared = {name: declared_by(measure).lower_is_better for name, measure in measures.items()}
    found = {"train_loss": declared["loss"]}
    for held in federation.evaluations:
        names = held.only or {name: held.prefix + name for name in declared}
        found |= {reported: declared[name] for name, reported in names.items()}
        if held.domain:
            found[f"{held.prefix}domain_accuracy"] = declared["accuracy"]
    if "backdoor_rate" in found:
        found["backdoor_rate"] = True  # an accuracy, but on the attack's labels
    known = {name: bool(lower) for name, lower in found.items() if lower is not None}
    if federation.experiment.federation.mode == "gossip":
        known |= {spread: known[name] for name in known for spread in spread_names(name)}
    return known


def spread_names(name: str) -> tuple[str, ...]:
    """Reported names of a metric's 10th percentile and worst peer in gossip; none for a loss."""
    split, base = split_metric(name)
    prefix = name.removesuffix(base)
    return () if base == "loss" or split == "train" else (f"{prefix}p10_{base}", f"{prefix}worst_{base}")
