"""Which samples each step of each client takes: index arrays for a whole block, drawn from the streams."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgen.contracts import Block
from fedgen.parameters import Array


@dataclass(frozen=True)
class Batches:
    """index int64[n, s, b] into the padded samples, of which step s takes the first sizes[n, s]; a client's steps come
    first, then sizes of 0.

    whole: every batch is all samples of its client, in their own order.
    """

    index: Array
    sizes: Array
    whole: bool = False

    @property
    def steps(self) -> Tensor:
        """int64[n]: steps of each client."""
        return torch.from_numpy((self.sizes > 0).sum(1))


def draw_batches(block: Block, batch_size: int, epochs: int | None, steps: int | None, smallest: int = 1) -> Batches:
    """Shuffled epochs cut into batches, the last of an epoch short; `steps` walks through as many epochs as it needs.

    A client whose samples fit into one batch takes them in their own order.  A last batch of fewer than `smallest`
    samples joins the one before it.

    epochs or steps: exactly one is given.
    """
    counts = block.counts.numpy()
    if counts.max() <= batch_size:
        return _whole(counts, block.longest, epochs or steps or 1)
    joins = (counts > batch_size) & (counts % batch_size > 0) & (counts % batch_size < smallest)
    per_epoch = -(-counts // batch_size) - joins
    length = per_epoch * epochs if epochs is not None else np.full_like(per_epoch, steps or 1)
    passes = int((-(-length // per_epoch)).max())
    order = np.concatenate([_shuffled(block, epoch, batch_size) for epoch in range(passes)], axis=1)

    step = np.arange(length.max())
    epoch, within = np.divmod(step, per_epoch[:, None])
    left = counts[:, None] - within * batch_size
    sizes = np.where(joins[:, None] & (within == per_epoch[:, None] - 1), left, np.minimum(left, batch_size))
    sizes[step >= length[:, None]] = 0
    position = within[..., None] * batch_size + np.arange(sizes.max())
    samples = block.longest
    flat = np.minimum(epoch, passes - 1)[..., None] * samples + np.minimum(position, samples - 1)
    return Batches(np.take_along_axis(order, flat.reshape(len(flat), -1), axis=1).reshape(flat.shape), sizes)


def _whole(counts: Array, samples: int, steps: int) -> Batches:
    index = np.tile(np.arange(samples), (len(counts), steps, 1))
    return Batches(index, np.tile(counts[:, None], (1, steps)), whole=True)


def _shuffled(block: Block, epoch: int, batch_size: int) -> Array:
    """int64[n, m]: the client's samples in the order of this epoch, padding last."""
    counts = block.counts.numpy()[:, None]
    samples = np.arange(block.longest, dtype=np.uint64)
    words = block.streams.words(f"shuffle.{epoch}", block.round, block.clients, len(samples))
    # By the 23 bits that a uniform number has, then by place: no two keys are equal, so any sort is a stable one.
    keys = (words >> np.uint32(9)).astype(np.uint64) << np.uint64(32) | samples
    keys[samples >= counts] |= np.uint64(1) << np.uint64(63)
    order = (np.sort(keys, axis=1) & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return np.where(counts <= batch_size, samples.astype(np.int64), order)
