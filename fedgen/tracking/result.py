"""How a run ended: its state, why, and the numbers it ended with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, nan
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedgen.tracking.record import Json, Metrics, RoundRecord, strict

if TYPE_CHECKING:
    from numpy.typing import NDArray

State = Literal["completed", "degraded", "failed", "stopped"]
EXIT_CODES: Mapping[State, int] = {"completed": 0, "degraded": 3, "failed": 1, "stopped": 130}


@dataclass(frozen=True)
class Result:
    """How a run ended.

    rounds: how many were played.  metrics: those of the last evaluated round, None where undefined.  sha256: of the
    server's state.  client_sha256: of what clients keep, None where they keep nothing.  seconds: wall time, resumes
    included.  message: why it is so.  records: every round.  report: its file, None where none was written.
    """

    folder: Path
    state: State
    rounds: int
    metrics: Metrics
    sha256: str
    client_sha256: str | None
    seconds: float
    message: str = ""
    records: tuple[RoundRecord, ...] = field(default=(), repr=False)
    report: Path | None = None

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.state]

    @property
    def round_numbers(self) -> NDArray[np.int64]:
        """int64[records]: the round of every value of `history`; -1 is before training."""
        return np.array([record.round for record in self.records], np.int64)

    @property
    def history(self) -> dict[str, NDArray[np.float64]]:
        """{metric: float64[records]}, NaN too where there is no number; `kinds` says why."""
        rows = [record.metrics for record in self.records]
        return {name: np.array([_value(row.get(name)) for row in rows], np.float64) for name in self._names()}

    @property
    def kinds(self) -> dict[str, NDArray[np.str_]]:
        """{metric: str[records]}: "finite", "not finite", "undefined" (nothing to take a mean of), "not evaluated"."""
        rows = [record.metrics for record in self.records]
        return {name: np.array([_kind(row, name) for row in rows]) for name in self._names()}

    def _names(self) -> list[str]:
        return list(dict.fromkeys(name for record in self.records for name in record.metrics))

    def to_json(self) -> dict[str, Json]:
        """The object of `--json` and of result.json."""
        return {
            "run": str(self.folder),
            "state": self.state,
            "rounds": self.rounds,
            "metrics": strict(self.metrics),
            "sha256": self.sha256,
            "client_sha256": self.client_sha256,
            "seconds": self.seconds,
            "message": self.message,
        }


def _value(number: float | None) -> float:
    return nan if number is None else number


def _kind(metrics: Mapping[str, float | None], name: str) -> str:
    if name not in metrics:
        return "not evaluated"
    value = metrics[name]
    if value is None:
        return "undefined"
    return "finite" if isfinite(value) else "not finite"
