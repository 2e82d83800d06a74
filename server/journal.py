"""The logs of a run, of one line each a round (metrics.jsonl), an event (events.jsonl), an exhibit (exhibits.jsonl)."""

from __future__ import annotations

import json
import math
import os
import shlex
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from fedgen.errors import SettingError
from fedgen.server.disk import writing
from fedgen.server.parts import EVENTS, EXHIBITS, METRICS, RESOLVED


class Journal:
    """Append-only.  A round's events and exhibits are written together with its metrics, or not at all; the file of
    exhibits is made by the first one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, FileIO] = {}
        for name in (METRICS, EVENTS):
            self._open(name)
        if (folder / EXHIBITS).exists():
            self._open(EXHIBITS)
        self._pending: list[dict[str, Any]] = []
        self._exhibits: list[dict[str, Any]] = []

    def _open(self, name: str) -> None:
        with writing(self._folder / name):
            self._files[name] = (self._folder / name).open("ab", buffering=0)

    def event(self, event: str, round: int | None = None, **details: Any) -> None:
        """Note something that happened, in a round or to the run."""
        at = {} if round is None else {"round": round}
        self._pending.append({"event": event, **at, **details})

    def exhibit(self, record: dict[str, Any]) -> None:
        """Keep an exhibit of the round."""
        self._exhibits.append(record)

    def commit(self, record: dict[str, Any]) -> None:
        """A round is over: its events, exhibits and its line of metrics reach the logs."""
        self.flush()
        while self._exhibits:
            if EXHIBITS not in self._files:
                self._open(EXHIBITS)
            self._append(EXHIBITS, self._exhibits.pop(0))
        self._append(METRICS, record)

    def drop_round(self) -> list[dict[str, Any]]:
        """A round was given up: forget what happened in it; returns that."""
        self._exhibits.clear()
        dropped = [event for event in self._pending if "round" in event]
        self._pending = [event for event in self._pending if "round" not in event]
        return dropped

    def flush(self) -> None:
        """Write the events noted so far."""
        while self._pending:
            self._append(EVENTS, self._pending[0])
            del self._pending[0]

    def _append(self, name: str, record: dict[str, Any]) -> None:
        try:
            line = json.dumps(record, allow_nan=False)
        except ValueError:
            line = json.dumps(strict(record), allow_nan=False)
        file, rest = self._files[name], line.encode() + b"\n"
        whole = file.tell()
        with writing(Path(str(file.name))):
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                with suppress(OSError):  # half a line would damage the log
                    file.truncate(whole)
                    file.seek(whole)
                raise

    def sync(self) -> dict[str, int]:
        """Byte offsets of the logs, all of it on disk; 0 of one that was never written."""
        self.flush()
        for file in self._files.values():
            with writing(Path(str(file.name))):
                os.fsync(file.fileno())
        return {EXHIBITS: 0, **{name: file.tell() for name, file in self._files.items()}}

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def strict(value: Any) -> Any:
    """The value as strict JSON can carry it: a number that is not finite becomes a word that `float` reads back.

    >>> strict({"loss": math.nan, "step": -math.inf, "accuracy": None})
    {'loss': 'NaN', 'step': '-Infinity', 'accuracy': None}
    """
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return json.dumps(value) if isinstance(value, float) and not math.isfinite(value) else value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that a crash cut short is left out.

    Raises SettingError that names a damaged line.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise SettingError(f"{path} cannot be read ({error.strerror}); {remedy(path.parent)}") from error
    return [_record(path, number, line) for number, line in enumerate(lines, 1) if line]


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("it should hold one JSON object")
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{path}, line {number}, is damaged ({error}); {remedy(path.parent)}") from error
    return record


def remedy(folder: Path) -> str:
    """What to do about a file of a run that cannot be read."""
    again = shlex.join(["fedgen", "run", str(folder / RESOLVED)])
    return f"restore the file from a copy, or start the run again: `{again}`"


def truncate(folder: Path, offsets: dict[str, int]) -> None:
    """Cut the logs to where a checkpoint found them; one of exhibits that were all made later is removed.

    Raises SettingError, before anything is cut, where a log is missing or ends before that.
    """
    offsets = {EXHIBITS: 0, **offsets}
    sizes = {name: (folder / name).stat().st_size if (folder / name).exists() else 0 for name in offsets}
    for name, offset in offsets.items():
        if sizes[name] < offset:
            what = f"holds {sizes[name]} bytes of {offset}" if (folder / name).exists() else "is missing"
            raise SettingError(f"{folder / name} {what}, which the newest checkpoint goes on from; {remedy(folder)}")
    for name, offset in offsets.items():
        if (folder / name).exists():
            with writing(folder / name):
                os.truncate(folder / name, offset)
    if not offsets[EXHIBITS]:
        with writing(folder / EXHIBITS):
            (folder / EXHIBITS).unlink(missing_ok=True)
