"""Notes before the first round about settings that have no effect, which are no errors."""

from __future__ import annotations

import torch

from fedgen.federation import Federation


def notes(federation: Federation) -> list[str]:
    """One sentence each: settings without effect, and classes without training samples."""
    return [
        note
        for note in (
            _bound(federation),
            _attack(federation),
            _redraw(federation),
            _start(federation),
            _classes(federation),
        )
        if note
    ]


def _bound(federation: Federation) -> str:
    section = federation.experiment.aggregation
    if section.f == 0 or not (federation.rule.linear or federation.mixes):
        return ""
    name = " in ".join([section.rule.name, *(wrapper.name for wrapper in section.wrappers)])
    return f"aggregation.f = {section.f}, and {name} tolerates no Byzantine client; choose a robust rule"


def _attack(federation: Federation) -> str:
    section = federation.experiment.byzantine
    if section.attack.name == "none" or section.clients not in (0, []):
        return ""
    name = section.attack.name
    return f"byzantine.attack = {name!r} and byzantine.clients = 0: no client attacks; set byzantine.clients"


def _redraw(federation: Federation) -> str:
    section = federation.experiment.byzantine
    if not section.redraw or section.clients != 0:
        return ""
    return "byzantine.redraw = true and byzantine.clients = 0: no client is drawn; set byzantine.clients"


def _start(federation: Federation) -> str:
    start = federation.experiment.byzantine.start
    rounds = federation.experiment.federation.rounds
    if start < rounds or start == 0 or federation.experiment.byzantine.clients in (0, []):
        return ""
    return (
        f"byzantine.start = {start} and federation.rounds = {rounds}: the last round is {rounds - 1}, so no client "
        "attacks; lower byzantine.start"
    )


def _classes(federation: Federation) -> str:
    dataset = federation.dataset
    if dataset.kind not in ("classes", "labels"):
        return ""
    y = dataset.y[federation.training]
    held = y.sum(0) if dataset.kind == "labels" else torch.bincount(y, minlength=len(dataset.classes))
    empty = [name for name, count in zip(dataset.classes, held.tolist(), strict=True) if count == 0]
    if not empty:
        return ""
    what = "class" if dataset.kind == "classes" else "label"
    named = ", ".join(map(repr, empty[:5])) + (f" and {len(empty) - 5} others" if len(empty) > 5 else "")
    return f"data.dataset {dataset.name!r}: no training sample is of {what} {named} (of {len(dataset.classes)})"
