"""Logs how much a rule trusted honest and Byzantine clients in a round."""

from __future__ import annotations

from fedgen.clients.merging import trust_in
from fedgen.contracts import Aggregation, Inbox
from fedgen.server.rounds.session import Session
from fedgen.tracking.record import Json


def note_trust(session: Session, inbox: Inbox) -> dict[str, float]:
    """Log coefficients and diagnostics of the rule, if it ran and has any; returns their summary.

    honest, byzantine: mean coefficients in units of the equal share 1 / n. Scalar diagnostics appear by name.
    """
    aggregation = inbox.outcome
    if aggregation is None or (aggregation.coefficients is None and not aggregation.diagnostics.all):
        return {}
    _log(session, inbox, aggregation)
    byzantine = session.federation.byzantine_among(inbox.clients, session.standing.round)
    values = aggregation.diagnostics.scalars | trust_in(byzantine, aggregation.coefficients)
    return {name: float(value) for name, value in values.items()}


def _log(session: Session, inbox: Inbox, aggregation: Aggregation) -> None:
    values: dict[str, Json] = {name: value.tolist() for name, value in aggregation.diagnostics.all.items()}
    if aggregation.coefficients is not None:
        values["coefficients"] = [float(f"{share:.6g}") for share in aggregation.coefficients.tolist()]
    session.journal.event("aggregated", session.standing.round, clients=inbox.clients.tolist(), **values)
