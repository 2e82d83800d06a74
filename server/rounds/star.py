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
    """A server and its clients; the server aggregates their updates."""

    def check(self, federation: Federation) -> None:
        super().check(federation)
        if federation.rule.sends_change:
            raise SettingError(
                'aggregation.wrappers "delta_sum" requires federation.mode = "gossip"; in a star raise '
                "federation.server_optimizer.lr instead"
            )
        experiment = federation.experiment
        f = experiment.aggregation.f
        cohort = experiment.cohort_size
        needed = federation.rule.minimum(f)
        if needed > cohort:
            around = "".join(f" in {wrapper.name!r}" for wrapper in experiment.aggregation.wrappers)
            raise SettingError(
                f"aggregation.rule = {experiment.aggregation.rule.name!r}{around} needs at least {needed} updates to "
                f"tolerate aggregation.f = {f}, but federation.cohort gives {cohort}; lower aggregation.f, change the "
                "parameters of the rule or raise the cohort"
            )

    def initial_state(self, federation: Federation) -> Tensors:
        return federation.method.initial_state(0)

    def final_model(self, federation: Federation, state: Tensors, round: int) -> Tensor:
        return state["model"]

    def play_round(self, session: Session, evaluate: bool) -> RoundRecord:
        federation = session.federation
        standing = session.standing
        clock = Stopwatch()
        method = federation.method
        round = standing.round
        # 1. The method's broadcast.
        broadcast = method.broadcast(standing.state, round)
        # 2. The cohort, in blocks.
        blocks = federation.cohort(round, broadcast.everyone, 0 if broadcast.phase == "train" else row_bytes(broadcast))
        note_redrawn(session, blocks)
        _note_bound(session, broadcast, blocks)
        # 3. Clients train; attacks and admission act on their updates.
        outcome = exchange(session, broadcast, blocks)
        session.journal.event("admitted", round, clients=outcome.inbox.clients.tolist())
        clock.lap("train")
        # 4. The server aggregates; with too few updates the round is skipped and no state changes.
        skipped = _too_few(session, broadcast, outcome)
        state = standing.state
        if skipped:
            session.journal.event("skipped", round, reason=skipped)
        else:
            updated = method.server_update(state, outcome.inbox, round)
            state = {name: canonical(value) for name, value in updated.items()}
        trust = note_trust(session, outcome.inbox)
        clock.lap("aggregate")
        # 5. Evaluation on test and validation samples.
        held_back = session.evaluate(state) if evaluate else {}
        note_not_finite(session, held_back)
        own = own_metrics(session, outcome.reports, weighted=True)
        clock.lap("evaluate")
        # 6. Commit, now that nothing can interrupt the round any more.
        if not skipped:
            outcome.commit(standing)
        standing.state = state
        standing.round = round + 1
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
    """Log the Byzantine clients of this round if they are drawn anew; else they are in partition.json."""
    federation = session.federation
    round = session.standing.round
    if federation.experiment.byzantine.redraw:
        cohort = torch.cat(blocks)
        session.journal.event(
            "byzantine", round, clients=cohort[federation.byzantine_among(cohort, round)].sort().values.tolist()
        )


def _note_bound(session: Session, broadcast: Broadcast, blocks: list[Tensor]) -> None:
    """Log a round with more than f Byzantine clients, which only a simulation can know."""
    federation = session.federation
    round = session.standing.round
    if broadcast.reduce != "aggregate" or federation.rule.linear:
        return
    byzantine = int(federation.byzantine_among(torch.cat(blocks), round).sum())
    f = federation.experiment.aggregation.f
    if byzantine > f and federation.experiment.byzantine.attack.name != "none":
        reason = f"{byzantine} of {sum(map(len, blocks))} clients are Byzantine, aggregation.f = {f}"
        session.journal.event("bound_broken", round, reason=reason, byzantine=byzantine, f=f)


def _too_few(session: Session, broadcast: Broadcast, outcome: Outcome) -> str:
    inbox = outcome.inbox
    needed = max(1, session.federation.rule.minimum(inbox.f) if broadcast.reduce == "aggregate" else 1)
    if len(inbox.clients) >= needed:
        return ""
    f = session.federation.experiment.aggregation.f
    lost = len(outcome.rejected)
    left = f"f = {inbox.f}" + (f" (aggregation.f = {f} less {lost} rejected)" if lost else "")
    short = f"{len(inbox.clients)} updates were admitted, aggregation needs {needed} to tolerate {left}"
    rejected = torch.tensor(list(outcome.rejected), dtype=torch.int64)
    byzantine = session.federation.byzantine_among(rejected, session.standing.round).tolist()
    honest = next(
        (reason for reason, attacks in zip(outcome.rejected.values(), byzantine, strict=True) if not attacks), ""
    )
    if not honest:
        return short
    return f"{short}; honest updates were rejected ({honest}): lower training.optimizer.lr or set training.clip_norm"


def _traffic(broadcast: Broadcast, receivers: int, newcomers: int, outcome: Outcome) -> Traffic:
    """Payload bytes in a real network: a broadcast down and a row up per client; lasting tensors once per newcomer."""
    sizes = {name: tensor.nbytes for name, tensor in broadcast.tensors.items()}
    lasting = sum(sizes.pop(name) for name in broadcast.lasting)
    down = (broadcast.start.nbytes + sum(sizes.values())) * receivers + lasting * newcomers
    answered = outcome.counts["admitted"] + outcome.counts["rejected"]
    return Traffic(up=row_bytes(broadcast) * answered, down=down)


def row_bytes(broadcast: Broadcast) -> int:
    return broadcast.expects.size * broadcast.expects.dtype.itemsize
