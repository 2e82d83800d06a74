"""Who was rejected or failed, and why: the report's sentence and its two tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from fedgen.server.refusals import by_client, by_reason, refused
from fedgen.server.report_words import clipped
from fedgen.server.run_record import Record, RunFolder
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
    sentence = " ".join(filter(None, [_sentence(events, run.byzantine), _bound(run.events)]))
    return {"sentence": sentence, "reasons": reasons, "clients": clients}


def _bound(events: Sequence[Record]) -> str:
    """In how many rounds more clients lied than the rule was to withstand."""
    broken = [event for event in events if event.get("event") == "bound_broken"]
    if not broken:
        return ""
    most, f = max(int(event.get("liars", 0)) for event in broken), broken[0].get("f")
    return (
        f"In {counted(len(broken), 'round')} more clients lied than aggregation.f = {f}, up to {most}: what the rule "
        "promises does not hold there."
    )


def _sentence(events: Sequence[Record], byzantine: set[int]) -> str:
    if not events:
        return "No update was rejected and no client failed."
    outcomes = Counter(event["event"] for event in events)
    words = []
    if outcomes["rejected"]:
        words.append(f"{counted(outcomes['rejected'], 'update was', 'updates were')} rejected")
    if outcomes["failed"]:
        words.append(f"{counted(outcomes['failed'], 'client run')} failed")
    clients = set(by_client(events)) - {None}
    text = f"{' and '.join(words)}, of {counted(len(clients), 'client')}"
    if byzantine:
        liars, honest = len(clients & byzantine), len(clients - byzantine)
        text += f"; {liars} of the {counted(len(byzantine), 'Byzantine client')} and {honest} honest are among them"
    return text + "."


def _client_list(clients: Iterable[int], most: int = 8) -> str:
    known = sorted(clients)
    text = ", ".join(map(str, known[:most]))
    return text + (f" and {len(known) - most:,} more" if len(known) > most else "")
