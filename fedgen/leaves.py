"""Records whose large parts travel apart: what is inside a record is found, taken out and put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Held(Generic[T]):
    """Something that stays with the workers: for a task the value itself, for the driver its handle."""

    value: T


@dataclass(frozen=True)
class Leaf:
    """The place of a leaf in a record that was taken apart."""

    number: int


def with_leaves(record: R, kinds: type | tuple[type, ...], change: Callable[[Any], object]) -> R:
    """The record with change(leaf) for every leaf of these kinds, in dataclasses, dicts, tuples and lists; the same
    object where nothing changes.

    >>> with_leaves({"a": (1, "b"), "c": [2.5]}, (int, float), lambda number: -number)
    {'a': (-1, 'b'), 'c': [-2.5]}
    """
    changed: Any = _changed(record, kinds, change)
    result: R = changed
    return result


def taken_apart(record: R, kinds: type | tuple[type, ...], first: int = 0) -> tuple[R, list[Any]]:
    """(its outline: the record with a `Leaf` in place of each leaf, numbered from `first`; the leaves in order).

    >>> taken_apart({"a": (1, "b"), "c": 2}, int)
    ({'a': (Leaf(number=0), 'b'), 'c': Leaf(number=1)}, [1, 2])
    """
    leaves: list[Any] = []

    def take(leaf: object) -> Leaf:
        leaves.append(leaf)
        return Leaf(first + len(leaves) - 1)

    return with_leaves(record, kinds, take), leaves


def put_together(outline: R, leaves: Sequence[object]) -> R:
    """The inverse of `taken_apart`.

    >>> put_together({"a": (Leaf(0), "b"), "c": Leaf(1)}, [1, 2])
    {'a': (1, 'b'), 'c': 2}
    """
    return with_leaves(outline, Leaf, lambda leaf: leaves[leaf.number])


def _changed(value: Any, kinds: type | tuple[type, ...], change: Callable[[Any], object]) -> Any:
    if isinstance(value, kinds):
        return change(value)
    if type(value) is dict:
        parts = {key: _changed(each, kinds, change) for key, each in value.items()}
        return parts if any(parts[key] is not each for key, each in value.items()) else value
    if type(value) in (list, tuple):
        sequence = [_changed(each, kinds, change) for each in value]
        return type(value)(sequence) if any(new is not old for new, old in zip(sequence, value, strict=True)) else value
    if is_dataclass(value) and not isinstance(value, type):
        before = {field.name: vars(value)[field.name] for field in fields(value) if field.init}
        after = {name: _changed(each, kinds, change) for name, each in before.items()}
        differing = {name: each for name, each in after.items() if each is not before[name]}
        return replace(value, **differing) if differing else value
    return value
