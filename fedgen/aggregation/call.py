"""Aggregation of plain arrays, by the names of the experiment file."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from fedgen import conformity, registry
from fedgen.aggregation.base import BaseRule
from fedgen.aggregation.forms import updates_of
from fedgen.contracts import Aggregation, Context, Rows
from fedgen.errors import SettingError
from fedgen.mistakes import validated
from fedgen.parameters import Tensors


@runtime_checkable
class Aggregates(Protocol):
    """A rule, derived from `Rule` or not, and no function."""

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation: ...


@dataclass(frozen=True)
class Aggregated(Aggregation):
    """An Aggregation whose aggregate has the form of the updates: [d], a state dict, a list of arrays, or an array."""

    aggregate: Any


def aggregate(
    rows: Any,
    rule: Any = "mean",
    *,
    f: int = 0,
    weights: Any = None,
    wrappers: Sequence[str | Mapping[str, object]] = (),
    memory: Tensors | None = None,
    root: Any = None,
    **parameters: Any,
) -> Aggregated:
    """The aggregate of rows[n, d] by a rule inside its wrappers, innermost first.

    rows: numpy or torch, floating point; or a list with one update a participant: state dicts, lists of arrays, or
    arrays of any shape, and the aggregate has that form; of tensors of whole numbers it has the middle value, and
    running_... tensors of a state dict decide nothing. rule: a registered name, a "module:Class", a table of name
    and parameters as in the experiment file, a rule that is made already, or a function (updates[n, d], f) -> [d].
    weights[n]: 1 each unless given; f: rows that may be Byzantine; root: a trusted update, for rules that use
    one; parameters: the rule's own; a wrapper is a name, or a table.

    >>> aggregate([[0.0], [1.0], [2.0], [1e9]], "geometric_median", f=1, wrappers=["nnm"]).aggregate.round().tolist()
    [1.0]
    >>> import numpy as np
    >>> aggregate([{"w": np.ones((2, 2))}, {"w": np.zeros((2, 2))}], {"name": "mean"}).aggregate["w"].tolist()
    [[0.5, 0.5], [0.5, 0.5]]

    Raises SettingError for unknown names and parameters, ValueError for rows that do not fit (see `BaseRule`).
    """
    part = rule_of(rule, wrappers, parameters)
    updates = updates_of(rows)
    own = updates.row(root)
    result: Aggregation = BaseRule.__call__(
        part, updates.rows, f=f, weights=weights, memory=memory, root=own, layout=updates.layout
    )
    return Aggregated(**{**vars(result), "aggregate": updates.restored(result.aggregate)})


def rule_of(rule: Any, wrappers: Sequence[str | Mapping[str, object]], parameters: Mapping[str, object]) -> Any:
    """The rule of that name, table, or made already, inside its wrappers.

    Raises SettingError for unknown names and parameters, and for what is no rule.
    """
    part = _made(rule, parameters)
    for wrapper in wrappers:
        name, own = _table("wrapper", wrapper)
        part = _built("rule_wrapper", name, own, inner=part)
    return part


def _made(rule: Any, parameters: Mapping[str, object]) -> Any:
    if isinstance(rule, str | Mapping):
        name, own = _table("rule", rule)
        return _built("rule", name, {**own, **parameters})
    if parameters:
        raise SettingError(
            f"rule: {', '.join(parameters)} are parameters of a rule that is named; got one made already"
        )
    if inspect.isclass(rule):
        raise SettingError(f"rule: expected a rule, got the class {rule.__name__}; make one: {rule.__name__}()")
    function = callable(rule) and not isinstance(rule, Aggregates)
    part = registry.of_function("rule", rule) if function else rule
    return conformity.conforming("rule", type(part).__name__, part)


def _table(what: str, value: str | Mapping[str, object]) -> tuple[str, dict[str, object]]:
    """Name and parameters; these may also stand in a table of their own, `params`."""
    table: dict[str, object] = {"name": value} if isinstance(value, str) else dict(value)
    if "name" not in table:
        raise SettingError(f"{what}: a table needs a name, such as {{'name': 'flag', 'iterations': 1}}; got {table}")
    own = table.pop("params", {})
    return str(table.pop("name")), {**(own if isinstance(own, Mapping) else {"params": own}), **table}


def _built(kind: str, name: str, parameters: Mapping[str, object], **inner: Any) -> Any:
    checked = validated(registry.parameters(registry.find(kind, name)), parameters, of=name)
    return registry.build(kind, name, checked, **inner)
