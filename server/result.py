"""How a run ended: its state, why, and the numbers it ended with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedgen.errors import FedgenError
from fedgen.server import parts
from fedgen.server.journal import read_lines, strict
from fedgen.server.measures import Metrics
from fedgen.server.report_words import clipped
from fedgen.server.words import counted

State = Literal["completed", "degraded", "failed", "stopped"]
EXIT_CODES: Mapping[State, int] = {"completed": 0, "degraded": 3, "failed": 1, "stopped": 130}
DEGRADING = {
    "skipped": ("round", "skipped"),
    "failed": ("{member} run", "failed"),
    "block_failed": ("block", "failed"),
    "not_finite": ("set of measures", "not finite"),
    "checkpoint_fell_back": ("checkpoint", "damaged"),
}
"""Events after which a run that reached its last round is not simply completed, in words; `failed` is of a client."""


@dataclass(frozen=True)
class Result:
    """How a run ended.

    rounds: how many were played.  metrics: those of the last evaluated round, None where undefined.  sha256: of the
    server's state.  client_sha256: of what clients keep, None where they keep nothing.  seconds: wall time, resumes
    included.  message: why it is so.
    """

    folder: Path
    state: State
    rounds: int
    metrics: Metrics
    sha256: str
    client_sha256: str | None
    seconds: float
    message: str = ""

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.state]

    @property
    def round_numbers(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """int64[records]: the round of every value of `history`; -1 is before training."""
        return np.array([record["round"] for record in self._records], np.int64)

    @property
    def history(self) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """{metric: float64[records]}, NaN too where there is no number; `kinds` says why."""
        return {name: np.array([nan if each is None else float(each) for each in column], np.float64)
                for name, column in self._columns(None).items()}  # fmt: skip

    @property
    def kinds(self) -> dict[str, np.ndarray[Any, np.dtype[np.str_]]]:
        """{metric: str[records]}: "finite", "not finite", "undefined" (nothing to take a mean of), "not evaluated"."""
        return {name: np.array(list(map(_kind, column))) for name, column in self._columns("").items()}

    @property
    def _records(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / parts.METRICS)

    def _columns(self, missing: Any) -> dict[str, list[Any]]:
        """Every metric's values as they were logged, one a record."""
        records = self._records
        names = dict.fromkeys(name for record in records for name in record["metrics"])
        return {name: [record["metrics"].get(name, missing) for record in records] for name in names}

    def to_json(self) -> dict[str, Any]:
        """The object of `--json` and of result.json."""
        fields = {**vars(self), "run": str(self.folder)}
        del fields["folder"]
        return strict({"run": fields.pop("run"), **fields})  # type: ignore[no-any-return]


class RunFailed(FedgenError):
    """A run that could not go on; `result` says how far it came, its folder holds everything up to then."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.message)
        self.result = result


def final_metrics(records: Iterable[Mapping[str, Any]]) -> Metrics:
    """The metrics of the last evaluated round; None for what it had nothing to take a mean of, such as the training
    loss of a tick in which nobody trained."""
    records = list(records)
    last = next((record for record in reversed(records) if record.get("evaluated")), None)
    if last is None:
        return {}
    trained = [record["metrics"] for record in records if 0 <= record["round"] <= last["round"]]
    names = dict.fromkeys([*last["metrics"], *(name for metrics in trained for name in metrics)])
    return {name: None if (value := last["metrics"].get(name)) is None else float(value) for name in names}


def verdict(events: Iterable[Mapping[str, Any]], members: str = "clients") -> tuple[State, str]:
    """How a run ends that has played all its rounds, and why: what happened in it decides."""
    reasons: dict[str, list[str]] = {}
    for event in events:
        # A run that failed, was mended and resumed is none the worse for it.
        if event["event"] in DEGRADING and (event["event"] != "failed" or "round" in event):
            reasons.setdefault(event["event"], []).append(event["reason"])
    if not reasons:
        return "completed", ""
    told = [
        f"{counted(len(reasons[event]), noun.format(member=members[:-1]))} {verb} ({clipped(reasons[event][0])})"
        for event, (noun, verb) in DEGRADING.items()
        if event in reasons
    ]
    return "degraded", f"{', '.join(told)}; events.jsonl and the report say more"


def _kind(value: Any) -> str:
    if value == "":
        return "not evaluated"
    if value is None:
        return "undefined"
    return "finite" if isfinite(float(value)) else "not finite"
