"""The samples of a Byzantine client that an attack changes."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgen.contracts import Block


def drawn_samples(block: Block, share: float, purpose: str) -> Tensor:
    """bool[n, m]: a share of each client's samples, rounded half up, the same in every round and any block."""
    keys = block.uniform(f"attack.{purpose}", block.longest, round=0)
    keys = keys.masked_fill(~block.mask, torch.inf)
    ranks = keys.argsort(dim=1, stable=True).argsort(dim=1)
    chosen: Tensor = (ranks < (share * block.counts + 0.5).floor()[:, None].to(ranks.device)) & block.mask
    return chosen


def over_samples(mask: Tensor, x: Tensor) -> Tensor:
    """mask[n, m] shaped to choose among x[n, m, ...]."""
    return mask.view(*mask.shape, *([1] * (x.dim() - mask.dim())))
