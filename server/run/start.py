"""Starts and resumes runs; the Python API of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic

from fedgen import registry
from fedgen.config import Experiment
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.process import process_kept
from fedgen.server import experiment_file
from fedgen.server.pools.pool import Interrupt
from fedgen.server.report.topology import network_record
from fedgen.server.run import signals
from fedgen.server.run.environment import describe
from fedgen.server.run.life import Life
from fedgen.server.run.loops import checked
from fedgen.server.run.observers import watching
from fedgen.server.run.recorded import Recorded
from fedgen.server.run.result import Result as Result
from fedgen.server.run.result import RunFailed as RunFailed
from fedgen.server.store import parts, run_folder, user_code
from fedgen.server.store.disk import Unwritable, write_json, write_text
from fedgen.tracking.observer import Observer
from fedgen.tracking.record import Json


@process_kept()
@signals.ending_at_once()
def run(
    experiment: Experiment,
    out: str | Path | None = None,
    *,
    text: str | None = None,
    observers: Sequence[Observer] = (),
    search_path: Sequence[str] = (),
) -> Result:
    """Run an experiment from its first round.

    out: the run folder (default runs/NAME-TIME). text: the text of the experiment file. observers: added to those that
    the experiment names. search_path: folders of a user's own modules.

    Raises SettingError if experiment, data or folder do not allow a run, RunFailed if the run fails.
    """
    began = monotonic()
    interrupt = Interrupt()
    folder = run_folder.choose(out, experiment.experiment.name)
    registry.search_in(search_path)
    watchers = watching(experiment, observers)
    federation = checked(experiment)
    folder = run_folder.make(folder, named=out is not None)
    with run_folder.locked(folder), signals.asking(interrupt, watchers.interrupted):
        code = user_code.sources(experiment)
        environment = describe(federation.experiment, federation, tuple(search_path), code)
        _begin(folder, federation, environment, text if text is not None else experiment_file.dump(experiment))
        life = Life(folder, federation, tuple(search_path), watchers, interrupt, began)
        return life.live(life.newborn())


@process_kept()
@signals.ending_at_once()
def resume(
    folder: str | Path,
    *,
    rounds: int | None = None,
    overrides: Mapping[str, object] | None = None,
    observers: Sequence[Observer] = (),
    accept_code: bool = False,
) -> Result:
    """Continue a run from its newest valid checkpoint, bit for bit as if it had never stopped.

    rounds: a new, larger number of rounds. overrides: dotted keys of [runtime] and [tracking]; other changes are
    refused. observers: as in `run`. accept_code: continue although the user's own modules have changed.

    Raises SettingError if the folder is incomplete or has another experiment, RunFailed if the run fails.
    """
    began = monotonic()
    interrupt = Interrupt()
    folder = Path(folder)
    recorded = Recorded.read(folder)
    registry.search_in(recorded.search_path)
    changes = {**(overrides or {}), **({} if rounds is None else {"federation.rounds": rounds})}
    experiment = recorded.experiment(changes)
    watchers = watching(experiment, observers)
    code, changed = recorded.accept_code(experiment, accept_code)
    with run_folder.locked(folder):
        federation = checked(experiment)
        recorded.check(federation)
        life = Life(folder, federation, recorded.search_path, watchers, interrupt, began)
        standing = life.restored()
        if standing.round > experiment.federation.rounds:
            raise SettingError(
                f"{folder / parts.RESOLVED} plans {experiment.federation.rounds} rounds, but {standing.round} have "
                "been played; restore the larger number"
            )
        if changed:
            life.open_with("code_changed", f"{' and '.join(changed)} changed", files=changed)
            write_json(folder / parts.ENVIRONMENT, {**recorded.environment, "code": code})
        life.mend(parts.PARTITION, _partition(federation))
        write_text(folder / parts.RESOLVED, experiment_file.dump(experiment))
        with signals.asking(interrupt, watchers.interrupted):
            return life.live(standing)


def _begin(folder: Path, federation: Federation, environment: Mapping[str, Json], text: str) -> None:
    """Write the first files of a run folder, all or none, so that a folder on a full disk can be used again.

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


def _partition(federation: Federation) -> dict[str, Json]:
    redrawn = federation.experiment.byzantine.redraw  # then an event of every round lists them
    holdings = federation.holdings
    return {
        "targets": holdings.kind,
        "classes": list(holdings.columns),
        "counts": holdings.counts.tolist(),
        "samples": holdings.samples.tolist(),
        "byzantine": [] if redrawn else federation.byzantine.nonzero().flatten().tolist(),
    }
