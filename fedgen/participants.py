"""Who takes part in a round, who is Byzantine, who is slow: drawn from the streams."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedgen.config import Experiment
from fedgen.lazy import lazy_property
from fedgen.resolve import BLOCK_BYTES_MOST
from fedgen.streams import Streams


class Participants:
    """The N clients of an experiment in which no "auto" is left.

    counts int64[N]: samples of each.  byzantine bool[N]: who is Byzantine in round 0, and in all others unless they are
    drawn anew.
    """

    def __init__(self, experiment: Experiment, counts: Tensor, streams: Streams) -> None:
        self._experiment = experiment
        self._streams = streams
        self._counts = counts
        self._all = torch.arange(len(counts))
        self.byzantine = self._byzantine(0)
        self._redrawn = 0, self.byzantine

    def cohort(self, round: int, everyone: bool, row_bytes: int = 0) -> list[Tensor]:
        """The round's clients in blocks, most samples first: alike in length, and heavy blocks start early.

        row_bytes: of a client's row where it is no model, to keep blocks of large ones small.
        """
        chosen = self._all.numpy()
        block = self._experiment.training.block
        assert isinstance(block, int)
        if row_bytes:
            block = max(1, min(block, BLOCK_BYTES_MOST // row_bytes))
        if not everyone:
            chosen = np.sort(self._drawn("cohort", round, self._experiment.cohort_size).numpy())
        heaviest_first = np.argsort(-self._counts.numpy()[chosen], kind="stable")
        return list(torch.from_numpy(chosen[heaviest_first]).split(block))

    def byzantine_among(self, clients: Tensor, round: int) -> Tensor:
        """bool[n]: which of these clients are Byzantine in this round."""
        section = self._experiment.byzantine
        if section.start > 0 and round < section.start:
            return torch.zeros(len(clients), dtype=torch.bool)
        if section.redraw and round != self._redrawn[0]:
            self._redrawn = round, self._byzantine(round)
        return (self._redrawn[1] if section.redraw else self.byzantine).index_select(0, clients)

    @lazy_property
    def stragglers(self) -> Tensor:
        """bool[N]: whose training takes longer, in gossip in virtual time."""
        slow = torch.zeros(len(self._all), dtype=torch.bool)
        share = self._experiment.virtual_time.stragglers
        slow[self._drawn("straggler", 0, round(share * len(self._all)))] = True
        return slow

    def _byzantine(self, round: int) -> Tensor:
        """bool[N]: those listed, or drawn in that round."""
        chosen = self._experiment.byzantine.clients
        mask = torch.zeros(len(self._all), dtype=torch.bool)
        mask[chosen if isinstance(chosen, list) else self._drawn("byzantine", round, chosen)] = True
        return mask

    def _drawn(self, purpose: str, round: int, count: int) -> Tensor:
        """`count` different clients, in the order of their draw."""
        keys = self._streams.words(purpose, round, self._all, 1)[:, 0]
        return torch.from_numpy(keys.argsort(kind="stable")[:count])
