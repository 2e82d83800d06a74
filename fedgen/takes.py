"""Parts declare the kinds of targets they support; others are refused."""

from __future__ import annotations

from collections.abc import Callable

from fedgen import conformity, registry
from fedgen.contracts import Attack, Method
from fedgen.data.partition import Partition
from fedgen.data.targets import TargetKind, Targets
from fedgen.errors import SettingError
from fedgen.evaluation.measure import declared

LISTED = ("partition", "loss", "metric")
"""Kinds of which an experiment needs another where one does not fit."""


def takes(kind: str, name: str, part: Callable[..., object]) -> tuple[TargetKind, ...]:
    """The kinds of targets that a partition, method, wrapper, attack (its class), loss or metric is made for."""
    if kind in ("loss", "metric"):
        return declared(part).takes
    assert isinstance(part, type)
    based = conformity.of_kind(kind, name, part)
    assert issubclass(based, Partition | Method | Attack)
    return based.takes


def check_takes(setting: str, kind: str, name: str, part: Callable[..., object], targets: Targets) -> None:
    """Raises SettingError where a part is not made for the kind of targets that the data have."""
    taken = takes(kind, name, part)
    if targets.kind in taken:
        return
    members = registry.members(kind).items() if kind in LISTED else ()
    fitting = [each for each, member in members if targets.kind in takes(kind, each, member)]
    others = f"choose from {', '.join(fitting)}, or your own" if fitting else "choose another, or leave it out"
    raise SettingError(
        f"{setting} {name!r} is made for {' or '.join(taken)}, and the targets of the data are {targets.kind}; {others}"
    )
