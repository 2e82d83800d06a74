"""Letters between peers in virtual time: on their way, or waiting, the latest of each sender, to be merged."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedgen.clients.mail import Messages
from fedgen.parameters import Array, Tensors
from fedgen.topology.graph import Matrix, entries

ARRIVAL, RECEIVER, SENDER, SENT, MESSAGE = range(5)
"""Columns of a letter: tick at which it arrives, who gets it, who sent it and when, and which message it is."""

NONE = -1


@dataclass(frozen=True)
class Post:
    """All that is under way in gossip, between two ticks.

    due int64[N]: the tick at which each peer's training ends; trained int64[N]: how often it has trained;
    latest int64[N]: its last message, where somebody may ask for it, else NONE; letters int64[l, 5].
    changed[N, j]: what its training has changed since it last merged, where messages carry that; else j = 0.
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
        """Of the letters that have arrived only the latest of every sender to every receiver is kept; those that find
        nobody there are lost."""
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
        """(receivers int64[k] whose inbox holds needed[N] letters, the places int64[j] of those letters).

        Letters of neighbours that are none any more, by weights csr[N, N], do not count.
        """
        letters = self.letters
        known = entries(weights, letters[:, RECEIVER], letters[:, SENDER]) > 0
        here = (letters[:, ARRIVAL] <= tick) & known
        held = np.bincount(letters[here, RECEIVER], minlength=len(needed))
        full = (held >= needed) & (held > 0)
        return np.flatnonzero(full), np.flatnonzero(here & full[letters[:, RECEIVER]])

    def without(self, places: Array) -> Post:
        """After those letters were read; messages that nobody will ask for any more are dropped."""
        letters = np.delete(self.letters, places, axis=0)
        wanted = np.union1d(letters[:, MESSAGE], self.latest[self.latest != NONE])
        if len(wanted) == len(self.messages.senders):
            return replace(self, letters=letters)
        letters[:, MESSAGE] = np.searchsorted(wanted, letters[:, MESSAGE])
        latest = np.where(self.latest == NONE, NONE, np.searchsorted(wanted, self.latest))
        return replace(self, latest=latest, letters=letters, messages=self.messages.of(wanted))

    def forgetting(self, peers: Array) -> Post:
        """After those peers have merged, or taken another model: what they had changed is part of it, or lost."""
        if not len(peers):
            return self
        changed = self.changed.clone()
        changed[torch.from_numpy(peers)] = 0
        return replace(self, changed=changed)
