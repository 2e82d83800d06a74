"""The contracts every part is built on.

n rows or clients, d columns, N all clients, m padded samples of a client; `...` stands for one state or N stacked.
All classes are frozen: a stage takes values and returns new ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedgen.data.dataset import Dataset
from fedgen.data.samples import Samples as Samples
from fedgen.data.targets import KINDS, TargetKind, Targets
from fedgen.exhibits import Exhibit
from fedgen.lazy import lazy_property
from fedgen.parameters import Layout, Tensors
from fedgen.streams import Streams

Reduce = Literal["aggregate", "sum", "gather"]
Columns = slice
SlabFunction = Callable[[Tensor, Columns], Tensor]


@dataclass(frozen=True)
class Broadcast:
    """One exchange: what every participant receives, and what it is to send back.

    start: [d] in a star, [N, d] in gossip: the row training begins from.
    expects: columns and dtype of the rows to return; admission checks against it.
    tensors: the same for all; an unchanged tensor crosses to a worker once.
    phase: "train" means that rows are differences from `start`; any other word is the method's own.
    reduce: "aggregate" by the rule, "sum" plainly, "gather" the rows themselves.
    everyone: all clients instead of the round's cohort.
    lasting: names of tensors that no round changes, so that every client needs them once.
    """

    start: Tensor
    expects: Layout
    tensors: Tensors = field(default_factory=dict)
    phase: str = "train"
    reduce: Reduce = "aggregate"
    everyone: bool = False
    lasting: frozenset[str] = frozenset()

    @property
    def reference(self) -> Tensor:
        """[expects.size] in a star: what the rows are differences from, zeros for columns that are no model."""
        reference = torch.zeros(self.expects.size, device=self.start.device)
        if self.phase == "train":
            reference[: len(self.start)] = self.start
        return reference


@dataclass(frozen=True)
class Block:
    """Some clients of one round, trained in lockstep; read only.

    clients[n] int64, start[n, d], samples of the n clients, counts[n] samples held,
    client_state {name: [n, ...]} as the client's last admitted update left it.  clients and counts are on the host, all
    else, and what the methods below return, on the device of the training (fedgen/device.py).
    """

    clients: Tensor
    start: Tensor
    samples: Samples
    counts: Tensor
    client_state: Tensors
    round: int
    streams: Streams

    @property
    def x(self) -> Tensor:
        """[n, m, ...], zero padded."""
        return self.samples.x

    @property
    def y(self) -> Tensor:
        """[n, m], zero padded."""
        return self.samples.y

    @property
    def longest(self) -> int:
        """m: the samples of a client, with padding."""
        return self.samples.index.shape[1]

    @property
    def mask(self) -> Tensor:
        """bool[n, m]: which samples are real."""
        return (torch.arange(self.longest) < self.counts[:, None]).to(self.start.device)

    def stored(self, name: str, like: Tensor) -> Tensor:
        """The client state of that name, zeros like `like` for clients that hold none."""
        held = self.client_state.get(name)
        return torch.zeros_like(like) if held is None else held

    def uniform(self, purpose: str, size: int, round: int | None = None) -> Tensor:
        """float32[n, size] in (0, 1), of this round unless another is named."""
        numbers = self.streams.uniform(purpose, self.round if round is None else round, self.clients, size)
        return numbers.to(self.start.device)

    def normal(self, purpose: str, size: int, round: int | None = None) -> Tensor:
        """float32[n, size] of the standard normal law, of this round unless another is named."""
        numbers = self.streams.normal(purpose, self.round if round is None else round, self.clients, size)
        return numbers.to(self.start.device)


@dataclass(frozen=True)
class Update:
    """What a block sends, and keeps.

    rows[n, expects.size] on the block's device, weights[n] float64, metrics {name: [n]}; client_state {name: [n, ...]}
    committed with the round for admitted clients only.
    """

    rows: Tensor
    weights: Tensor
    client_state: Tensors = field(default_factory=dict)
    metrics: Tensors = field(default_factory=dict)


class Rows(Protocol):
    """n rows of d columns, in memory or as column slices that stay with the workers."""

    @property
    def size(self) -> int:
        """d, which no map changes."""
        ...

    def map(self, function: SlabFunction) -> Rows:
        """Lazy: function(slab[n, c], columns) -> [k, c] on every slice."""
        ...

    def gram(self) -> Tensor:
        """float64[n, n] on the host, slices summed in order."""
        ...

    def norms(self) -> Tensor:
        """float64[n] Euclidean lengths on the host, slices summed in order."""
        ...

    def collect(self) -> Tensor:
        """[n, d] where the rows are."""
        ...


@dataclass(frozen=True)
class Context:
    """What a rule may know besides rows and weights.

    reference[d]: what the rows are differences from (global model, or own model in gossip; zeros for columns that are
    no model).  clients[n]: who sent each row.  f: how many rows may be Byzantine, rejected ones already deducted.
    memory: what this rule returned last round.  round, streams: for rules that draw.  root[d]: the holder's own update
    from data it trusts, for rules that ask for it.  share: total mixing weight of the neighbours, 1 - self-weight; 1 in
    a star.
    """

    reference: Tensor
    layout: Layout
    clients: Tensor
    f: int
    memory: Tensors = field(default_factory=dict)
    round: int = 0
    streams: Streams = field(default_factory=lambda: Streams(0))
    root: Tensor | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Diagnostics:
    """What a rule says of itself for the log.

    scalars {name: []}; by_row {name: [n]}: of every row; by_weight {name: [w]}: of every weight, in the order of
    `layout.weights`.  Of k inboxes that are merged at once, scalars and by_weight have a first dimension k.
    """

    scalars: Tensors = field(default_factory=dict)
    by_row: Tensors = field(default_factory=dict)
    by_weight: Tensors = field(default_factory=dict)

    def __or__(self, more: Diagnostics) -> Diagnostics:
        return Diagnostics(self.scalars | more.scalars, self.by_row | more.by_row, self.by_weight | more.by_weight)

    @property
    def all(self) -> Tensors:
        """Everything by its name."""
        return {**self.scalars, **self.by_row, **self.by_weight}


@dataclass(frozen=True)
class Aggregation:
    """What a rule returns.

    aggregate[d]; coefficients[n] float64 where aggregate = coefficients @ rows; memory for the rule's next call.
    """

    aggregate: Tensor
    coefficients: Tensor | None = None
    memory: Tensors = field(default_factory=dict)
    diagnostics: Diagnostics = field(default_factory=Diagnostics)

    def __post_init__(self) -> None:
        if not isinstance(self.diagnostics, Diagnostics):
            raise TypeError(
                "Aggregation.diagnostics: expected Diagnostics(scalars=..., by_row=..., by_weight=...), got "
                f"{type(self.diagnostics).__name__}"
            )


@dataclass(frozen=True)
class Inboxes:
    """What k peers merge at once.

    own[k, d]: their own models.  sent[N, d]: every peer's model as it was sent.  weights: csr float64[k, N], whose rows
    add up to 1, or are empty where nothing arrived.  share float64[k]: total mixing weight
    of the neighbours.
    seen {name: [N, ...]}, own_seen {name: [k, ...]}: what the rule's `observe` said of the models sent, and of the own
    ones.  memory {name: [k, ...]}: what the rule returned last round.
    """

    own: Tensor
    sent: Tensor
    weights: Any
    share: NDArray[np.float64]
    layout: Layout
    seen: Tensors = field(default_factory=dict)
    own_seen: Tensors = field(default_factory=dict)
    memory: Tensors = field(default_factory=dict)


@dataclass(frozen=True)
class Mixed:
    """What a rule makes of k inboxes: models[k, d]; memory {name: [k, ...]}; diagnostics of all k."""

    models: Tensor
    memory: Tensors = field(default_factory=dict)
    diagnostics: Diagnostics = field(default_factory=Diagnostics)


@dataclass(frozen=True)
class View:
    """What an attack knows: everything that the strongest published attacks assume.

    byzantine bool[n], weights[n]; context: what the rule that is running knows of these rows.  memory: what this attack
    returned last round.  receiver: the one peer that gets these rows, where Byzantine peers send each neighbour a model
    of its own.  start[n, d]: the models that training began from, where rows are models and not differences.
    """

    byzantine: Tensor
    weights: Tensor
    context: Context
    rule: Rule
    memory: Tensors = field(default_factory=dict)
    receiver: int | None = None
    start: Tensor | None = None


@dataclass(frozen=True)
class Facts:
    """What a method, rule or attack is built from besides its own parameters, if it has a field `facts`.

    Methods and their wrappers may have a field `learner` too (fedgen/training/learner.py).

    weights float64[clients]: how much each client counts in the mean of all of them.
    """

    clients: int
    input_shape: tuple[int, ...]
    targets: Targets
    streams: Streams
    weights: Tensor


@dataclass(frozen=True)
class Inbox:
    """What reached the holder of a state, after attack and admission.

    clients[n], weights[n]; rows is None where workers have summed already; combine runs the rule, once, on demand.
    """

    clients: Tensor
    weights: Tensor
    rows: Rows | None
    combine: Callable[[], Aggregation]
    f: int = 0

    @lazy_property
    def aggregation(self) -> Aggregation:
        return self.combine()

    @property
    def outcome(self) -> Aggregation | None:
        """What the rule returned, None where it has not run."""
        return vars(self).get("aggregation")

    @property
    def aggregate(self) -> Tensor:
        return self.aggregation.aggregate


@dataclass(frozen=True)
class Occasion:
    """When a part is asked for exhibits, and of which data: after an evaluated round, where the run is coordinated.

    last: no round follows.  block(clients[n]): what clients hold, and the models that they would train next.
    """

    round: int
    last: bool
    members: Literal["clients", "peers"]
    dataset: Dataset
    block: Callable[[Tensor], Block]


class Method(ABC):
    """Both halves of a federated method, pure; a wrapper is a Method around a Method.

    takes: the kinds of targets that it is made for.
    """

    takes: ClassVar[tuple[TargetKind, ...]] = KINDS

    @property
    @abstractmethod
    def modes(self) -> frozenset[str]:
        """Of "star" and "gossip"."""

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Of state["model"]."""

    @property
    def setup_rounds(self) -> int:
        """Exchanges before round 0, numbered -setup_rounds .. -1."""
        return 0

    @property
    def common(self) -> frozenset[str]:
        """State tensors that are identical at every peer, of which gossip stores one copy."""
        return frozenset()

    @abstractmethod
    def initial_state(self, replica: int) -> Tensors:
        """The server is replica 0; "model": [d]."""

    @abstractmethod
    def broadcast(self, state: Tensors, round: int) -> Broadcast:
        """What every participant of the round receives."""

    @abstractmethod
    def client_update(self, broadcast: Broadcast, block: Block) -> Update:
        """What the clients of the block send, and keep."""

    @abstractmethod
    def server_update(self, state: Tensors, inbox: Inbox, round: int) -> Tensors:
        """Runs at the server or at each peer, over leading dimensions, so that one code serves 1 and N states."""

    @abstractmethod
    def evaluate(self, state: Tensors, x: Tensor, y: Tensor) -> Tensors:
        """{metric: [...]}, each a mean over the samples."""

    def exhibits(self, state: Tensors, occasion: Occasion) -> Sequence[Exhibit]:
        """What there is to see of it in the report."""
        return ()


