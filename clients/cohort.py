"""One block of simulated clients, from broadcast to admitted rows.

Pure: result = f(federation, training, members), so any worker may compute any block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedgen.admission import as_sent, check_update, judge
from fedgen.clients.attacked import view_of
from fedgen.contracts import Block, Broadcast, Context, Update
from fedgen.device import on_host
from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.leaves import Held
from fedgen.own_code import explained
from fedgen.parameters import Layout, Tensors
from fedgen.rows import LocalRows, columns_of
from fedgen.wire.message import Malformed, decode, encode


@dataclass(frozen=True)
class Training:
    """One exchange, as all its blocks see it.

    summed: a block returns one sum instead of rows, weighted unless the sum itself is wanted.
    """

    round: int
    broadcast: Broadcast
    summed: bool = False

    @property
    def plain(self) -> bool:
        """Whether rows are added as they are, not averaged."""
        return self.broadcast.reduce == "sum"


@dataclass(frozen=True)
class Members:
    """A block of clients[n], and what they keep: client_state {name: [n, ...]}."""

    clients: Tensor
    client_state: Tensors


@dataclass(frozen=True)
class BlockReport:
    """What a block tells the coordinator: whose updates arrived, with weights and state, and why others' did not.

    rejected, failed: client -> why it was turned away, or sent nothing.
    """

    clients: Tensor
    weights: Tensor
    rejected: dict[int, str]
    failed: dict[int, str]
    client_state: Tensors
    metrics: Tensors


@dataclass(frozen=True)
class Trained:
    """What a block of a star's clients sends: slices of its admitted rows, or where the exchange is summed
    total float64[d]: weights @ rows, or their plain sum."""

    report: BlockReport
    slabs: tuple[Held[Tensor], ...] = ()
    total: Tensor | None = None


def train_block(federation: Federation, training: Training, members: Members) -> Trained:
    """One block trains; attacks of single clients and admission act."""
    broadcast, expects = training.broadcast, training.broadcast.expects
    block = federation.block(members.clients, broadcast.start, members.client_state, training.round)
    update, block, failed = surviving(federation, broadcast, block)
    sent, weights = sent_by(federation, training, expects, block, update, broadcast.reference)
    sent, weights, malformed = arrived(federation, expects, training.round, block.clients, sent, weights)

    if training.summed:
        sent = sent.double()
    rows, limits = LocalRows(sent, federation.slice_width), federation.limits(broadcast.phase)
    admission = judge(rows, weights, broadcast.reference, expects, limits).without(malformed)

    def admitted(values: Tensor) -> Tensor:
        return values[admission.mask.to(values.device)] if admission.reasons else values

    report = BlockReport(
        clients=admitted(block.clients),
        weights=admitted(weights),
        rejected={int(block.clients[row]): reason for row, reason in admission.reasons.items()},
        failed=failed,
        client_state={name: admitted(value) for name, value in update.client_state.items()},
        metrics={name: admitted(value) for name, value in update.metrics.items()},
    )
    sent = admitted(sent)
    if training.summed:
        shares = torch.ones_like(report.weights) if training.plain else report.weights
        return Trained(report, total=shares.to(sent.device) @ sent)
    columns = columns_of(expects.size, federation.slice_width)
    return Trained(report, tuple(Held(sent[:, each].contiguous()) for each in columns))


def train_root(federation: Federation, training: Training, item: None) -> Tensor:
    """[d]: the server's own row, from its root samples; it keeps no state, and nobody attacks it."""
    broadcast = training.broadcast
    block = federation.block(federation.server, broadcast.start, {}, training.round)
    update = federation.method.client_update(broadcast, block)
    check_update(update, broadcast.expects, 1)
    return as_sent(update.rows, broadcast.expects.dtype)[0]


