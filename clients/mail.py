"""Messages between gossip peers, and which receiver gets which message."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from fedgen.admission import refused_statistics
from fedgen.federation import Federation
from fedgen.parameters import Array, Layout, Tensors
from fedgen.topology.graph import Matrix

LENGTH, SOUND = "length", "sound"


@dataclass(frozen=True)
class Messages:
    """Sent models[m, d] with senders[m] and weights[m]; seen {name: [m, ...]}: their observations (see `observe`)."""

    models: Tensor
    senders: Array
    weights: Array
    seen: Tensors

    def of(self, places: Array) -> Messages:
        """Copies of the messages at these places."""
        rows = torch.from_numpy(places)
        seen = {name: value.index_select(0, rows) for name, value in self.seen.items()}
        return Messages(self.models.index_select(0, rows), self.senders[places], self.weights[places], seen)

    def __add__(self, more: Messages) -> Messages:
        if 0 in (len(self.senders), len(more.senders)):
            return self if len(self.senders) else more
        return Messages(
            torch.cat([self.models, more.models]),
            np.concatenate([self.senders, more.senders]),
            np.concatenate([self.weights, more.weights]),
            {name: torch.cat([value, more.seen[name]]) for name, value in self.seen.items()},
        )


@dataclass(frozen=True)
class Mail:
    """m messages and k receivers; heard csr[k, m]: mixing weights of the messages that each receiver got."""

    messages: Messages
    heard: Matrix

    def inbox(self, place: int) -> slice:
        """The entries of `heard` that belong to one receiver."""
        return slice(int(self.heard.indptr[place]), int(self.heard.indptr[place + 1]))

    def heard_only(self) -> Mail:
        """Only the messages that at least one receiver got; their rows are copied."""
        used, columns = np.unique(self.heard.indices, return_inverse=True)
        heard = csr_array(
            (self.heard.data, columns.astype(np.int64), self.heard.indptr), shape=(self.heard.shape[0], len(used))
        )
        return Mail(self.messages.of(used.astype(np.int64)), heard)

    def with_replies(self, places: Array, models: Tensor, weights: Array, seen: Tensors) -> Mail:
        """Replace the messages at entries places[j] of `heard` by models[j, d], weights[j], seen {name: [j, ...]}.

        Other receivers still get the original message.
        """
        first = len(self.messages.senders)
        columns = self.heard.indices.copy()
        senders = self.messages.senders[columns[places]]
        columns[places] = first + np.arange(len(places))
        shape = self.heard.shape[0], first + len(places)
        heard = csr_array((self.heard.data, columns, self.heard.indptr), shape=shape)
        return Mail(self.messages + Messages(models, senders, weights, seen), heard)


def observe(federation: Federation, models: Tensor) -> Tensors:
    """{name: [n, ...]}: quantities of models[n, d] that are computed once and used by every receiver.

    LENGTH: Euclidean norms without statistics, rounded up; infinite or NaN if a square overflows float32.
    SOUND, if the layout has statistics: bool[n], whether they pass admission. Other names belong to the rule.
    """
    layout = federation.method.layout
    seen = {LENGTH: _lengths(models, layout).double().mul_(1 + 1e-4)}
    if layout.statistics:
        limit = federation.limits("train").statistic
        sound = torch.ones(len(models), dtype=torch.bool)
        sound[list(refused_statistics(models[:, layout.measured], layout.of_statistics, limit))] = False
        seen[SOUND] = sound
    batched = federation.rule.batched()
    return seen if batched is None else {**seen, **batched.observe(models, layout)}


def _lengths(models: Tensor, layout: Layout) -> Tensor:
    if layout.statistics:
        models = models.clone()
        models[:, layout.measured] = 0
    lengths: Tensor = torch.linalg.vector_norm(models, dim=1)
    return lengths
