"""Random numbers: the published answers, a scalar reference, and independence of who else is in the block."""

from __future__ import annotations

import itertools
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen.streams import Streams, philox

ONES = 0xFFFFFFFF
SEEDS = st.integers(0, 2**64 - 1)
CLIENTS = st.integers(0, 2**32 - 1)
ROUNDS = st.integers(-(2**31), 2**31 - 1)


def scalar_philox(counter: tuple[int, ...], key: tuple[int, ...]) -> list[int]:
    """Philox4x32-10 on Python's integers, as the paper writes it."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [second >> 32 ^ c[1] ^ k[0], second & ONES, first >> 32 ^ c[3] ^ k[1], first & ONES]
        k = [(k[0] + 0x9E3779B9) & ONES, (k[1] + 0xBB67AE85) & ONES]
    return c


# Random123's known answers: counter, key, result.
@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    c0, c1, c2, c3 = (np.array([word], np.uint64) for word in counter)
    assert [int(word[0]) for word in philox((c0, c1, c2, c3), key)] == list(expected)
    assert scalar_philox(counter, key) == list(expected)


@given(SEEDS, st.text(max_size=8), ROUNDS, st.lists(CLIENTS, min_size=1, max_size=4), st.integers(0, 11))
@settings(max_examples=40)
def test_words_are_those_of_the_scalar_reference(
    seed: int, purpose: str, round: int, clients: list[int], size: int
) -> None:
    """Word p of a client is word p % 4 of counter (p // 4, client, round, purpose)."""
    words = Streams(seed).words(purpose, round, torch.tensor(clients, dtype=torch.int64), size)
    assert words.shape == (len(clients), size)
    assert words.dtype == np.uint32
    label, key = crc32(purpose.encode()), (seed & ONES, seed >> 32)
    for row, position in itertools.product(range(len(clients)), range(size)):
        counter = (position // 4, clients[row], round % 2**32, label)
        assert int(words[row, position]) == scalar_philox(counter, key)[position % 4]


def test_no_normal_numbers_are_none() -> None:
    assert Streams(0).normal("noise", 0, torch.arange(3), 0).shape == (3, 0)


def test_no_clients_draw_nothing() -> None:
    assert Streams(0).uniform("shuffle", 0, torch.tensor([], dtype=torch.int64), 3).shape == (0, 3)


@pytest.mark.parametrize("draw", ["uniform", "normal"])
@given(SEEDS, st.lists(CLIENTS, min_size=1, max_size=6), st.integers(1, 9), st.data())
def test_a_client_draws_the_same_alone_and_in_any_block(
    draw: str, seed: int, clients: list[int], size: int, data: st.DataObject
) -> None:
    numbers = getattr(Streams(seed), draw)
    together = numbers("shuffle", 5, torch.tensor(clients), size)
    order = data.draw(st.permutations(range(len(clients))))
    assert together.shape == (len(clients), size)
    assert together.dtype == torch.float32
    assert torch.equal(numbers("shuffle", 5, torch.tensor(clients)[list(order)], size), together[list(order)])
    for row, client in enumerate(clients):
        assert torch.equal(numbers("shuffle", 5, torch.tensor([client]), size)[0], together[row])


@pytest.mark.parametrize(
    "draw",
    [
        "uniform",
        pytest.param("normal"),
    ],
)
@pytest.mark.parametrize("longer", [4, 5, 9])
def test_the_first_k_numbers_do_not_depend_on_how_many_are_drawn(draw: str, longer: int) -> None:
    numbers, clients = getattr(Streams(11), draw), torch.arange(3)
    whole = numbers("noise", 0, clients, longer)
    for size in range(1, longer):
        assert torch.equal(numbers("noise", 0, clients, size), whole[:, :size])


@pytest.mark.parametrize("draw", ["words", "uniform", "normal"])
@pytest.mark.parametrize(("first", "size"), [(0, 9), (1, 1), (3, 6), (4, 5), (7, 2), (9, 0)])
def test_numbers_from_the_middle_of_a_stream_are_the_same(draw: str, first: int, size: int) -> None:
    numbers, clients = getattr(Streams(11), draw), torch.tensor([4, 2**32 - 1])
    part, whole = numbers("noise", 3, clients, size, first), numbers("noise", 3, clients, 9)
    assert part.tolist() == whole[:, first : first + size].tolist()


def test_uniform_is_strictly_inside_0_and_1_at_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Word 0 gives (0 + 1/2) / 2**23 = 2**-24, word 2**32 - 1 gives (2**23 - 1 + 1/2) / 2**23 = 1 - 2**-24."""
    monkeypatch.setattr(Streams, "words", lambda *_: np.array([[0, ONES, 511, 512]], np.uint32))
    assert Streams(0).uniform("", 0, torch.tensor([0]), 4).tolist() == [[2**-24, 1 - 2**-24, 2**-24, 1.5 * 2**-23]]
    assert Streams(0).normal("", 0, torch.tensor([0]), 2).isfinite().all()


def test_moments_of_uniform_numbers() -> None:
    """n = 200,000: five standard deviations of mean and variance are 5 / sqrt(12 n) and 5 sqrt(1 / (180 n))."""
    numbers = Streams(1).uniform("moments", 0, torch.arange(1000), 200).double()
    n = numbers.numel()
    assert abs(numbers.mean() - 1 / 2) < 5 / (12 * n) ** 0.5
    assert abs(numbers.var() - 1 / 12) < 5 / (180 * n) ** 0.5


def test_moments_of_normal_numbers() -> None:
    """n = 200,000: the estimates' standard deviations are sqrt(1 / n), sqrt(2 / n), sqrt(15 / n), sqrt(96 / n)."""
    numbers = Streams(1).normal("moments", 0, torch.arange(1000), 200).double()
    n = numbers.numel()
    for power, expected, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(numbers.pow(power).mean() - expected) < 5 * (variance / n) ** 0.5


@pytest.mark.parametrize(
    "other",
    [
        lambda streams, clients: streams.uniform("a", 0, clients + 1000, 200),
        lambda streams, clients: streams.uniform("a", 1, clients, 200),
        lambda streams, clients: streams.uniform("a", -1, clients, 200),
        lambda streams, clients: streams.uniform("b", 0, clients, 200),
        lambda streams, clients: Streams(2).uniform("a", 0, clients, 200),
        lambda streams, clients: Streams(1 + 2**32).uniform("a", 0, clients, 200),
    ],
    ids=["client", "round", "setup round", "purpose", "seed", "high word of the seed"],
)
def test_different_streams_do_not_correlate(other: object) -> None:
    """The correlation of n = 100,000 independent pairs has standard deviation 1 / sqrt(n)."""
    streams, clients = Streams(1), torch.arange(500)
    pair = torch.stack([streams.uniform("a", 0, clients, 200).flatten(), other(streams, clients).flatten()])  # type: ignore[operator]
    assert abs(torch.corrcoef(pair.double())[0, 1]) < 5 / 100_000**0.5


@given(SEEDS, st.integers(0, 2**32 - 1))
def test_a_seed_for_a_library_has_63_bits(seed: int, client: int) -> None:
    streams = Streams(seed)
    assert 0 <= streams.seed_for("partition", client) < 2**63
    assert streams.seed_for("partition", client) == streams.seed_for("partition", client)
    assert streams.seed_for("partition", client) != streams.seed_for("initial_model", client)
