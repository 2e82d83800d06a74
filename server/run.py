"""A run's life: from an experiment to a folder with a model and a report, through stops, kills and resumes."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from fedgen import registry
from fedgen.config import Experiment
from fedgen.errors import FedgenError, SettingError
from fedgen.federation import Federation
from fedgen.notes import notes
from fedgen.own_code import explained, place_of
from fedgen.parameters import canonical
from fedgen.process import process_kept
from fedgen.server import checkpoint, events, experiment_file, gossip, parts, run_folder, signals, star, user_code
from fedgen.server.backend import Backend, backend_of
from fedgen.server.checkpoint import Standing
from fedgen.server.directions import directions
from fedgen.server.disk import Unwritable, write_json, write_text
from fedgen.server.environment import describe
from fedgen.server.exhibits import note_exhibits
from fedgen.server.journal import Journal, read_lines, truncate
from fedgen.server.pool import Interrupt, Pool, SerialPool, StopRequested, WorkLost
from fedgen.server.recorded import Recorded
from fedgen.server.result import Result as Result
from fedgen.server.result import RunFailed, State, final_metrics, verdict
from fedgen.server.session import Session
from fedgen.server.topology import network_record
from fedgen.server.view import Plan, SilentView, View
from fedgen.server.words import counted, members_of, round_name

LOOPS = {("star", "rounds"): star, ("gossip", "rounds"): gossip, ("gossip", "events"): events}
"""(federation.mode, gossip.clock) -> its initial_state, play_round and final_model."""

REPLAYS = 5
"""How often a round is played again whose work was lost with a machine."""


@process_kept()
@signals.ending_at_once()
def run(
    experiment: Experiment,
    out: str | Path | None = None,
    *,
    text: str | None = None,
    view: View | None = None,
    search_path: Sequence[str] = (),
) -> Result:
    """Run an experiment from its first round.

    out: the run folder (default runs/NAME-TIME).  text: the experiment file as given.  search_path: folders of a user's
    own modules.

    Raises SettingError where experiment, data or folder do not allow a run, RunFailed where it could not go on.
    """
    began, view, interrupt = monotonic(), view or SilentView(), Interrupt()
    folder = run_folder.choose(out, experiment.experiment.name)
    registry.search_in(search_path)
    federation = _checked(Federation(experiment))
    folder = run_folder.make(folder, named=out is not None)
    with run_folder.held(folder), signals.asking(interrupt, view):
        code = user_code.sources(experiment)
        environment = describe(federation.experiment, federation, tuple(search_path), code)
        _begin(folder, federation, environment, text if text is not None else experiment_file.dump(experiment))
        life = _Life(folder, federation, environment, view, interrupt, began)
        return life.live(life.newborn())


@process_kept()
@signals.ending_at_once()
def resume(
    folder: str | Path,
    *,
    rounds: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    view: View | None = None,
    accept_code: bool = False,
) -> Result:
    """Continue a run from its newest whole checkpoint, bit for bit as if it had never stopped.

    rounds: a new, larger number of rounds.  overrides: dotted keys of [runtime] and [tracking]; any other change is
    another experiment.  accept_code: go on although the source of the user's own modules has changed.

    Raises SettingError where the folder lacks what a run needs to go on, or holds another experiment's; RunFailed where
    it could not go on.
    """
    began, view, interrupt, folder = monotonic(), view or SilentView(), Interrupt(), Path(folder)
    recorded = Recorded.read(folder)
    registry.search_in(recorded.search_path)
    changes = {**(overrides or {}), **({} if rounds is None else {"federation.rounds": rounds})}
    experiment = recorded.experiment(changes)
    code, changed = recorded.accept_code(experiment, accept_code)
    with run_folder.held(folder):
        federation = _checked(Federation(experiment))
        recorded.check(federation)
        environment = {**recorded.environment, "code": code}
        life = _Life(folder, federation, environment, view, interrupt, began)
        standing = life.restored()
        if standing.round > experiment.federation.rounds:
            raise SettingError(
                f"{folder / parts.RESOLVED} plans {experiment.federation.rounds} rounds, and {standing.round} are "
                "played; put the larger number back"
            )
        if changed:
            life.opening.append(("code_changed", {"files": changed, "reason": f"{' and '.join(changed)} changed"}))
            write_json(folder / parts.ENVIRONMENT, environment)
        life.mend(parts.PARTITION, _partition(federation))
        write_text(folder / parts.RESOLVED, experiment_file.dump(experiment))
        with signals.asking(interrupt, view):
            return life.live(standing)


class _Life:
    """One process's part of a run."""

    def __init__(
        self,
        folder: Path,
        federation: Federation,
        environment: Mapping[str, Any],
        view: View,
        interrupt: Interrupt,
        began: float,
    ) -> None:
        self.folder, self.federation, self.environment = folder, federation, environment
        self.view, self.interrupt, self.began = view, interrupt, began
        self.earlier_seconds = 0.0
        self.opening: list[tuple[str, dict[str, Any]]] = []
        self.given_up: dict[tuple[int, int], str] = {}
        experiment = federation.experiment
        self.loop = LOOPS[experiment.federation.mode, experiment.gossip.clock]

    def newborn(self) -> Standing:
        """The standing before the first exchange."""
        state = {name: canonical(value) for name, value in self.loop.initial_state(self.federation).items()}
        return Standing(-self.federation.method.setup_rounds, state)

    def restored(self) -> Standing:
        """The standing of the newest whole checkpoint; the logs are cut to it, blocks given up since are noted."""
        loaded = checkpoint.load_newest(self.folder)
        offsets = {parts.METRICS: 0, parts.EVENTS: 0} if loaded is None else loaded[1]["offsets"]
        standing = self.newborn() if loaded is None else loaded[0]
        played = {record["round"] for record in read_lines(self.folder / parts.METRICS)}
        for event in read_lines(self.folder / parts.EVENTS):
            if event.get("event") == "block_failed" and event["round"] >= standing.round and event["round"] in played:
                self.given_up[event["round"], event["block"]] = event["reason"]
        truncate(self.folder, offsets)
        if loaded is not None:
            self.earlier_seconds = loaded[1]["seconds"]
            self.opening += [("checkpoint_fell_back", {"reason": trouble}) for trouble in loaded[2]]
        self.opening.append(("resumed", {"reason": f"continued before {_next(standing.round)}"}))
        return standing

    def mend(self, name: str, contents: Mapping[str, Any]) -> None:
        """Write a file again that follows from experiment and data, where it is missing or damaged."""
        path = self.folder / name
        try:
            run_folder.read_object(path)
        except SettingError as error:
            self.opening.append(("rewritten", {"reason": f"{str(error).partition(';')[0]}; it was written again"}))
            write_json(path, contents)

    def live(self, standing: Standing) -> Result:
        """Play the rounds that are left and end in one of the four states; the folder is whole in every case."""
        journal = Journal(self.folder)
        if self.federation.engine_reason:
            self.opening.append(("engine", {"reason": self.federation.engine_reason}))
        self.opening += [("note", {"reason": note}) for note in notes(self.federation)]
        backend = self._backend(standing)
        for event, details in self.opening:
            journal.event(event, **details)
        with self.view:
            self.view.start(
                Plan(
                    self.federation.experiment.experiment.name,
                    str(self.folder),
                    self.federation.experiment.federation.rounds,
                    directions(self.federation),
                    self.federation.experiment.federation.mode,
                ),
                standing.round,
                read_lines(self.folder / parts.METRICS),
                self._seconds(),
            )
            for event, details in self.opening:
                self.view.note(f"{event.replace('_', ' ')}: {details['reason']}")
            cause: Exception | None = None
            try:
                state, message = self._play(standing, journal, backend)
            except StopRequested:
                state, message = "stopped", f"before {_next(standing.round)}"
            except FedgenError as error:
                state, message, cause = "failed", str(error), error
            except Exception as error:
                state, message, cause = "failed", explained(error), error
                if not place_of(error):  # a defect of fedgen's own: the traceback says where
                    self._end(standing, journal, state, message)
                    raise
            result = self._end(standing, journal, state, message, not isinstance(cause, Unwritable))
        if result.state == "failed":
            raise RunFailed(result) from cause
        return result

    def _backend(self, standing: Standing) -> Backend:
        """Where the rounds that are left are trained; said first where "auto" has decided it."""
        left = self.federation.experiment.federation.rounds - standing.round
        backend = backend_of(self.federation, left)
        if backend.reason and left > 0:
            self.opening.append(("backend", {"reason": f"{backend.name}, as {backend.reason}"}))
        return backend

    def _play(self, standing: Standing, journal: Journal, backend: Backend) -> tuple[State, str]:
        experiment = self.federation.experiment
        rounds, every = experiment.federation.rounds, experiment.federation.evaluate_every
        if standing.round >= rounds:
            return self._reached(journal)
        pool = self._pool(journal, backend)
        self.view.doing("")
        try:
            session = Session(self.federation, pool, standing, journal, self.given_up)
            while standing.round < rounds:
                self.interrupt.check()
                due = (standing.round + 1) % every == 0 or standing.round + 1 == rounds
                record = self._round(session, due)
                if due and experiment.tracking.report:
                    note_exhibits(session, self.view.note)
                journal.commit(record)
                self.view.round(record)
                if standing.round % experiment.runtime.checkpoint_every == 0 or standing.round == rounds:
                    session.spare.clear()  # a checkpoint packs what clients keep, and wants the room
                    self._save(standing, journal)
        finally:
            pool.close()
        return self._reached(journal)

    def _round(self, session: Session, evaluate: bool) -> dict[str, Any]:
        """One round, played again from its beginning where a machine took some of it away."""
        lost = 0
        while True:
            try:
                record: dict[str, Any] = self.loop.play_round(session, evaluate)
                return record
            except WorkLost as error:
                if (lost := lost + 1) > REPLAYS:
                    raise
                session.journal.drop_round()
                self._noted(
                    session.journal, "retried", f"{round_name(session.standing.round)} is played again: {error}"
                )

    def _noted(self, journal: Journal, event: str, reason: str) -> None:
        journal.event(event, reason=reason)
        self.view.note(reason)

    def _reached(self, journal: Journal) -> tuple[State, str]:
        journal.flush()
        return verdict(read_lines(self.folder / parts.EVENTS), members_of(self.federation.experiment.federation.mode))

    def _pool(self, journal: Journal, backend: Backend) -> Pool:
        runtime = self.federation.experiment.runtime
        if backend.name == "serial":
            return SerialPool(self.federation, self.interrupt)
        from fedgen.server.ray_pool import RayPool

        auto = runtime.workers == "auto"
        self.view.doing("starting Ray workers" if auto else f"starting {counted(int(runtime.workers), 'Ray worker')}")
        path = tuple(self.environment["search_path"])
        return RayPool(self.federation, runtime.workers, self.interrupt, path, partial(self._noted, journal))

    def _save(self, standing: Standing, journal: Journal) -> None:
        facts = {"offsets": journal.sync(), "identity": self.environment["identity"], "seconds": self._seconds()}
        checkpoint.save(self.folder, standing, facts, self.federation.experiment.runtime.keep_checkpoints)

    def _seconds(self) -> float:
        return round(self.earlier_seconds + monotonic() - self.began, 3)

    def _end(self, standing: Standing, journal: Journal, state: State, message: str, room: bool = True) -> Result:
        """Leave the folder whole; where the system refuses that, the run has failed. room: whether a checkpoint may be
        written: where a log could not, the newest one there is agrees with it."""
        report = ""
        try:
            message = self._close_logs(standing, journal, state, message, room)
            result = self._result(standing, state, message)
            row = self.loop.final_model(self.federation, standing.state, standing.round - 1)
            model = self.federation.exported(row)
            checkpoint.save_tensors(self.folder / parts.MODEL, model, {"sha256": result.sha256})
            write_json(self.folder / parts.RESULT, result.to_json())
            if self.federation.experiment.tracking.report:
                report = self._report()
        except Unwritable as error:
            first = message if state == "failed" else self._how_to_go_on("failed", str(error))
            result = self._result(standing, "failed", first)
            with suppress(Unwritable):
                write_json(self.folder / parts.RESULT, result.to_json())
        self.view.end(result.to_json(), report)
        return result

    def _close_logs(self, standing: Standing, journal: Journal, state: State, message: str, room: bool) -> str:
        """Write the last events and, where the run can go on from here, a checkpoint; returns the message with how."""
        dropped = journal.drop_round()
        told = self._how_to_go_on(state, message) if state in ("stopped", "failed") else message
        try:
            if state in ("stopped", "failed"):
                journal.event(state, reason=message)
                if room:
                    self._save(standing, journal)
            if state == "failed":
                # Behind the checkpoint's offset: resume cuts them off and plays the round again.
                for event in dropped:
                    journal.event(**event)
            journal.flush()
        except Unwritable:
            if state != "failed":
                raise
        finally:
            journal.close()
        return told

    def _result(self, standing: Standing, state: State, message: str) -> Result:
        kept = standing.clients.tensors()
        return Result(
            folder=self.folder,
            state=state,
            rounds=max(standing.round, 0),
            metrics=final_metrics(read_lines(self.folder / parts.METRICS)),
            sha256=checkpoint.digest(standing.state),
            client_sha256=checkpoint.digest(kept) if kept else None,
            seconds=self._seconds(),
            message=message,
        )

    def _how_to_go_on(self, state: State, reason: str) -> str:
        command = f"`{shlex.join(['fedgen', 'resume', str(self.folder)])}` continues"
        return f"{command} this run" if state == "stopped" else f"{reason}; {command} once this is mended"

    def _report(self) -> str:
        """The report's path; a failure to draw it must not lose the run, and is said."""
        from fedgen.server.report import write_report

        try:
            return str(write_report(self.folder))
        except Unwritable:
            raise
        except Exception as error:
            self.view.note(f"the report could not be written ({error}); try `fedgen report {self.folder}`")
            return ""


