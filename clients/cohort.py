"""One block of a star's clients, from broadcast to admitted rows.

The tasks are pure: result = f(federation, training, members). Any worker can compute any block.
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
    """The inputs of an exchange that all its blocks share.

    summed: a block returns the sum of its rows instead of the rows. The sum is weighted unless `plain`.
    """

    round: int
    broadcast: Broadcast
    summed: bool = False

    @property
    def plain(self) -> bool:
        """Whether rows are added without weights."""
        return self.broadcast.reduce == "sum"


@dataclass(frozen=True)
class Members:
    """A block of clients[n] and their state: client_state {name: [n, ...]}."""

    clients: Tensor
    client_state: Tensors


@dataclass(frozen=True)
class BlockReport:
    """The result of a block without its rows: admitted clients with weights, state and metrics.

    rejected, failed: client -> reason why its update was rejected, or why it sent none.
    """

    clients: Tensor
    weights: Tensor
    rejected: dict[int, str]
    failed: dict[int, str]
    client_state: Tensors
    metrics: Tensors


@dataclass(frozen=True)
class Trained:
    """The result of a block of a star's clients.

    slabs: column slices of the admitted rows. total float64[d], in a summed exchange: their weighted or plain sum.
    """

    report: BlockReport
    slabs: tuple[Held[Tensor], ...] = ()
    total: Tensor | None = None


def train_block(federation: Federation, training: Training, members: Members) -> Trained:
    """Train one block, apply row-wise attacks, and admit the rows."""
    broadcast = training.broadcast
    expects = broadcast.expects
    block = federation.block(members.clients, broadcast.start, members.client_state, training.round)
    update, block, failed = surviving(federation, broadcast, block)
    sent, weights = sent_by(federation, training, expects, block, update, broadcast.reference)
    sent, weights, malformed = arrived(federation, expects, training.round, block.clients, sent, weights)

    if training.summed:
        sent = sent.double()
    rows = LocalRows(sent, federation.slice_width)
    limits = federation.limits(broadcast.phase)
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
    return Trained(report, tuple(Held(sent[:, part].contiguous()) for part in columns))


def train_root(federation: Federation, training: Training, item: None) -> Tensor:
    """[d]: the server's own update, trained on its root samples; it has no state and is never attacked."""
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
    """Rows and weights as the clients send them.

    Row-wise attacks are applied here. Omniscient attacks are applied to the whole round, inbox attacks at the merge.
    layout: of the rows. start[n, d]: models before training, if rows are models.
    """
    attack = federation.attack
    byzantine = federation.byzantine_among(block.clients, training.round)
    aggregation = federation.experiment.aggregation
    weights = torch.ones_like(update.weights) if aggregation.weights == "equal" else update.weights
    if attack.omniscient or federation.attacks_inboxes(training.broadcast.phase) or not byzantine.any():
        return update.rows, weights
    context = Context(reference, layout, block.clients, aggregation.f, round=training.round, streams=federation.streams)
    view = view_of(federation, context, weights, start=start)
    rows, weights, _ = attack.corrupt(LocalRows(update.rows, federation.slice_width), view)
    return as_sent(rows.collect(), layout.dtype), weights


def arrived(
    federation: Federation, expects: Layout, round: int, clients: Tensor, rows: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, dict[int, str]]:
    """(rows, weights, {position: why the message could not be decoded}).

    Rows are encoded as messages only if Byzantine clients forge message bytes.
    """
    forge = federation.attack.forger()
    byzantine = federation.byzantine_among(clients, round)
    if forge is None or not byzantine.any():
        return rows, weights, {}
    rows = rows.clone()
    weights = weights.clone()
    reasons = {}
    for position, client in enumerate(clients.tolist()):
        message = encode(rows[position], float(weights[position]), expects, round, client)
        if byzantine[position]:
            message = forge(message)
        try:
            rows[position], weights[position] = decode(message, expects, round, client)
        except Malformed as error:
            reasons[position] = str(error)
    return rows, weights, reasons


def surviving(federation: Federation, broadcast: Broadcast, block: Block) -> tuple[Update, Block, dict[int, str]]:
    """(update, block, {client: reason}) of the clients that trained.

    If the block raises an exception, its clients train one by one, and those that raise again are left out.
    """
    try:
        return _update(federation, broadcast, block), block, {}
    except FedgenError:
        raise
    except Exception:
        return _one_by_one(federation, broadcast, block)


def _one_by_one(federation: Federation, broadcast: Broadcast, block: Block) -> tuple[Update, Block, dict[int, str]]:
    updates = []
    alive = []
    failed = {}
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
    byzantine = federation.byzantine_among(block.clients, block.round)
    poisoned = federation.attack.poison(block, byzantine.to(block.start.device)) if byzantine.any() else block
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
    """A slice of the samples of evaluation set `number`."""

    number: int
    samples: slice


def evaluate_state(federation: Federation, state: Tensors, part: Part) -> dict[str, tuple[float, int]]:
    """{metric: (mean, number of samples)} of a state on one part of an evaluation set."""
    evaluation = federation.evaluations[part.number]
    x, y = evaluation.x[part.samples], evaluation.y[part.samples]
    metrics = federation.method.evaluate(state, x, y)
    return {name: (float(value.mean()), len(y)) for name, value in evaluation.named(metrics).items()}
