"""The state in which a run ends, and the exception of a failed run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedgen.errors import FedgenError
from fedgen.server.report.phrases import clipped
from fedgen.server.words import counted
from fedgen.tracking.record import Json
from fedgen.tracking.result import Result as Result
from fedgen.tracking.result import State as State

DEGRADING = {
    "skipped": ("round", "skipped"),
    "failed": ("{member} run", "failed"),
    "block_failed": ("block", "failed"),
    "not_finite": ("set of measures", "not finite"),
    "checkpoint_fell_back": ("checkpoint", "damaged"),
}
"""Events that degrade a run which reached its last round, in words; `failed` is the failure of a client."""


class RunFailed(FedgenError):
    """A run that could not continue; `result` describes it, and its folder has everything up to the failure."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.message)
        self.result = result


def verdict(events: Iterable[Mapping[str, Json]], members: str = "clients") -> tuple[State, str]:
    """(state, reason) of a run that has played all its rounds, from its events."""
    reasons: dict[str, list[str]] = {}
    for event in events:
        kind = str(event["event"])
        # A run-level failure (without a round) that was later resumed does not degrade the run.
        if kind in DEGRADING and (kind != "failed" or "round" in event):
            reasons.setdefault(kind, []).append(str(event["reason"]))
    if not reasons:
        return "completed", ""
    causes = [
        f"{counted(len(reasons[event]), noun.format(member=members[:-1]))} {verb} ({clipped(reasons[event][0])})"
        for event, (noun, verb) in DEGRADING.items()
        if event in reasons
    ]
    return "degraded", f"{', '.join(causes)}; see events.jsonl and the report"
