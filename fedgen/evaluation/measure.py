"""What every loss and metric says of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from fedgen.data.targets import TargetKind

T = TypeVar("T", bound=Callable[..., Any])


def measure(*takes: TargetKind, lower_is_better: bool) -> Callable[[T], T]:
    """Declare the kinds of targets that a loss or metric is made for, and which way is better.

    A function of your own may set the attribute `lower_is_better` without this; one that does not has no best value.
    """

    def declare(function: T) -> T:
        vars(function).update(takes=takes, lower_is_better=lower_is_better)
        return function

    return declare
