"""What most attacks have in common: honest data, honest weights, no memory, and a call on plain arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fedgen.aggregation.mean import Mean
from fedgen.contracts import Attack, Columns, Context, Rule, SlabFunction, View
from fedgen.parameters import Layout
from fedgen.rows import LocalRows, inside
from fedgen.streams import Streams


class BaseAttack(Attack):
    """An attack that can be called on plain arrays."""

    def __call__(
        self,
        rows: ArrayLike | Tensor,
        byzantine: Sequence[int],
        *,
        rule: Rule | None = None,
        f: int | None = None,
        round: int = 0,
        seed: int = 0,
        root: ArrayLike | Tensor | None = None,
    ) -> Tensor:
        """rows[n, d] as they are sent where the rows numbered `byzantine` are Byzantine, to `rule`, else to the mean.

        f: Byzantine rows that the rule tolerates; their actual number unless given.  root[d]: the update that the rule
        trusts, if it trusts one.
        """
        data = rows if isinstance(rows, Tensor) else torch.from_numpy(np.asarray(rows, np.float32))
        n, d = data.shape
        mask = torch.zeros(n, dtype=torch.bool)
        mask[list(byzantine)] = True
        context = Context(
            reference=torch.zeros(d),
            layout=Layout({"row": (d,)}, data.dtype),
            clients=torch.arange(n),
            f=len(byzantine) if f is None else f,
            round=round,
            streams=Streams(seed),
            root=None if root is None else torch.as_tensor(root).to(data),
        )
        view = View(mask, torch.ones(n, dtype=torch.float64), context, rule or Mean())
        return self.corrupt(LocalRows(data), view)[0].collect()


def wide(slab: Tensor) -> Tensor:
    """The slab in numbers to compute with: float32 at least, float64 where it holds integers."""
    if slab.dtype in (torch.float32, torch.float64):
        return slab
    return slab.float() if slab.is_floating_point() else slab.double()


def carrier(slab: Tensor) -> Tensor:
    """The slab in a dtype that holds honest and Byzantine values: integers as float64, until they are sent."""
    return slab if slab.is_floating_point() else slab.double()


@dataclass(frozen=True)
class Replace:
    """slab -> the slab with the Byzantine rows replaced by those of lie(slab), which may be [n, c] or [1, c].

    spared: columns that are sent as they are.  The published attacks are of gradients: statistics that a module
    measures are not among them.
    """

    byzantine: Tensor
    lie: SlabFunction
    spared: Columns = field(default_factory=lambda: slice(0, 0))

    @classmethod
    def of(cls, view: View, lie: SlabFunction) -> Self:
        """What an attack on the parameters does to the rows of this view."""
        return cls(view.byzantine, lie, view.context.layout.measured)

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        honest = carrier(slab)
        sent = torch.where(self.byzantine[:, None].to(slab.device), self.lie(wide(slab), columns).to(honest), honest)
        return self._kept(sent, honest, columns)

    def _kept(self, sent: Tensor, honest: Tensor, columns: Columns) -> Tensor:
        here = inside(self.spared, columns)
        if here.start < here.stop:
            sent[:, here] = honest[:, here]
        return sent


@dataclass(frozen=True)
class Distort(Replace):
    """slab -> the slab with the k Byzantine rows replaced by lie(those rows), which may be [k, c] or [1, c]."""

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        honest = carrier(slab)
        sent = honest.clone()
        byzantine = self.byzantine.to(slab.device)
        sent[byzantine] = self.lie(wide(slab[byzantine]), columns).to(sent)
        return self._kept(sent, honest, columns)


@dataclass(frozen=True)
class Scaled:
    """slab -> factor * slab."""

    factor: float

    def __call__(self, slab: Tensor, columns: Columns) -> Tensor:
        return self.factor * slab


@dataclass(frozen=True)
class Draws:
    """Random numbers of the Byzantine clients, by client, round and absolute column: independent of the slice width.

    An attack on single inboxes draws anew for every receiver.  The numbers are on the host, where a lie may be too.
    """

    streams: Streams
    purpose: str
    round: int
    clients: Tensor

    @classmethod
    def of(cls, view: View, purpose: str) -> Draws:
        only = "" if view.receiver is None else f".to.{view.receiver}"
        return cls(
            view.context.streams, f"attack.{purpose}{only}", view.context.round, view.context.clients[view.byzantine]
        )

    def uniform(self, columns: Columns) -> Tensor:
        """float32[k, c] in (0, 1)."""
        size = columns.stop - columns.start
        return self.streams.uniform(self.purpose, self.round, self.clients, size, columns.start)

    def normal(self, columns: Columns) -> Tensor:
        """float32[k, c] of the standard normal law."""
        size = columns.stop - columns.start
        return self.streams.normal(self.purpose, self.round, self.clients, size, columns.start)
