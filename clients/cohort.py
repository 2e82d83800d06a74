"""One block of simulated clients, from broadcast to admitted rows.

Pure: result = f(federation, exchange, start, tensors, clients, client state), so any worker may compute any block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fedgen.admission import as_sent, check_update, judge
from fedgen.contracts import Block, Broadcast, Update, View
from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.own_code import explained
from fedgen.parameters import Layout, Tensors
from fedgen.rows import LocalRows, columns_of
from fedgen.wire.message import Malformed, decode, encode


@dataclass(frozen=True)
class Exchange:
    """What the blocks of one exchange have in common, besides tensors.

    names: of the broadcast's tensors, which follow as arguments.  summed: the block returns one sum instead of rows,
    weighted unless plain.
    """

    round: int
    phase: str
    expects: Layout
    names: tuple[str, ...]
    summed: bool
    plain: bool

    def broadcast(self, start: Tensor, tensors: Sequence[Tensor]) -> Broadcast:
        """What the participants receive, from the arguments of a task."""
        return Broadcast(start, self.expects, dict(zip(self.names, tensors, strict=True)), self.phase)


@dataclass(frozen=True)
class BlockReport:
    """What a block tells the coordinator: admitted clients with weights and state, and why others are not.

    total float64[d]: weights @ rows (plain sum where the exchange asks for it); None where rows stay as slices.
    """

    clients: Tensor
    weights: Tensor
    rejected: dict[int, str]
    failed: dict[int, str]
    client_state: Tensors
    metrics: Tensors
    total: Tensor | None = None


def train_block(
    federation: Federation, exchange: Exchange, start: Tensor, *rest: Any
) -> tuple[BlockReport, ...] | tuple[Any, ...]:
    """(report, slice 0, slice 1, ...) of one block; only the report where the exchange is summed."""
    *tensors, clients, client_state = rest
    broadcast = exchange.broadcast(start, tensors)
    block = federation.block(clients, start, client_state, exchange.round)
    update, block, failed = surviving(federation, broadcast, block)
    sent, weights = sent_by(federation, exchange, block, update, broadcast.reference)
    sent, weights, malformed = arrived(federation, exchange.expects, exchange.round, block.clients, sent, weights)

    if exchange.summed:
        sent = sent.double()
    rows, limits = LocalRows(sent, federation.slice_width), federation.limits(exchange.phase)
    admission = judge(rows, weights, broadcast.reference, exchange.expects, limits).without(malformed)

    def admitted(values: Tensor) -> Tensor:
        return values[admission.mask] if admission.reasons else values

    report = BlockReport(
        clients=admitted(block.clients),
        weights=admitted(weights),
        rejected={int(block.clients[row]): reason for row, reason in admission.reasons.items()},
        failed=failed,
        client_state={name: admitted(value) for name, value in update.client_state.items()},
        metrics={name: admitted(value) for name, value in update.metrics.items()},
    )
    sent = admitted(sent)
    if exchange.summed:
        shares = torch.ones_like(report.weights) if exchange.plain else report.weights
        return (replace(report, total=shares @ sent),)
    slabs = [sent[:, columns].contiguous() for columns in columns_of(exchange.expects.size, federation.slice_width)]
    return (report, *slabs)


def train_root(federation: Federation, exchange: Exchange, start: Tensor, *tensors: Tensor) -> Tensor:
    """[d]: the server's own row, from its root samples; it keeps no state, and nobody attacks it."""
    broadcast = exchange.broadcast(start, tensors)
    update = federation.method.client_update(broadcast, federation.block(federation.server, start, {}, exchange.round))
    check_update(update, exchange.expects, 1)
    return as_sent(update.rows, exchange.expects.dtype)[0]


def sent_by(
    federation: Federation,
    exchange: Exchange,
    block: Block,
    update: Update,
    reference: Tensor,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rows and weights as they leave the clients: a row-wise attack acts here, an omniscient one on the whole round, an
    attack on single inboxes where they are merged.

    start[n, d]: what training began from, where rows are models.
    """
    attack, liars = federation.attack, federation.liars(block.clients, exchange.round)
    aggregation = federation.experiment.aggregation
    weights = torch.ones_like(update.weights) if aggregation.weights == "equal" else update.weights
    if attack.omniscient or federation.lies_to_each(exchange.phase) or not liars.any():
        return update.rows, weights
    view = View(
        byzantine=liars,
        clients=block.clients,
        weights=weights,
        round=exchange.round,
        streams=block.streams,
        reference=reference,
        rule=federation.rule,
        f=aggregation.f,
        layout=exchange.expects,
        start=start,
    )
    rows, weights, _ = attack.corrupt(LocalRows(update.rows, federation.slice_width), view)
    return as_sent(rows.collect(), exchange.expects.dtype), weights


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
    nothing = Update(torch.empty(0, expects.size, dtype=expects.dtype), torch.empty(0, dtype=torch.float64))
    return _joined(updates) if updates else nothing, _part(block, torch.tensor(alive, dtype=torch.int64)), failed


def _update(federation: Federation, broadcast: Broadcast, block: Block) -> Update:
    liars = federation.liars(block.clients, block.round)
    poisoned = federation.attack.poison(block, liars) if liars.any() else block
    update = federation.method.client_update(broadcast, poisoned)
    check_update(update, broadcast.expects, len(block.clients))
    return update


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


def evaluate_state(federation: Federation, names: tuple[str, ...], *rest: Any) -> dict[str, tuple[float, int]]:
    """Mean metrics and number of samples of one part of a held-back set: {metric: (mean, samples)}.

    rest: the state's tensors in the order of names, then the number of the set and the samples' slice.
    """
    *tensors, number, samples = rest
    held = federation.evaluations[number]
    x, y = held.x[samples], held.y[samples]
    metrics = federation.method.evaluate(dict(zip(names, tensors, strict=True)), x, y)
    return {name: (float(value.mean()), len(y)) for name, value in held.named(metrics).items()}
