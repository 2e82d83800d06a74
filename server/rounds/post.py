"""Messages in flight in virtual time, and messages that wait in an inbox, the newest of each sender."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedgen.clients.mail import Messages
from fedgen.parameters import Array, Tensors
from fedgen.topology.graph import Matrix, entries

ARRIVAL, RECEIVER, SENDER, SENT, MESSAGE = range(5)
"""Columns of a letter, one message on its way to one receiver: arrival tick, receiver, sender, tick of sending, and
number of the message."""

NONE = -1


@dataclass(frozen=True)
class Post:
    """The state of virtual time between two ticks.

    Per peer: due int64[N], tick at which its training ends; trained int64[N], number of its trainings; latest int64[N],
    its last message, NONE if it cannot be pulled; changed[N, j], change in training since its last merge, for a rule
    with `sends_change` (else j = 0). letters int64[l, 5]: see above.
    """

    due: Array
    trained: Array
    latest: Array
    letters: Array
    messages: Messages
    changed: Tensor

    def tensors(self) -> Tensors:
        """For a checkpoint."""
        arrays = {"due": self.due, "trained": self.trained, "latest": self.latest, "letters": self.letters}
        messages = {"senders": self.messages.senders, "weights": self.messages.weights}
        return {
            **{name: torch.from_numpy(array) for name, array in (arrays | messages).items()},
            "models": self.messages.models,
            "changed": self.changed,
            **{f"seen.{name}": value for name, value in self.messages.seen.items()},
        }

    @classmethod
    def restore(cls, held: Tensors) -> Post:
        """The inverse of `tensors`."""
        seen = {name.removeprefix("seen."): value for name, value in held.items() if name.startswith("seen.")}
        messages = Messages(held["models"], held["senders"].numpy(), held["weights"].numpy(), seen)
        due, trained, latest, letters = (held[name].numpy() for name in ("due", "trained", "latest", "letters"))
        return cls(due, trained, latest, letters, messages, held["changed"])

    def delivered(self, tick: int, gone: Array) -> Post:
        """Keep only the newest arrived letter per sender and receiver; letters to absent receivers are lost."""
        letters = self.letters
        letters = letters[~((letters[:, ARRIVAL] == tick) & gone[letters[:, RECEIVER]])]
        here = letters[:, ARRIVAL] <= tick
        waiting = letters[here]
        order = np.lexsort((waiting[:, SENT], waiting[:, SENDER], waiting[:, RECEIVER]))
        waiting = waiting[order]
        pairs = waiting[:, [RECEIVER, SENDER]]
        newest = np.ones(len(waiting), dtype=bool)
        newest[:-1] = (pairs[1:] != pairs[:-1]).any(axis=1)
        kept = np.concatenate([waiting[newest], letters[~here]])
        return replace(self, letters=kept)

    def inboxes(self, tick: int, needed: Array, weights: Matrix) -> tuple[Array, Array]:
        """(int64[k]: receivers with at least needed[N] letters, int64[j]: places of these letters).

        weights csr[N, N]: letters from peers that are no longer neighbours do not count.
        """
        letters = self.letters
        known = entries(weights, letters[:, RECEIVER], letters[:, SENDER]) > 0
        here = (letters[:, ARRIVAL] <= tick) & known
        waiting = np.bincount(letters[here, RECEIVER], minlength=len(needed))
        full = (waiting >= needed) & (waiting > 0)
        return np.flatnonzero(full), np.flatnonzero(here & full[letters[:, RECEIVER]])

    def without(self, places: Array) -> Post:
        """Remove the letters at these places, and messages that no letter or pull can refer to any more."""
        letters = np.delete(self.letters, places, axis=0)
        wanted = np.union1d(letters[:, MESSAGE], self.latest[self.latest != NONE])
        if len(wanted) == len(self.messages.senders):
            return replace(self, letters=letters)
        letters[:, MESSAGE] = np.searchsorted(wanted, letters[:, MESSAGE])
        latest = np.where(self.latest == NONE, NONE, np.searchsorted(wanted, self.latest))
        return replace(self, latest=latest, letters=letters, messages=self.messages.of(wanted))

    def forgetting(self, peers: Array) -> Post:
        """Reset the training change of peers that have merged or pulled another model."""
        if not len(peers):
            return self
        changed = self.changed.clone()
        changed[torch.from_numpy(peers)] = 0
        return replace(self, changed=changed)
