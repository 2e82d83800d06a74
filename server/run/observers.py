"""All that watch a run: they are told one after another, and none of them can end it."""

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
    """The observers that were passed, and behind them those that the experiment names.

    Raises SettingError where one is no observer or cannot be made.
    """
    given = list(observers)
    for each in given:
        if isinstance(each, type):
            raise SettingError(f"observers: {each.__name__} is a class; pass an instance, such as {each.__name__}()")
        conforming("observer", _name(each), each)
    named = [registry.build("observer", each.name, each.params) for each in experiment.tracking.observers]
    return Observers([*given, *named])


class Observers:
    """One that raises anything but KeyboardInterrupt is dropped, with an event and a note to the others."""

    _journal: Journal

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = list(observers)
        self._waiting: list[Call] = []
        self._telling = True  # until the run starts, what there is to say waits

    def start(self, plan: Plan, journal: Journal) -> None:
        """journal: where it is noted who was dropped."""
        self._journal = journal
        self._waiting.insert(0, lambda observer: observer.start(plan))
        self._telling = False
        self._tell_waiting()

    def doing(self, what: str) -> None:
        self._tell(lambda observer: observer.doing(what))

    def round(self, record: RoundRecord) -> None:
        self._tell(lambda observer: observer.round(record))

    def note(self, message: str) -> None:
        self._tell(lambda observer: observer.note(message))

    def end(self, result: Result) -> None:
        """The last one is told first, so that a view, which comes first, still says what became of the others."""
        watching, ended = len(self._observers), 0
        while self._observers:
            observer = self._observers.pop()
            ended += self._call(observer, lambda each: each.end(result))
            self._tell_waiting()
        if ended < watching:
            with suppress(Unwritable):  # the run has ended, and stays what it is
                self._journal.flush()

    def interrupted(self, what: str) -> None:
        """`doing` for a signal handler: what comes amid an observer's own work is told after it."""

        def call(observer: Observer) -> None:
            with suppress(RuntimeError):  # the stream that it writes to is just being written to
                observer.doing(what)

        self._tell(call)

    def _tell(self, call: Call) -> None:
        self._waiting.append(call)
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        if self._telling:
            return
        self._telling = True
        try:
            while self._waiting:
                call = self._waiting.pop(0)
                for observer in list(self._observers):
                    self._call(observer, call)
        finally:
            self._telling = False

    def _call(self, observer: Observer, call: Call) -> bool:
        """Whether it went well."""
        try:
            call(observer)
        except KeyboardInterrupt:  # a second Ctrl-C
            raise
        except BaseException as error:  # also SystemExit, and what libraries cancel their tasks with
            self._drop(observer, error)
            return False
        return True

    def _drop(self, observer: Observer, error: BaseException) -> None:
        self._observers = [each for each in self._observers if each is not observer]
        reason = f"{_name(observer)} is dropped, and the run goes on without it: {explained(error)}"
        self._journal.event("observer_dropped", observer=_name(observer), reason=reason)
        if self._observers:
            self._waiting.append(lambda each: each.note(f"observer dropped: {reason}"))
        else:
            logging.getLogger(__name__).warning("%s", reason)


def _name(observer: object) -> str:
    return f"{type(observer).__module__}:{type(observer).__qualname__}"
