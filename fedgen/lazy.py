"""Properties that are computed once, without a lock.

`functools.cached_property` of Python 3.11 holds a lock of the class while it computes: two threads that also take turns
at torch's generator would wait for each other forever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class lazy_property(Generic[T]):  # noqa: N801
    """The value of the first access; two threads that are first at once both compute it."""

    def __init__(self, function: Callable[..., T]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, instance: object, owner: type | None = None) -> T:
        if instance is None:  # of the class, as with a property
            return self  # type: ignore[return-value]
        value = self.function(instance)
        vars(instance)[self.function.__name__] = value
        return value
