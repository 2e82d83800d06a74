"""Calls the observers of a run one after another; an observer that raises is dropped and never ends the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

from fedgen import registry
from fedgen.config import Experiment
from fedgen.conformity import conforming
from fedgen.errors import SettingError
from fedgen.own_code import explained
from fedgen.server.store.disk import Unwritable
from fedgen.server.store.journal import Journal
from fedgen.tracking.observer import Observer, Plan
from fedgen.tracking.record import RoundRecord
from fedgen.tracking.result import Result

Call = Callable[[Observer], None]


def watching(experiment: Experiment, observers: Iterable[Observer]) -> Observers:
    """The passed observers, followed by those that the experiment names.

    Raises SettingError if one is no observer or cannot be built.
    """
    given = list(observers)
    for observer in given:
        if isinstance(observer, type):
            name = observer.__name__
            raise SettingError(f"observers: {name} is a class; pass an instance, such as {name}()")
        conforming("observer", _name(observer), observer)
    named = [registry.build("observer", choice.name, choice.params) for choice in experiment.tracking.observers]
    return Observers([*given, *named])


class Observers:
    """The observers of a run. One that raises is dropped, with an event and a note to the others."""

    _journal: Journal

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = list(observers)
        self._waiting: list[Call] = []
        self._calling = True  # calls wait until the run starts

    def start(self, plan: Plan, journal: Journal) -> None:
        """journal: gets an event for each dropped observer."""
        self._journal = journal
        self._waiting.insert(0, lambda observer: observer.start(plan))
        self._calling = False
        self._tell_waiting()

    def doing(self, what: str) -> None:
        self._tell(lambda observer: observer.doing(what))

    def round(self, record: RoundRecord) -> None:
        self._tell(lambda observer: observer.round(record))

    def note(self, message: str) -> None:
        self._tell(lambda observer: observer.note(message))

    def end(self, result: Result) -> None:
        """Called in reverse order, so that the view, which is first, can still show notes about the others."""
        watching = len(self._observers)
        ended = 0
        while self._observers:
            observer = self._observers.pop()
            ended += self._call(observer, lambda last: last.end(result))
            self._tell_waiting()
        if ended < watching:
            with suppress(Unwritable):  # the result is final and must not change
                self._journal.flush()

    def interrupted(self, what: str) -> None:
        """`doing` for a signal handler; if an observer is being called, the call waits until it returns."""

        def call(observer: Observer) -> None:
            with suppress(RuntimeError):  # the stream is in the middle of another write
                observer.doing(what)

        self._tell(call)

    def _tell(self, call: Call) -> None:
        self._waiting.append(call)
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        if self._calling:
            return
        self._calling = True
        try:
            while self._waiting:
                call = self._waiting.pop(0)
                for observer in list(self._observers):
                    self._call(observer, call)
        finally:
            self._calling = False

    def _call(self, observer: Observer, call: Call) -> bool:
        """Whether the call returned."""
        try:
            call(observer)
        except KeyboardInterrupt:  # a second Ctrl-C
            raise
        except BaseException as error:  # includes SystemExit and cancellation errors of libraries
            self._drop(observer, error)
            return False
        return True

    def _drop(self, observer: Observer, error: BaseException) -> None:
        self._observers = [other for other in self._observers if other is not observer]
        reason = f"{_name(observer)} is dropped, and the run goes on without it: {explained(error)}"
        self._journal.event("observer_dropped", observer=_name(observer), reason=reason)
        if self._observers:
            self._waiting.append(lambda other: other.note(f"observer dropped: {reason}"))
        else:
            logging.getLogger(__name__).warning("%s", reason)


def _name(observer: object) -> str:
    return f"{type(observer).__module__}:{type(observer).__qualname__}"