def _checked(federation: Federation) -> Federation:
    """A federation whose graph, where it has one, allows the run.

    Raises SettingError.
    """
    if federation.experiment.federation.mode == "gossip":
        gossip.check(federation)
    return federation


def _begin(folder: Path, federation: Federation, environment: Mapping[str, Any], text: str) -> None:
    """Write what a run folder holds from the start; all of it, so that one where there was no room can be used again.

    Raises Unwritable.
    """
    try:
        write_json(folder / parts.ENVIRONMENT, environment)
        write_text(folder / parts.EXPERIMENT, text)
        write_json(folder / parts.PARTITION, _partition(federation))
        if federation.experiment.federation.mode == "gossip":
            write_json(folder / parts.NETWORK, network_record(federation.network))
        write_text(folder / parts.RESOLVED, experiment_file.dump(federation.experiment))
    except Unwritable:
        for name in (parts.ENVIRONMENT, parts.EXPERIMENT, parts.PARTITION, parts.NETWORK, parts.RESOLVED):
            (folder / name).unlink(missing_ok=True)
        raise


def _next(round: int) -> str:
    return "training" if round < 0 else round_name(round)


def _partition(federation: Federation) -> dict[str, Any]:
    redrawn = federation.experiment.byzantine.redraw  # then every round's event says who lies
    held = federation.holdings
    return {
        "targets": held.kind,
        "classes": list(held.columns),
        "counts": held.counts.tolist(),
        "samples": held.samples.tolist(),
        "byzantine": [] if redrawn else federation.byzantine.nonzero().flatten().tolist(),
    }
