"""The logs of a run, one line per round (metrics.jsonl), event (events.jsonl) or exhibit (exhibits.jsonl)."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from fedgen.errors import SettingError
from fedgen.server.store.disk import writing
from fedgen.server.store.parts import EVENTS, EXHIBITS, METRICS, RESOLVED
from fedgen.tracking.record import Json, RoundRecord, strict

Line = dict[str, Any]
"""A line of a log, parsed."""


@dataclass(frozen=True)
class Event:
    """An event of a round or, if round is None, of the run. details: for example the reason and the clients."""

    event: str
    round: int | None = None
    details: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        at: dict[str, Json] = {} if self.round is None else {"round": self.round}
        return {"event": self.event, **at, **self.details}


class Journal:
    """Appends to the logs. Events and exhibits of a round are written with its metrics or not at all.

    exhibits.jsonl is created by the first exhibit.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, FileIO] = {}
        for name in (METRICS, EVENTS):
            self._open(name)
        if (folder / EXHIBITS).exists():
            self._open(EXHIBITS)
        self._pending: list[Event] = []
        self._exhibits: list[Mapping[str, object]] = []

    def _open(self, name: str) -> None:
        with writing(self._folder / name):
            self._files[name] = (self._folder / name).open("ab", buffering=0)

    def event(self, event: str, round: int | None = None, **details: Json) -> None:
        """Add an event of a round or of the run."""
        self.note(Event(event, round, details))

    def note(self, event: Event) -> None:
        self._pending.append(event)

    def exhibit(self, record: Mapping[str, object]) -> None:
        """Keep an exhibit of the round."""
        self._exhibits.append(record)

    def commit(self, record: RoundRecord) -> None:
        """Write the events, exhibits and metrics of a finished round."""
        self.flush()
        while self._exhibits:
            if EXHIBITS not in self._files:
                self._open(EXHIBITS)
            self._append(EXHIBITS, self._exhibits.pop(0))
        self._append(METRICS, record.to_json())

    def drop_round(self) -> list[Event]:
        """Drop the events and exhibits of an unfinished round; returns the events."""
        self._exhibits.clear()
        dropped = [event for event in self._pending if event.round is not None]
        self._pending = [event for event in self._pending if event.round is None]
        return dropped

    def flush(self) -> None:
        """Write the events so far."""
        while self._pending:
            self._append(EVENTS, self._pending[0].to_json())
            del self._pending[0]

    def _append(self, name: str, record: Mapping[str, object]) -> None:
        try:
            line = json.dumps(record, allow_nan=False)
        except ValueError:
            line = json.dumps(strict(record), allow_nan=False)
        file = self._files[name]
        rest = line.encode() + b"\n"
        whole = file.tell()
        with writing(Path(str(file.name))):
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError:
                with suppress(OSError):  # a partial line would damage the log
                    file.truncate(whole)
                    file.seek(whole)
                raise

    def sync(self) -> dict[str, int]:
        """Flush the logs to disk; returns their byte offsets, 0 for a log without a file."""
        self.flush()
        for file in self._files.values():
            with writing(Path(str(file.name))):
                os.fsync(file.fileno())
        return {EXHIBITS: 0, **{name: file.tell() for name, file in self._files.items()}}

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def read_lines(path: Path) -> list[Line]:
    """The records of a log, without a last line that a crash has cut short.

    Raises SettingError that names a damaged line.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise SettingError(f"{path} cannot be read ({error.strerror}); {remedy(path.parent)}") from error
    return [_record(path, number, line) for number, line in enumerate(lines, 1) if line]


def read_rounds(folder: Path) -> list[RoundRecord]:
    """The round records of a run folder.

    Raises SettingError that names a line which is damaged or has another version.
    """
    path = folder / METRICS
    rounds = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            rounds.append(RoundRecord.from_json(line))
        except ValueError as error:
            raise SettingError(f"{path}, line {number}, cannot be read ({error}); {remedy(folder)}") from error
    return rounds


def _record(path: Path, number: int, line: bytes) -> Line:
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("it should hold one JSON object")
    except (ValueError, RecursionError) as error:
        raise SettingError(f"{path}, line {number}, is damaged ({error}); {remedy(path.parent)}") from error
    return record


def remedy(folder: Path) -> str:
    """Advice for a file of a run that cannot be read."""
    again = shlex.join(["fedgen", "run", str(folder / RESOLVED)])
    return f"restore the file from a copy, or start the run again: `{again}`"


def truncate(folder: Path, offsets: dict[str, int]) -> None:
    """Cut the logs to the offsets of a checkpoint; exhibits.jsonl is removed if nothing is left of it.

    Raises SettingError, before anything is cut, if a log is missing or shorter than its offset.
    """
    offsets = {EXHIBITS: 0, **offsets}
    sizes = {name: (folder / name).stat().st_size if (folder / name).exists() else 0 for name in offsets}
    for name, offset in offsets.items():
        if sizes[name] < offset:
            what = f"holds {sizes[name]} bytes of {offset}" if (folder / name).exists() else "is missing"
            raise SettingError(f"{folder / name} {what}, which the newest checkpoint continues; {remedy(folder)}")
    for name, offset in offsets.items():
        if (folder / name).exists():
            with writing(folder / name):
                os.truncate(folder / name, offset)
    if not offsets[EXHIBITS]:
        with writing(folder / EXHIBITS):
            (folder / EXHIBITS).unlink(missing_ok=True)
