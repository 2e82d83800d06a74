"""Counter-based random numbers: (seed, purpose, round, client, position) -> the same number anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = NDArray[np.uint64]
Words32 = NDArray[np.uint32]

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Ten rounds of Philox4x32 on arrays of 32-bit words held as uint64.

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1 = (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0), p1 & _LOW
        c2, c3 = (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


@dataclass(frozen=True)
class Streams:
    """Random numbers of an experiment; a client's never depend on who else is in the block.

    seed: 0 .. 2**64 - 1.

    >>> streams = Streams(7)
    >>> alone = streams.uniform("shuffle", 3, torch.tensor([5]), 4)
    >>> together = streams.uniform("shuffle", 3, torch.tensor([2, 5]), 4)
    >>> bool((alone[0] == together[1]).all())
    True
    """

    seed: int

    def words(self, purpose: str, round: int, clients: Tensor, size: int, first: int = 0) -> Words32:
        """uint32[n, size], the words first .. first + size - 1; row i belongs to clients[i] (0 .. 2**32 - 1)."""
        position = np.arange(first // 4, -(-(first + size) // 4), dtype=np.uint64)[None, :]
        client = clients.numpy().astype(np.uint64)[:, None]
        zero = np.zeros((len(client), position.shape[1]), np.uint64)
        counter = (
            zero + position,
            zero + client,
            zero + np.uint64(round & 0xFFFFFFFF),
            zero + np.uint64(crc32(purpose.encode())),
        )
        blocks = philox(counter, (self.seed & 0xFFFFFFFF, self.seed >> 32))
        whole = np.stack(blocks, axis=-1).reshape(len(client), 4 * position.shape[1])
        return whole[:, first % 4 : first % 4 + size].astype(np.uint32)

    def uniform(self, purpose: str, round: int, clients: Tensor, size: int, first: int = 0) -> Tensor:
        """float32[n, size] strictly inside (0, 1): 23 bits plus a half, so that no logarithm meets 0."""
        bits = self.words(purpose, round, clients, size, first) >> np.uint32(9)
        return torch.from_numpy((bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23))

    def normal(self, purpose: str, round: int, clients: Tensor, size: int, first: int = 0) -> Tensor:
        """float32[n, size] of the standard normal law (Box-Muller in float64), from the number `first` on."""
        pairs = self.uniform(purpose, round, clients, 2 * size, 2 * first).double().view(len(clients), size, 2)
        radius, angle = pairs.unbind(2)
        numbers: Tensor = (-2 * radius.log()).sqrt() * (2 * torch.pi * angle).cos()
        return numbers.float()

    def seed_for(self, purpose: str, client: int = 0) -> int:
        """One 63-bit seed for a library that wants a generator of its own."""
        high, low = self.words(purpose, 0, torch.tensor([client]), 2)[0].tolist()
        return int(high >> 1) << 32 | int(low)
