"""Order statistics of every column, by sorting networks: a few hundred minima and maxima of whole rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedgen.device import HOST
from fedgen.parameters import Array
from fedgen.rows import HALF, columns_of

COLUMNS = 16_384
"""Columns sorted together: with fewer, calls cost more than work; 50 rows of more leave the cache."""


class Comparator(NamedTuple):
    """Wires low < high; afterwards the lesser value is on low, unless nobody reads that wire any more."""

    low: int
    high: int
    keep_low: bool
    keep_high: bool


@lru_cache(maxsize=64)
def network(n: int, wanted: range) -> tuple[Comparator, ...]:
    """A sorting network of n wires that puts the order statistics `wanted` on their wires, and no others for sure.

    Source: K. Batcher, "Sorting networks and their applications", AFIPS 1968: odd-even merging. Wires beyond n hold
    infinity and never move; comparators whose results nobody wants are left out.

    >>> len(network(8, range(8))), len(network(8, range(3, 5))), len(network(8, range(1)))
    (19, 17, 7)
    """
    live = set(wanted)
    needed = []
    for low, high in reversed(_batcher(n)):
        if low in live or high in live:
            needed.append(Comparator(low, high, low in live, high in live))
            live |= {low, high}
    return tuple(reversed(needed))


def _batcher(n: int) -> list[tuple[int, int]]:
    """Every comparator of the network that sorts n wires, in order."""
    pairs = []
    power = 1
    while power < n:
        step = power
        while step >= 1:
            for first in range(step % power, n - step, 2 * step):
                for low in range(first, min(first + step, n - step)):
                    if low // (2 * power) == (low + step) // (2 * power):
                        pairs.append((low, low + step))
            step //= 2
        power *= 2
    return pairs


def reduce_sorted(slab: Tensor, wanted: range, reduce: Callable[[Sequence[Array]], Array]) -> Tensor:
    """slab[n, c] -> [1, c]: `reduce` of the order statistics `wanted` (0 is the least), a list of [c] each.

    float16 and bfloat16 are computed in float32.
    """
    if slab.device != HOST:
        ordered = slab.float() if slab.dtype in HALF else slab
        lines = list(ordered.sort(dim=0).values[wanted.start : wanted.stop].cpu().numpy())
        return torch.from_numpy(reduce(lines))[None].to(slab)
    result = torch.empty(1, slab.shape[1], dtype=slab.dtype)
    for columns in columns_of(slab.shape[1], COLUMNS):
        part = slab[:, columns]
        part = part.float() if slab.dtype in HALF else part.contiguous().clone()
        result[0, columns] = torch.from_numpy(reduce(_sorted(list(part.numpy()), wanted))).to(slab.dtype)
    return result


def _sorted(wires: list[Array], wanted: range) -> list[Array]:
    """The wires `wanted` after the network; what was on the wires is overwritten."""
    spare = np.empty_like(wires[0])
    for low, high, keep_low, keep_high in network(len(wires), wanted):
        if keep_low and keep_high:
            np.minimum(wires[low], wires[high], out=spare)
            np.maximum(wires[low], wires[high], out=wires[high])
            wires[low], spare = spare, wires[low]
        elif keep_low:
            np.minimum(wires[low], wires[high], out=wires[low])
        else:
            np.maximum(wires[low], wires[high], out=wires[high])
    return [wires[wire] for wire in wanted]


def middle(n: int) -> range:
    """The one or two order statistics in the middle of n."""
    return range((n - 1) // 2, n // 2 + 1)


def halfway(lines: Sequence[Array]) -> Array:
    """Mean of the first and the last of some sorted lines, without overflow."""
    lower, upper = lines[0], lines[-1]
    return lower if len(lines) == 1 else lower + (upper - lower) * lower.dtype.type(0.5)


def mean_of(lines: Sequence[Array]) -> Array:
    """Mean of the lines, added in order."""
    total = lines[0].copy()
    for line in lines[1:]:
        total += line
    total /= total.dtype.type(len(lines))
    return total


def nearest_mean(lines: Sequence[Array], centre: Array, kept: int) -> Array:
    """Mean of the `kept` of all sorted lines that are nearest to the centre[c]; of two equally near, the lower.

    They are neighbours: the window moves up past line i while line i + kept is nearer than line i.
    """
    dropped = len(lines) - kept
    moves = [centre - lines[i] > lines[i + kept] - centre for i in range(dropped)]
    total = np.zeros_like(centre)
    for place, line in enumerate(lines):
        if dropped <= place < kept:
            total += line
            continue
        reached = moves[place - kept] if place >= kept else np.True_
        passed = moves[place] if place < dropped else np.False_
        total += np.where(reached & ~passed, line, 0)
    total /= total.dtype.type(kept)
    return total