GramWeights = Callable[[Tensor, Tensor, Context], Tensor]
"""(gram float64[n, n], weights[n], context) -> coefficients float64[n]."""


@dataclass(frozen=True)
class BatchedMerge:
    """How a rule merges the inboxes of many peers at once.

    observe(models[n, d], layout) -> {name: [n, ...]}: what it wants to know of every message once.
    merge: the merged models, own + share * (aggregate of the inbox - own).
    """

    observe: Callable[[Tensor, Layout], Tensors]
    merge: Callable[[Inboxes], Mixed]


class Rule(ABC):
    """How n rows become one. Wrappers, such as nearest-neighbour mixing, are Rules around a Rule.

    linear: the weights alone decide, so that workers may return block sums.  merges_statistics: the rule makes the
    columns of statistics itself (else see `fedgen.aggregation.statistics`).
    """

    linear: ClassVar[bool] = False
    merges_statistics: ClassVar[bool] = False

    @property
    def root_samples(self) -> int:
        """Samples on which the server itself trains, for a rule that needs context.root."""
        return 0

    @property
    def host(self) -> bool:
        """Whether it computes with rows on the host, such as with numpy: it is handed copies, and its aggregate goes
        back to the device."""
        return False

    @property
    def sends_change(self) -> bool:
        """Whether rows of gossip carry, behind the model, what its last training changed."""
        return False

    def gram_weights(self) -> GramWeights | None:
        """The coefficients from inner products, where these alone decide."""
        return None

    def batched(self) -> BatchedMerge | None:
        """The merge of many inboxes at once, where there is one."""
        return None

    @abstractmethod
    def minimum(self, f: int) -> int:
        """The fewest rows that withstand f Byzantine ones; below it the round is skipped and the state kept."""

    @abstractmethod
    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        """The row that n rows become."""

    def exhibits(self, memory: Tensors, occasion: Occasion) -> Sequence[Exhibit]:
        """What there is to see of it in the report; memory: what it returned last; of single inboxes
        by "receiver/name"."""
        return ()


class Attack:
    """What Byzantine clients train on, and send; honest in everything that it does not override.

    omniscient: sees every row of the round; else one block at a time.  takes: see `Method`.
    """

    omniscient: ClassVar[bool] = False
    takes: ClassVar[tuple[TargetKind, ...]] = KINDS

    def poison(self, block: Block, byzantine: Tensor) -> Block:
        """The block that is trained on, with the data of byzantine[n] changed."""
        return block

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        """(rows, weights, memory) as sent."""
        return rows, view.weights, view.memory

    def forger(self) -> Callable[[bytes], bytes] | None:
        """What becomes of the bytes that one Byzantine client sends; where an attack forges, every row of its block
        passes encode and decode (fedgen/wire/message.py)."""
        return None

    def triggered(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
        """Test samples with the trigger of a backdoor and the labels it wants; the accuracy on them is the metric
        "backdoor_rate"."""
        return None

    def exhibits(self, memory: Tensors, occasion: Occasion) -> Sequence[Exhibit]:
        """What there is to see of it in the report; memory: what it returned last; of single inboxes
        by "receiver/name"."""
        return ()
