"""Whether a part is what its kind promises, so that what it lacks is named before a run and not in a round of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from fedgen.errors import SettingError

CONTRACTS = {
    "dataset": "fedgen.data.dataset:Source",
    "partition": "fedgen.data.partition:Partition",
    "text_encoder": "fedgen.data.embeddings:TextEncoder",
    "encoder": "fedgen.models.encoders:Encoder",
    "method": "fedgen.contracts:Method",
    "wrapper": "fedgen.contracts:Method",
    "optimizer": "fedgen.training.optimizers:Optimizer",
    "schedule": "fedgen.training.schedules:Schedule",
    "server_optimizer": "fedgen.training.server_optimizers:ServerOptimizer",
    "engine": "fedgen.training.trainer:Engine",
    "loss": "fedgen.evaluation.measure:Measure",
    "metric": "fedgen.evaluation.measure:Measure",
    "rule": "fedgen.contracts:Rule",
    "rule_wrapper": "fedgen.contracts:Rule",
    "attack": "fedgen.contracts:Attack",
    "topology": "fedgen.topology.base:Topology",
    "observer": "fedgen.tracking.observer:Observer",
}
"""kind -> the class whose public names every part of the kind has."""

SPARED = {"reference", "reference_names"}
"""Names that only the engine of the tests asks for."""


DECLARED = {
    "Source": {"load"},
    "Partition": {"split"},
    "Measure": set[str](),
    "Rule": {"linear", "minimum", "aggregate"},
    "Attack": {"omniscient", "poison", "corrupt"},
    "Method": {"modes", "layout", "initial_state", "broadcast", "client_update", "server_update", "evaluate"},
}
"""Base class -> what a part must have that is not derived from it; all else is the base's."""


def conforming(kind: str, name: str, part: object) -> Any:
    """The part of that kind, as one of its kind's base class where there is one: what it does not have is the base's.

    Raises SettingError that names everything which it lacks, or has in another form.
    """
    wrong = list(_complaints(kind, part))
    if wrong:
        raise SettingError(f"{kind} {name!r} {' and '.join(wrong)}; CONTRIBUTING.md shows how such parts are made")
    based = of_kind(kind, name, type(part))
    if based is not type(part):
        try:
            object.__setattr__(part, "__class__", based)
        except TypeError as error:  # such as a class with __slots__
            raise _underived(kind, name) from error
    return part


def of_kind(kind: str, name: str, member: type) -> type:
    """The class, derived from its kind's base where there is one: what it does not have is the base's.

    Raises SettingError where it cannot be.
    """
    base = _contract(kind)
    if base is None or base.__name__ not in DECLARED or issubclass(member, base):
        return member
    try:
        return type(member.__name__, (member, base), {})
    except TypeError as error:  # such as a metaclass of its own
        raise _underived(kind, name) from error


def _underived(kind: str, name: str) -> SettingError:
    return SettingError(f"{kind} {name!r}: derive its class from {CONTRACTS[kind].replace(':', '.')}")


def _contract(kind: str) -> type | None:
    if kind not in CONTRACTS:
        return None
    module, _, name = CONTRACTS[kind].partition(":")
    return getattr(import_module(module), name)  # type: ignore[no-any-return]


def _complaints(kind: str, part: object) -> Iterator[str]:
    if kind in ("loss", "metric") and not callable(part):
        yield "must be callable: (outputs, targets) -> one number a sample"
    contract = _contract(kind)
    if contract is None or (kind == "encoder" and callable(part)):  # a torch.nn.Module encodes by itself
        return
    declared = DECLARED.get(contract.__name__, vars(contract).keys() - SPARED)
    for name, promised in vars(contract).items():
        wanted = name in declared or (name in vars(type(part)) and name not in SPARED)
        if wanted and not name.startswith("_") and (wrong := _complaint(part, name, promised)):
            yield wrong


def _complaint(part: object, name: str, promised: object) -> str:
    # Of a class, a property is there without being asked for its value, which may not be known yet.
    if not (hasattr(type(part), name) or hasattr(part, name)):
        return f"lacks {name!r}"
    held = inspect.getattr_static(part, name, None)
    if not inspect.isfunction(promised):
        return f"has {name!r} as a function, not as a value or a property" if inspect.isfunction(held) else ""
    if not callable(getattr(part, name)):
        return f"has {name!r} as a value, not as a function"
    wanted = list(inspect.signature(promised).parameters)[1:]
    return "" if _takes(getattr(part, name), len(wanted)) else f"has {name!r} that does not take ({', '.join(wanted)})"


def _takes(function: Callable[..., object], count: int) -> bool:
    """Whether a function can be called with so many arguments, and perhaps more that it asks for by name."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function that Python cannot look into
        return True
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return True
    return sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters) >= count
