"""Rejected and failed clients with reasons: the report's sentence and its two tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from fedgen.server.report.phrases import clipped
from fedgen.server.report.refusals import by_client, by_reason, refused
from fedgen.server.report.run_record import Record, RunFolder
from fedgen.server.words import counted, human_count


def refusal_tables(run: RunFolder) -> Record:
    """The sentence, and the rows by reason and by client."""
    events = refused(run.events)
    reasons = [
        (outcome, clipped(group.words), human_count(group.count), _client_list(group.clients), group.when)
        for (outcome, _), group in by_reason(events).items()
    ]
    clients = [
        ("not named" if client is None else client, client in run.byzantine, human_count(group.count),
         clipped(group.words), group.when)
        for client, group in by_client(events).items()
    ]  # fmt: skip
    return {"sentence": _sentence(events, run.byzantine, run.members[:-1]), "reasons": reasons, "clients": clients}


def _sentence(events: Sequence[Record], byzantine: set[int], member: str) -> str:
    if not events:
        return f"No update was rejected and no {member} failed."
    outcomes = Counter(event["event"] for event in events)
    words = []
    if outcomes["rejected"]:
        words.append(f"{counted(outcomes['rejected'], 'update was', 'updates were')} rejected")
    if outcomes["failed"]:
        words.append(f"{counted(outcomes['failed'], f'{member} run')} failed")
    clients = set(by_client(events)) - {None}
    text = f"{' and '.join(words)}, of {counted(len(clients), member)}"
    if byzantine:
        attacking, honest = len(clients & byzantine), len(clients - byzantine)
        text += (
            f"; {attacking} of the {counted(len(byzantine), f'Byzantine {member}')} and {honest} honest are among them"
        )
    return text + "."


def _client_list(clients: Iterable[int], most: int = 8) -> str:
    known = sorted(clients)
    text = ", ".join(map(str, known[:most]))
    return text + (f" and {len(known) - most:,} more" if len(known) > most else "")