def sent_by(
    federation: Federation,
    training: Training,
    layout: Layout,
    block: Block,
    update: Update,
    reference: Tensor,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows and weights as they leave the clients: a row-wise attack acts here, an omniscient one on the whole round, an
    attack on single inboxes where they are merged.

    layout: of the rows.  start[n, d]: what training began from, where rows are models.
    """
    attack, liars = federation.attack, federation.liars(block.clients, training.round)
    aggregation = federation.experiment.aggregation
    weights = torch.ones_like(update.weights) if aggregation.weights == "equal" else update.weights
    if attack.omniscient or federation.lies_to_each(training.broadcast.phase) or not liars.any():
        return update.rows, weights
    context = Context(reference, layout, block.clients, aggregation.f, round=training.round, streams=federation.streams)
    view = view_of(federation, context, weights, start=start)
    rows, weights, _ = attack.corrupt(LocalRows(update.rows, federation.slice_width), view)
    return as_sent(rows.collect(), layout.dtype), weights


def arrived(
    federation: Federation, expects: Layout, round: int, clients: Tensor, rows: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, dict[int, str]]:
    """Rows and weights as they arrive, and why a message does not, by position.

    Only where liars forge messages does it matter that they are bytes; then every row becomes one.
    """
    forge, liars = federation.attack.forger(), federation.liars(clients, round)
    if forge is None or not liars.any():
        return rows, weights, {}
    rows, weights, reasons = rows.clone(), weights.clone(), {}
    for position, client in enumerate(clients.tolist()):
        message = encode(rows[position], float(weights[position]), expects, round, client)
        if liars[position]:
            message = forge(message)
        try:
            rows[position], weights[position] = decode(message, expects, round, client)
        except Malformed as error:
            reasons[position] = str(error)
    return rows, weights, reasons


def surviving(federation: Federation, broadcast: Broadcast, block: Block) -> tuple[Update, Block, dict[int, str]]:
    """The block's update; after an exception, of the clients that train alone without one, and the others' reasons."""
    try:
        return _update(federation, broadcast, block), block, {}
    except FedgenError:
        raise
    except Exception:
        return _one_by_one(federation, broadcast, block)


def _one_by_one(federation: Federation, broadcast: Broadcast, block: Block) -> tuple[Update, Block, dict[int, str]]:
    updates, alive, failed = [], [], {}
    for position, client in enumerate(block.clients.tolist()):
        alone = _part(block, torch.tensor([position]))
        try:
            updates.append(_update(federation, broadcast, alone))
            alive.append(position)
        except FedgenError:
            raise
        except Exception as error:
            failed[client] = explained(error)
    expects = broadcast.expects
    none = torch.empty(0, expects.size, dtype=expects.dtype, device=block.start.device)
    nothing = Update(none, torch.empty(0, dtype=torch.float64))
    return _joined(updates) if updates else nothing, _part(block, torch.tensor(alive, dtype=torch.int64)), failed


def _update(federation: Federation, broadcast: Broadcast, block: Block) -> Update:
    liars = federation.liars(block.clients, block.round)
    poisoned = federation.attack.poison(block, liars.to(block.start.device)) if liars.any() else block
    update = federation.method.client_update(broadcast, poisoned)
    check_update(update, broadcast.expects, len(block.clients))
    metrics = {name: on_host(value) for name, value in update.metrics.items()}
    return replace(update, weights=on_host(update.weights), metrics=metrics)


def _part(block: Block, positions: Tensor) -> Block:
    state = {name: value[positions] for name, value in block.client_state.items()}
    return replace(
        block,
        clients=block.clients[positions],
        start=block.start[positions],
        samples=replace(block.samples, index=block.samples.index[positions]),
        counts=block.counts[positions],
        client_state=state,
    )


def _joined(updates: Sequence[Update]) -> Update:
    return Update(
        torch.cat([update.rows for update in updates]),
        torch.cat([update.weights for update in updates]),
        {name: torch.cat([update.client_state[name] for update in updates]) for name in updates[0].client_state},
        {name: torch.cat([update.metrics[name] for update in updates]) for name in updates[0].metrics},
    )


@dataclass(frozen=True)
class Part:
    """Samples of one of the held-back sets, by its number."""

    number: int
    samples: slice


def evaluate_state(federation: Federation, state: Tensors, part: Part) -> dict[str, tuple[float, int]]:
    """Mean metrics and number of samples of one part of a held-back set: {metric: (mean, samples)}."""
    held = federation.evaluations[part.number]
    x, y = held.x[part.samples], held.y[part.samples]
    metrics = federation.method.evaluate(state, x, y)
    return {name: (float(value.mean()), len(y)) for name, value in held.named(metrics).items()}
