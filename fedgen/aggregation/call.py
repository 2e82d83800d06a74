"""Aggregation of plain arrays, by the names of the experiment file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedgen import registry
from fedgen.aggregation.base import BaseRule
from fedgen.contracts import Aggregation
from fedgen.mistakes import validated
from fedgen.parameters import Tensors


def aggregate(
    rows: Any,
    rule: str = "mean",
    *,
    f: int = 0,
    weights: Any = None,
    wrappers: Sequence[str | Mapping[str, Any]] = (),
    memory: Tensors | None = None,
    root: Any = None,
    **parameters: Any,
) -> Aggregation:
    """The aggregate of rows[n, d] by a registered rule, or a "module:Class", inside its wrappers, innermost first.

    rows: numpy or torch, floating point; weights[n]: 1 each unless given; f: rows that may be lies; root[d]: an update
    of one's own, for rules that trust one; parameters: the rule's own; a wrapper is a name, or a mapping of its name
    and parameters.

    >>> aggregate([[0.0], [1.0], [2.0], [1e9]], "geometric_median", f=1, wrappers=["nnm"]).aggregate.round().tolist()
    [1.0]

    Raises SettingError for unknown names and parameters, ValueError for rows that do not fit (see `BaseRule`).
    """
    part = rule_of(rule, wrappers, parameters)
    result: Aggregation = BaseRule.__call__(part, rows, f=f, weights=weights, memory=memory, root=root)
    return result


def rule_of(rule: str, wrappers: Sequence[str | Mapping[str, Any]], parameters: Mapping[str, Any]) -> Any:
    """The rule of that name inside its wrappers.

    Raises SettingError for unknown names and parameters.
    """
    part = _built("rule", rule, parameters)
    for wrapper in wrappers:
        named = {"name": wrapper} if isinstance(wrapper, str) else dict(wrapper)
        part = _built("rule_wrapper", named.pop("name"), named, inner=part)
    return part


def _built(kind: str, name: str, parameters: Mapping[str, Any], **inner: Any) -> Any:
    checked = validated(registry.parameters(registry.find(kind, name)), parameters, of=name)
    return registry.build(kind, name, checked, **inner)
