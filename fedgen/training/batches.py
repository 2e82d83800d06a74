"""Which samples each step of each client takes: index arrays for a whole block, drawn from the streams."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.contracts import Block


@dataclass(frozen=True)
class Batches:
    """index int64[n, s, b] into the padded samples and taken bool[n, s, b]; a client's steps come first, then none.

    whole: every batch is all samples of its client, in their own order.
    """

    index: Tensor
    taken: Tensor
    whole: bool = False

    @property
    def steps(self) -> Tensor:
        """int64[n]: steps of each client."""
        return self.taken.any(2).sum(1)


def draw_batches(block: Block, batch_size: int, epochs: int | None, steps: int | None) -> Batches:
    """Shuffled epochs cut into batches, the last of an epoch short; `steps` walks through as many epochs as it needs.

    A client whose samples fit into one batch takes them in their own order.

    epochs or steps: exactly one is given.
    """
    if int(block.counts.max()) <= batch_size:
        return _whole(block, epochs or steps or 1)
    per_epoch = -(-block.counts // batch_size)
    length = per_epoch * epochs if epochs is not None else torch.full_like(per_epoch, steps or 1)
    passes = int((-(-length // per_epoch)).max())
    order = torch.stack([_shuffled(block, epoch, batch_size) for epoch in range(passes)], dim=1)

    step = torch.arange(int(length.max()))
    epoch, within = step // per_epoch[:, None], step % per_epoch[:, None]
    position = within[..., None] * batch_size + torch.arange(min(batch_size, int(block.counts.max())))
    taken = (position < block.counts[:, None, None]) & (step < length[:, None])[..., None]
    flat = epoch.clamp_max(passes - 1)[..., None] * order.shape[2] + position.clamp_max(order.shape[2] - 1)
    index = order.flatten(1).gather(1, flat.flatten(1)).view_as(flat)
    return Batches(index, taken)


def _whole(block: Block, steps: int) -> Batches:
    shape = len(block.counts), steps, block.y.shape[1]
    index = torch.arange(shape[2]).expand(shape)
    return Batches(index, block.mask[:, None].expand(shape), whole=True)


def _shuffled(block: Block, epoch: int, batch_size: int) -> Tensor:
    """int64[n, m]: the client's samples in the order of this epoch, padding last."""
    samples = block.y.shape[1]
    keys = block.uniform(f"shuffle.{epoch}", samples).masked_fill(~block.mask, 2.0)
    small = block.counts[:, None] <= batch_size
    return torch.where(small, torch.arange(samples), keys.argsort(dim=1, stable=True))
