"""A run in one process: rounds, checkpoints, and an end in one of four states."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import monotonic

from fedgen.errors import FedgenError, SettingError
from fedgen.federation import Federation
from fedgen.notes import notes
from fedgen.own_code import explained, place_of
from fedgen.parameters import canonical
from fedgen.server.directions import directions
from fedgen.server.pools.pool import Interrupt, Pool, SerialPool, StopRequested, WorkLost
from fedgen.server.rounds.exhibits import note_exhibits
from fedgen.server.rounds.session import Session
from fedgen.server.run.backend import Backend, backend_of
from fedgen.server.run.loops import loop_of
from fedgen.server.run.observers import Observers
from fedgen.server.run.result import RunFailed, verdict
from fedgen.server.store import checkpoint, parts, run_folder
from fedgen.server.store.checkpoint import Standing
from fedgen.server.store.disk import Unwritable, write_json
from fedgen.server.store.journal import Event, Journal, read_lines, read_rounds, truncate
from fedgen.server.words import counted, members_of, round_name
from fedgen.tracking.observer import Plan
from fedgen.tracking.record import Json, RoundRecord, final_metrics
from fedgen.tracking.result import Result, State

REPLAYS = 5
"""How often a round is repeated after its results were lost with a machine."""


class Life:
    """A run in this process. search_path: folders of a user's own modules. began: `monotonic()` at its start."""

    def __init__(
        self,
        folder: Path,
        federation: Federation,
        search_path: tuple[str, ...],
        observers: Observers,
        interrupt: Interrupt,
        began: float,
    ) -> None:
        self.folder = folder
        self.federation = federation
        self.search_path = search_path
        self.observers = observers
        self.interrupt = interrupt
        self.began = began
        self.earlier_seconds = 0.0
        self.opening: list[Event] = []
        self.given_up: dict[tuple[int, int], str] = {}
        self.loop = loop_of(federation.experiment)

    def newborn(self) -> Standing:
        """The standing before the first exchange."""
        state = {name: canonical(value) for name, value in self.loop.initial_state(self.federation).items()}
        return Standing(-self.federation.method.setup_rounds, state)

    def restored(self) -> Standing:
        """The standing of the newest valid checkpoint. Logs are cut to it; blocks that failed later fail again."""
        loaded = checkpoint.load_newest(self.folder)
        offsets = {parts.METRICS: 0, parts.EVENTS: 0} if loaded is None else loaded[1].offsets
        standing = self.newborn() if loaded is None else loaded[0].on(self.federation.learner.device)
        played = {record.round for record in read_rounds(self.folder)}
        for event in read_lines(self.folder / parts.EVENTS):
            if event.get("event") == "block_failed" and event["round"] >= standing.round and event["round"] in played:
                self.given_up[event["round"], event["block"]] = event["reason"]
        truncate(self.folder, offsets)
        if loaded is not None:
            self.earlier_seconds = loaded[1].seconds
            for trouble in loaded[2]:
                self.open_with("checkpoint_fell_back", trouble)
        self.open_with("resumed", f"continued before {_next(standing.round)}")
        return standing

    def open_with(self, event: str, reason: str, **details: Json) -> None:
        """Add an event for the logs and observers before the first round."""
        self.opening.append(Event(event, details={**details, "reason": reason}))

    def mend(self, name: str, contents: Mapping[str, Json]) -> None:
        """Write a missing or damaged file again, if it follows from experiment and data."""
        path = self.folder / name
        try:
            run_folder.read_object(path)
        except SettingError as error:
            self.open_with("rewritten", f"{str(error).partition(';')[0]}; it was written again")
            write_json(path, contents)

    def live(self, standing: Standing) -> Result:
        """Play the remaining rounds and end in one of the four states, always with a complete run folder."""
        if self.federation.engine_reason:
            self.open_with("engine", self.federation.engine_reason)
        for note in notes(self.federation):
            self.open_with("note", note)
        backend = self._backend(standing)
        cause: Exception | None = None
        with closing(Journal(self.folder)) as journal:
            self._open(standing, journal)
            try:
                state, message = self._play(standing, journal, backend)
            except StopRequested:
                state = "stopped"
                message = f"before {_next(standing.round)}"
            except FedgenError as error:
                state = "failed"
                message = str(error)
                cause = error
            except Exception as error:
                state = "failed"
                message = explained(error)
                cause = error
                if not place_of(error):  # a defect of fedgen's own: the traceback says where
                    self._end(standing, journal, state, message)
                    raise
            result = self._end(standing, journal, state, message, not isinstance(cause, Unwritable))
        if result.state == "failed":
            raise RunFailed(result) from cause
        return result

    def _open(self, standing: Standing, journal: Journal) -> None:
        for event in self.opening:
            journal.note(event)
        plan = Plan(
            experiment=self.federation.experiment,
            folder=self.folder,
            directions=directions(self.federation),
            first_round=standing.round,
            earlier=tuple(read_rounds(self.folder)),
            earlier_s=self._seconds(),
        )
        self.observers.start(plan, journal)
        for event in self.opening:
            kind = "" if event.event == "note" else f"{event.event.replace('_', ' ')}: "
            self.observers.note(f"{kind}{event.details['reason']}")

    def _backend(self, standing: Standing) -> Backend:
        """The backend for the remaining rounds, with an event if "auto" chose it."""
        left = self.federation.experiment.federation.rounds - standing.round
        backend = backend_of(self.federation, left)
        if backend.reason and left > 0:
            self.open_with("backend", f"{backend.name}, as {backend.reason}")
        return backend

    def _play(self, standing: Standing, journal: Journal, backend: Backend) -> tuple[State, str]:
        experiment = self.federation.experiment
        rounds, every = experiment.federation.rounds, experiment.federation.evaluate_every
        if standing.round >= rounds:
            return self._reached(journal)
        pool = self._pool(journal, backend)
        self.observers.doing("")
        try:
            session = Session(self.federation, pool, standing, journal, self.given_up)
            while standing.round < rounds:
                self.interrupt.check()
                due = (standing.round + 1) % every == 0 or standing.round + 1 == rounds
                record = self._round(session, due)
                if due and experiment.tracking.report:
                    note_exhibits(session, self.observers.note)
                journal.commit(record)
                self.observers.round(record)
                if standing.round % experiment.runtime.checkpoint_every == 0 or standing.round == rounds:
                    session.spare.clear()  # frees memory for a packed copy of the clients' state
                    self._save(standing, journal)
        finally:
            pool.close()
        return self._reached(journal)

    def _round(self, session: Session, evaluate: bool) -> RoundRecord:
        """Play one round; repeat it if results were lost with a machine."""
        lost = 0
        while True:
            try:
                return self.loop.play_round(session, evaluate)
            except WorkLost as error:
                if (lost := lost + 1) > REPLAYS:
                    raise
                session.journal.drop_round()
                again = f"{round_name(session.standing.round)} is played again: {error}"
                self._noted(session.journal, "retried", again)

    def _noted(self, journal: Journal, event: str, reason: str) -> None:
        journal.event(event, reason=reason)
        self.observers.note(reason)

    def _reached(self, journal: Journal) -> tuple[State, str]:
        journal.flush()
        return verdict(read_lines(self.folder / parts.EVENTS), members_of(self.federation.experiment.federation.mode))

    def _pool(self, journal: Journal, backend: Backend) -> Pool:
        runtime = self.federation.experiment.runtime
        if backend.name == "serial":
            return SerialPool(self.federation, self.interrupt)
        from fedgen.server.pools.ray_pool import RayPool

        workers = "Ray workers" if runtime.workers == "auto" else counted(int(runtime.workers), "Ray worker")
        self.observers.doing(f"starting {workers}")
        noted = partial(self._noted, journal)
        return RayPool(self.federation, runtime.workers, self.interrupt, self.search_path, noted)

    def _save(self, standing: Standing, journal: Journal) -> None:
        identity = self.federation.experiment.identity
        facts = checkpoint.Facts(journal.sync(), identity, self._seconds())
        checkpoint.save(self.folder, standing, facts, self.federation.experiment.runtime.keep_checkpoints)

    def _seconds(self) -> float:
        return round(self.earlier_seconds + monotonic() - self.began, 3)

    def _end(self, standing: Standing, journal: Journal, state: State, message: str, room: bool = True) -> Result:
        """Complete the folder; if it cannot be written, the run has failed.

        room: whether to write a checkpoint; not after a failed write to a log, which matches the newest checkpoint.
        """
        try:
            message = self._close_logs(standing, journal, state, message, room)
            result = self._result(standing, state, message)
            row = self.loop.final_model(self.federation, standing.state, standing.round - 1)
            model = self.federation.exported(row)
            checkpoint.save_tensors(self.folder / parts.MODEL, model, {"sha256": result.sha256})
            write_json(self.folder / parts.RESULT, result.to_json())
            if self.federation.experiment.tracking.report:
                result = replace(result, report=self._report())
        except Unwritable as error:
            first = message if state == "failed" else self._how_to_go_on("failed", str(error))
            result = self._result(standing, "failed", first)
            with suppress(Unwritable):
                write_json(self.folder / parts.RESULT, result.to_json())
        self.observers.end(result)
        return result

    def _close_logs(self, standing: Standing, journal: Journal, state: State, message: str, room: bool) -> str:
        """Write the last events and, for a run that can be resumed, a checkpoint; returns the final message."""
        dropped = journal.drop_round()
        try:
            if state in ("stopped", "failed"):
                journal.event(state, reason=message)
                if room:
                    self._save(standing, journal)
            if state == "failed":
                # They follow the checkpoint's offset, so a resume cuts them off and plays the round again.
                for event in dropped:
                    journal.note(event)
            journal.flush()
        except Unwritable:
            if state != "failed":
                raise
        return self._how_to_go_on(state, message) if state in ("stopped", "failed") else message

    def _result(self, standing: Standing, state: State, message: str) -> Result:
        kept = standing.clients.tensors()
        records = tuple(read_rounds(self.folder))
        return Result(
            folder=self.folder,
            state=state,
            rounds=max(standing.round, 0),
            metrics=final_metrics(records),
            sha256=checkpoint.digest(standing.state),
            client_sha256=checkpoint.digest(kept) if kept else None,
            seconds=self._seconds(),
            message=message,
            records=records,
        )

    def _how_to_go_on(self, state: State, reason: str) -> str:
        command = f"`{shlex.join(['fedgen', 'resume', str(self.folder)])}` continues"
        return f"{command} this run" if state == "stopped" else f"{reason}; {command} once this is fixed"

    def _report(self) -> Path | None:
        """Path of the report; if it cannot be drawn, a note to the observers, as that must not fail the run."""
        from fedgen.server.report.page import write_report

        try:
            return write_report(self.folder)
        except Unwritable:
            raise
        except Exception as error:
            self.observers.note(f"the report could not be written ({error}); try `fedgen report {self.folder}`")
            return None


def _next(round: int) -> str:
    return "training" if round < 0 else round_name(round)
