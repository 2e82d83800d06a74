"""One exchange with a star's clients: train, attack, admit; the rows are aggregated when the method asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce

import torch
from torch import Tensor

from fedgen.admission import AsSent, judge
from fedgen.aggregation.statistics import apply_rule
from fedgen.clients.attacked import view_of
from fedgen.clients.cohort import BlockReport, Members, Trained, Training, train_block, train_root
from fedgen.contracts import Aggregation, Broadcast, Context, Inbox, Rows
from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.own_code import explained
from fedgen.parameters import Tensors
from fedgen.rows import Select, columns_of, total
from fedgen.server.pools.on_demand import OnDemand
from fedgen.server.pools.pool import BlockFailure, Result
from fedgen.server.pools.sliced_rows import SlicedRows
from fedgen.server.rounds.session import Session
from fedgen.server.store.checkpoint import Standing
from fedgen.server.words import round_name


@dataclass(frozen=True)
class Outcome:
    """An exchange after admission: the inbox for the method, and the state to keep if the round is committed.

    rejected: client -> reason. failed: number of clients that sent no update.
    """

    inbox: Inbox
    reports: list[BlockReport]
    rejected: dict[int, str]
    failed: int
    attack_memory: Tensors

    @property
    def counts(self) -> dict[str, int]:
        return {"admitted": len(self.inbox.clients), "rejected": len(self.rejected), "failed": self.failed, "late": 0}

    def commit(self, standing: Standing) -> None:
        """Keep the state of the admitted clients, of the rule (if it ran) and of the attack."""
        for report in self.reports:
            if report.client_state:
                kept = torch.isin(report.clients, self.inbox.clients)
                state = {name: value[kept.to(value.device)] for name, value in report.client_state.items()}
                standing.clients.commit(report.clients[kept], state)
        if self.inbox.outcome is not None:
            standing.rule_memory = self.inbox.outcome.memory
        standing.attack_memory = self.attack_memory


def exchange(session: Session, broadcast: Broadcast, blocks: list[Tensor]) -> Outcome:
    """Send `broadcast` to the clients of `blocks` and gather their updates.

    Raises FedgenError if every client failed.
    """
    federation, standing = session.federation, session.standing
    attack = federation.attack
    f = federation.experiment.aggregation.f
    averaged = broadcast.reduce == "aggregate" and federation.rule.linear
    summed = not attack.omniscient and (averaged or broadcast.reduce == "sum")
    training = Training(standing.round, broadcast, summed)
    keep = 0 if summed else len(columns_of(broadcast.expects.size, federation.slice_width))
    results = list(train(session, train_block, training, blocks, keep))
    failed = note_failures(session, blocks, [_report_of(result) for result in results])
    answers = [result for result in results if not isinstance(result, BlockFailure)]
    reports = [answer.report for answer in answers]
    rejected = {client: reason for report in reports for client, reason in report.rejected.items()}
    clients = torch.cat([report.clients for report in reports])
    weights = torch.cat([report.weights for report in reports])
    # Memories are about training updates; setup exchanges neither see nor change them.
    lasts = broadcast.phase == "train"
    memory, rule_memory = (standing.attack_memory, standing.rule_memory) if lasts else ({}, {})
    if summed:
        totals = [answer.total for answer in answers if answer.total is not None]
        combine = partial(_block_sums, totals, weights, training.plain)
        inbox = Inbox(clients, weights, None, combine, max(0, f - len(rejected)))
        return Outcome(inbox, reports, rejected, failed, standing.attack_memory)

    width = federation.slice_width
    parts = tuple(zip(*(answer.slabs for answer in answers), strict=True))
    rows: Rows = SlicedRows(session.pool, parts, broadcast.expects.size, width)
    root = _root(session, training)
    context = Context(
        reference=broadcast.reference,
        layout=broadcast.expects,
        clients=clients,
        f=max(0, f - len(rejected)),
        memory=rule_memory,
        round=standing.round,
        streams=federation.streams,
        root=root,
    )
    view = view_of(federation, context, weights, memory=memory)
    if attack.omniscient and bool(view.byzantine.any()):
        rows, weights, memory = attack.corrupt(rows, view)
        rows = rows.map(AsSent(broadcast.expects.dtype))
        mask, refused = _admit_again(session, broadcast, rows, clients, weights)
        rejected |= refused
        rows = rows.map(Select(mask))
        clients = clients[mask]
        weights = weights[mask]
    allowed = max(0, f - len(rejected))
    weighing = broadcast.reduce != "sum"
    context = replace(context, clients=clients, f=allowed)
    combine = partial(apply_rule, federation.rule, rows, weights, context) if weighing else partial(_plain_sum, rows)
    inbox = Inbox(clients, weights, rows, combine, allowed)
    return Outcome(inbox, reports, rejected, failed, memory if lasts else standing.attack_memory)


def _report_of(result: Trained | BlockFailure) -> BlockReport | BlockFailure:
    return result if isinstance(result, BlockFailure) else result.report


def train(
    session: Session,
    task: Callable[[Federation, Training, Members], Result],
    training: Training,
    blocks: list[Tensor],
    keep: int = 0,
) -> Iterator[Result | BlockFailure]:
    """One result per block; a block that failed before this run was resumed counts as failed again."""
    standing = session.standing
    reasons = [session.given_up.get((standing.round, number)) for number in range(len(blocks))]
    wanted = [clients for clients, reason in zip(blocks, reasons, strict=True) if reason is None]
    members = OnDemand(wanted, lambda clients: Members(clients, standing.clients.take(clients)))
    computed = session.pool.map(task, members, training, keep)
    return (next(computed) if reason is None else BlockFailure(reason) for reason in reasons)


def _root(session: Session, training: Training) -> Tensor | None:
    """[d]: the server's own update, if the rule trusts one.

    Raises FedgenError if it cannot be computed.
    """
    if session.federation.root is None or training.broadcast.reduce != "aggregate":
        return None
    try:
        (root,) = session.pool.map(train_root, [None], training)
        if not isinstance(root, BlockFailure):
            return root
        reason = root.reason
    except FedgenError:
        raise
    except Exception as error:
        reason = explained(error)
    raise FedgenError(
        f"{round_name(training.round)}: the server could not train on its root samples: {reason}{session.suspects}"
    )


def note_failures(
    session: Session, blocks: list[Tensor], answers: Sequence[BlockReport | BlockFailure], fatal: bool = True
) -> int:
    """Log failed and rejected clients; returns the number of failed ones.

    fatal: raise FedgenError if every client failed.
    """
    journal = session.journal
    round = session.standing.round
    failed: dict[int, str] = {}
    for number, (clients, answer) in enumerate(zip(blocks, answers, strict=True)):
        if isinstance(answer, BlockFailure):
            journal.event("block_failed", round, block=number, clients=clients.tolist(), reason=answer.reason)
            failed.update(dict.fromkeys(clients.tolist(), answer.reason))
            continue
        failed.update(answer.failed)
        for client, reason in answer.failed.items():
            journal.event("failed", round, client=client, reason=reason)
        for client, reason in answer.rejected.items():
            journal.event("rejected", round, client=client, reason=reason)
    if fatal and len(failed) == sum(map(len, blocks)):
        client, reason = next(iter(failed.items()))
        raise FedgenError(
            f"{round_name(round)}: all {len(failed)} {session.members} failed; {session.members[:-1]} "
            f"{client}: {reason}{session.suspects}"
        )
    return len(failed)


def _admit_again(
    session: Session, broadcast: Broadcast, rows: Rows, clients: Tensor, weights: Tensor
) -> tuple[Tensor, dict[int, str]]:
    """(bool[n]: rows admitted after an omniscient attack, {client: reason} of the rejected ones)."""
    limits = session.federation.limits(broadcast.phase)
    admission = judge(rows, weights, broadcast.reference, broadcast.expects, limits)
    refused = {int(clients[row]): reason for row, reason in admission.reasons.items()}
    for client, reason in refused.items():
        session.journal.event("rejected", session.standing.round, client=client, reason=reason)
    return admission.mask, refused


def _block_sums(totals: list[Tensor], weights: Tensor, plain: bool) -> Aggregation:
    """The blocks' float64 sums, added in order; divided by the total weight unless `plain`."""
    whole = reduce(torch.add, totals)
    return Aggregation(whole if plain else (whole / weights.sum()).float())


def _plain_sum(rows: Rows) -> Aggregation:
    return Aggregation(rows.map(total).collect()[0])
