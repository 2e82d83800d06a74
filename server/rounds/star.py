"""The star: one server, a cohort of clients a round."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgen.contracts import Broadcast
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.parameters import Tensors, canonical
from fedgen.server.rounds.exchange import Outcome, exchange
from fedgen.server.rounds.loop import Loop
from fedgen.server.rounds.measures import note_not_finite, own_metrics
from fedgen.server.rounds.session import Session, Stopwatch
from fedgen.server.rounds.trust import note_trust
from fedgen.tracking.record import Outcomes, RoundRecord, Traffic


class Star(Loop):
    """A server and its clients."""

    def check(self, federation: Federation) -> None:
        super().check(federation)
        if federation.rule.sends_change:
            raise SettingError(
                'aggregation.wrappers "delta_sum" is of gossip, as a server adds to one model; set '
                'federation.mode = "gossip", or raise the lr of federation.server_optimizer'
            )
        experiment = federation.experiment
        f, cohort = experiment.aggregation.f, experiment.cohort_size
        needed = federation.rule.minimum(f)
        if needed > cohort:
            around = "".join(f" in {wrapper.name!r}" for wrapper in experiment.aggregation.wrappers)
            raise SettingError(
                f"aggregation.rule = {experiment.aggregation.rule.name!r}{around} needs at least {needed} updates to "
                f"withstand aggregation.f = {f}, and federation.cohort gives {cohort}; lower aggregation.f, change the "
                "parameters of the rule or raise the cohort"
            )

    def initial_state(self, federation: Federation) -> Tensors:
        return federation.method.initial_state(0)

    def final_model(self, federation: Federation, state: Tensors, round: int) -> Tensor:
        return state["model"]

    def play_round(self, session: Session, evaluate: bool) -> RoundRecord:
        federation, standing, clock = session.federation, session.standing, Stopwatch()
        method, round = federation.method, standing.round
        # 1. What participants receive.
        broadcast = method.broadcast(standing.state, round)
        # 2. Who takes part.
        blocks = federation.cohort(round, broadcast.everyone, 0 if broadcast.phase == "train" else row_bytes(broadcast))
        note_redrawn(session, blocks)
        _note_bound(session, broadcast, blocks)
        # 3. They train; attacks and admission act.
        outcome = exchange(session, broadcast, blocks)
        session.journal.event("admitted", round, clients=outcome.inbox.clients.tolist())
        clock.lap("train")
        # 4. The server half, or too few updates: the round is skipped and every state kept.
        skipped, state = _too_few(session, broadcast, outcome), standing.state
        if skipped:
            session.journal.event("skipped", round, reason=skipped)
        else:
            updated = method.server_update(state, outcome.inbox, round)
            state = {name: canonical(value) for name, value in updated.items()}
        trust = note_trust(session, outcome.inbox)
        clock.lap("aggregate")
        # 5. Held-back samples.
        held_back = session.evaluate(state) if evaluate else {}
        note_not_finite(session, held_back)
        own = own_metrics(session, outcome.reports, weighted=True)
        clock.lap("evaluate")
        # 6. Only now, when nothing can interrupt it any more, the round counts.
        if not skipped:
            outcome.commit(standing)
        standing.state, standing.round = state, round + 1
        return RoundRecord(
            round=round,
            evaluated=evaluate,
            metrics={**held_back, **own},
            clients=Outcomes(**outcome.counts),
            skipped=bool(skipped),
            bytes=_traffic(broadcast, sum(map(len, blocks)), federation.facts.clients if round == 0 else 0, outcome),
            seconds=clock.laps,
            aggregation=trust,
        )


def note_redrawn(session: Session, blocks: list[Tensor]) -> None:
    """Log who lies in this round, where that is not said once for all in partition.json."""
    federation, round = session.federation, session.standing.round
    if federation.experiment.byzantine.redraw:
        cohort = torch.cat(blocks)
        session.journal.event(
            "byzantine", round, clients=cohort[federation.liars(cohort, round)].sort().values.tolist()
        )


def _note_bound(session: Session, broadcast: Broadcast, blocks: list[Tensor]) -> None:
    """Log that more clients of this round lie than the rule is to withstand, which only a simulation knows."""
    federation, round = session.federation, session.standing.round
    if broadcast.reduce != "aggregate" or federation.rule.linear:
        return
    liars, f = int(federation.liars(torch.cat(blocks), round).sum()), federation.experiment.aggregation.f
    if liars > f and federation.experiment.byzantine.attack.name != "none":
        reason = f"{liars} of {sum(map(len, blocks))} clients lie, aggregation.f = {f}"
        session.journal.event("bound_broken", round, reason=reason, liars=liars, f=f)


def _too_few(session: Session, broadcast: Broadcast, outcome: Outcome) -> str:
    inbox = outcome.inbox
    needed = max(1, session.federation.rule.minimum(inbox.f) if broadcast.reduce == "aggregate" else 1)
    if len(inbox.clients) >= needed:
        return ""
    f, lost = session.federation.experiment.aggregation.f, len(outcome.rejected)
    left = f"f = {inbox.f}" + (f", what {lost} rejected of aggregation.f = {f} leave" if lost else "")
    short = f"{len(inbox.clients)} updates were admitted, aggregation needs {needed} to withstand {left}"
    rejected = torch.tensor(list(outcome.rejected), dtype=torch.int64)
    liars = session.federation.liars(rejected, session.standing.round).tolist()
    honest = next((reason for reason, lies in zip(outcome.rejected.values(), liars, strict=True) if not lies), "")
    if not honest:
        return short
    return f"{short}; honest ones were rejected ({honest}): lower training.optimizer.lr or set training.clip_norm"


def _traffic(broadcast: Broadcast, receivers: int, newcomers: int, outcome: Outcome) -> Traffic:
    """Payload bytes that a real network would carry: one broadcast a client, what lasts once to every newcomer, one row
    from each that answered."""
    sizes = {name: tensor.nbytes for name, tensor in broadcast.tensors.items()}
    lasting = sum(sizes.pop(name) for name in broadcast.lasting)
    down = (broadcast.start.nbytes + sum(sizes.values())) * receivers + lasting * newcomers
    answered = outcome.counts["admitted"] + outcome.counts["rejected"]
    return Traffic(up=row_bytes(broadcast) * answered, down=down)


def row_bytes(broadcast: Broadcast) -> int:
    return broadcast.expects.size * broadcast.expects.dtype.itemsize
