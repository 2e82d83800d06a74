"""What every loss and metric says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from fedgen.data.targets import KINDS, TargetKind

T = TypeVar("T", bound=Callable[..., object])


class Measure:
    """What a loss or metric that is a class may say of itself.

    takes: the kinds of targets that it is made for.  lower_is_better: which way is better, None where it does not say,
    and then it has no best value.
    """

    takes: ClassVar[tuple[TargetKind, ...]] = KINDS
    lower_is_better: ClassVar[bool | None] = None


def measure(*takes: TargetKind, lower_is_better: bool) -> Callable[[T], T]:
    """Declare the same of a function.

    A function of your own may set the attributes `takes` and `lower_is_better` without this.
    """

    def declare(function: T) -> T:
        vars(function).update(takes=takes, lower_is_better=lower_is_better)
        return function

    return declare


@dataclass(frozen=True)
class Declared:
    """See `Measure`."""

    takes: tuple[TargetKind, ...] = KINDS
    lower_is_better: bool | None = None


def declared(part: object) -> Declared:
    """What a loss or metric, a function, a class or an object of one, says of itself."""
    if isinstance(part, Measure) or (isinstance(part, type) and issubclass(part, Measure)):
        return Declared(part.takes, part.lower_is_better)
    said: dict[str, Any] = {}
    for each in reversed(type(part).__mro__):
        said |= vars(each)
    said |= vars(part) if type(part).__dictoffset__ else {}
    return Declared(**{name: said[name] for name in ("takes", "lower_is_better") if name in said})
