"""The two logs of a run: metrics.jsonl, one line a round, and events.jsonl, one line an event."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from fedgen.server.parts import EVENTS, METRICS


class Journal:
    """Append-only.  A round's events are written together with its metrics, or not at all."""

    def __init__(self, folder: Path) -> None:
        self._files = {name: (folder / name).open("ab") for name in (METRICS, EVENTS)}
        self._pending: list[dict[str, Any]] = []

    def event(self, event: str, round: int | None = None, **details: Any) -> None:
        """Note something that happened, in a round or to the run."""
        at = {} if round is None else {"round": round}
        self._pending.append({"event": event, **at, **details})

    def commit(self, record: dict[str, Any]) -> None:
        """A round is over: its events and its line of metrics reach the logs."""
        self.flush()
        self._append(METRICS, record)

    def drop_round(self) -> list[dict[str, Any]]:
        """A round was given up: forget what happened in it; returns that."""
        dropped = [event for event in self._pending if "round" in event]
        self._pending = [event for event in self._pending if "round" not in event]
        return dropped

    def flush(self) -> None:
        """Write the events noted so far."""
        for event in self._pending:
            self._append(EVENTS, event)
        self._pending.clear()

    def _append(self, name: str, record: dict[str, Any]) -> None:
        try:
            line = json.dumps(record, allow_nan=False)
        except ValueError:
            line = json.dumps(strict(record), allow_nan=False)
        self._files[name].write(line.encode() + b"\n")
        self._files[name].flush()

    def sync(self) -> dict[str, int]:
        """Byte offsets of both logs, all of it on disk."""
        self.flush()
        for file in self._files.values():
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def close(self) -> None:
        self.flush()
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
    """The records of a log; a last line that a crash cut short is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1] if line]


def truncate(folder: Path, offsets: dict[str, int]) -> None:
    """Cut both logs to where a checkpoint found them."""
    for name, offset in offsets.items():
        if (folder / name).exists():
            os.truncate(folder / name, offset)
