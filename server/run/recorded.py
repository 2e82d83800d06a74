"""The record of a run in its folder, and the checks before it is resumed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgen.config import Experiment
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.server import experiment_file
from fedgen.server.store import parts, user_code
from fedgen.server.store.journal import remedy
from fedgen.server.store.run_folder import read_object


@dataclass(frozen=True)
class Recorded:
    """A run folder with the contents of its environment.json."""

    folder: Path
    environment: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Recorded:
        """Raises SettingError if the folder has no run, or lacks what a resume needs."""
        if not (folder / parts.RESOLVED).exists():
            raise SettingError(f"{folder} holds no run (no {parts.RESOLVED} in it); start one with `fedgen run`")
        path = folder / parts.ENVIRONMENT
        environment = read_object(path)
        data, paths = environment.get("data"), environment.get("search_path")
        found = {
            "identity": isinstance(environment.get("identity"), str),
            "data.sha256": isinstance(data, dict) and isinstance(data.get("sha256"), str),
            "search_path": isinstance(paths, list) and all(isinstance(path, str) for path in paths),
            "code": _is_code(environment.get("code")),
        }
        if missing := [name for name, valid in found.items() if not valid]:
            raise SettingError(f"{path} is damaged (no {' and no '.join(missing)} in it); {remedy(folder)}")
        return cls(folder, environment)

    @property
    def search_path(self) -> tuple[str, ...]:
        return tuple(self.environment["search_path"])

    def experiment(self, changes: Mapping[str, object]) -> Experiment:
        """The experiment of resolved.toml with some keys changed.

        Raises SettingError if it would be a different experiment, or a shorter one.
        """
        path = self.folder / parts.RESOLVED
        tracking = {key: value for key, value in changes.items() if key.partition(".")[0] == "tracking"}
        planned = self._planned(path, tracking).federation.rounds
        experiment = experiment_file.load_experiment(path, changes)
        if experiment.identity != self.environment["identity"]:
            raise SettingError(
                f"{path} and --set no longer describe the experiment this run began with; only [runtime], [tracking], "
                "the name and a larger --rounds may change: start a new run for anything else"
            )
        if experiment.federation.rounds < planned:
            raise SettingError(
                f"--rounds {experiment.federation.rounds}: this run is planned for {planned} rounds; give a larger "
                "number, or start a new run"
            )
        return experiment

    def _planned(self, path: Path, tracking: Mapping[str, object]) -> Experiment:
        """The experiment of resolved.toml, with `tracking` changed, as an observer may no longer exist."""
        given = shlex.join(["fedgen", "run", str(self.folder / parts.EXPERIMENT)])
        instead = f"restore the file from a copy, or start the run again: `{given}`"
        try:
            experiment = experiment_file.load_experiment(path, tracking)
        except SettingError as error:
            raise SettingError(
                f"{path} is damaged or written by another version of fedgen: {error}; {instead}"
            ) from error
        if experiment.identity != self.environment["identity"]:
            raise SettingError(
                f"{path} has changed: it and --set no longer describe the experiment this run began with; only "
                f"[runtime], [tracking], the name and a larger --rounds may change; {instead}"
            )
        return experiment

    def accept_code(self, experiment: Experiment, accept: bool) -> tuple[user_code.Sources, list[str]]:
        """(current sources of the user's modules, files that have changed).

        Raises SettingError if a file has changed, unless `accept`.
        """
        now = user_code.sources(experiment)
        files = user_code.changed(self.environment["code"], now)
        if files and not accept:
            command = shlex.join(["fedgen", "resume", str(self.folder), "--accept-code"])
            raise SettingError(
                f"{' and '.join(files)}: changed since this run began (the hash differs); restore it, or continue with "
                f"the changed code: `{command}`"
            )
        return now, files

    def check(self, federation: Federation) -> None:
        """Raises SettingError if data or graph have changed since the run began."""
        if federation.dataset.sha256 != self.environment["data"]["sha256"]:
            raise SettingError(
                f"data.dataset {federation.dataset.name!r} has changed since this run began (its hash differs); "
                "restore the data or start a new run"
            )
        if federation.experiment.federation.mode != "gossip":
            return
        if federation.network.graph(0).sha256 != read_object(self.folder / parts.NETWORK).get("sha256"):
            raise SettingError(
                f"gossip.topology {federation.network.name!r} has changed since this run began (its hash differs); "
                f"restore its file or {self.folder / parts.NETWORK}, or start a new run"
            )


def _is_code(value: object) -> bool:
    """Whether `value` has the form of `user_code.sources`."""
    return isinstance(value, dict) and all(
        isinstance(source, dict) and {"file", "sha256"} <= source.keys() for source in value.values()
    )
