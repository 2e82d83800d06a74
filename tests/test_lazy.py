"""Properties that are computed once, without a lock that two threads could wait for in turn."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from fedgen.lazy import lazy_property

TURN = threading.RLock()


@dataclass(frozen=True)
class Squared:
    number: int
    calls: list[int]

    @lazy_property
    def square(self) -> int:
        """The number times itself."""
        self.calls.append(self.number)
        with TURN:
            return self.number**2


def test_a_value_is_computed_once_an_instance() -> None:
    three, four = Squared(3, []), Squared(4, [])
    assert (three.square, three.square, four.square) == (9, 9, 16)
    assert three.calls == [3]


def test_of_the_class_it_is_itself() -> None:
    assert isinstance(Squared.square, lazy_property)
    assert Squared.square.__doc__ == "The number times itself."


def test_a_thread_that_holds_a_lock_may_read_what_another_computes() -> None:
    """One thread computes the property of one instance and waits for the lock that the other holds meanwhile."""
    first, second = Squared(3, []), Squared(4, [])
    with TURN:
        other = threading.Thread(target=lambda: first.square, daemon=True)
        other.start()
        while not first.calls:
            pass
        assert second.square == 16
    other.join(timeout=10)
    assert not other.is_alive()
