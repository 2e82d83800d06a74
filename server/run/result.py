"""What a run's events make of its end, and how a failure reaches who called it."""

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
"""Events after which a run that reached its last round is not simply completed, in words; `failed` is of a client."""


class RunFailed(FedgenError):
    """A run that could not go on; `result` says how far it came, its folder holds everything up to then."""

    def __init__(self, result: Result) -> None:
        super().__init__(result.message)
        self.result = result


def verdict(events: Iterable[Mapping[str, Json]], members: str = "clients") -> tuple[State, str]:
    """How a run ends that has played all its rounds, and why: what happened in it decides."""
    reasons: dict[str, list[str]] = {}
    for event in events:
        kind = str(event["event"])
        # A failure of the whole run that was resumed later does not degrade it.
        if kind in DEGRADING and (kind != "failed" or "round" in event):
            reasons.setdefault(kind, []).append(str(event["reason"]))
    if not reasons:
        return "completed", ""
    told = [
        f"{counted(len(reasons[event]), noun.format(member=members[:-1]))} {verb} ({clipped(reasons[event][0])})"
        for event, (noun, verb) in DEGRADING.items()
        if event in reasons
    ]
    return "degraded", f"{', '.join(told)}; events.jsonl and the report say more"
