"""Rows in one memory and in slices on workers: plain torch is the reference, and both give the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedgen import registry
from fedgen.aggregation.mean import Mean
from fedgen.contracts import Columns, Context, Rows, View
from fedgen.federation import Federation
from fedgen.leaves import Held
from fedgen.parameters import Layout
from fedgen.rows import Combine, LocalRows, Select, columns_of, total
from fedgen.server.pools.pool import Interrupt, SerialPool
from fedgen.server.pools.sliced_rows import SlicedRows
from fedgen.streams import Streams

SIZES = {"n": st.integers(0, 7), "d": st.integers(0, 300), "width": st.sampled_from([1, 7, 64, 128, 512])}
DTYPES = st.sampled_from([torch.float32, torch.float64])


def matrix(n: int, d: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed + 1000 * n + d), dtype=torch.float64).to(
        dtype
    )


def sliced(federation: Federation, data: Tensor, width: int, blocks: list[int]) -> SlicedRows:
    """The rows as workers hold them after a round, `blocks` rows a block."""
    columns = columns_of(data.shape[1], width)
    slabs = [[Held(part[:, each].contiguous()) for part in data.split(blocks)] for each in columns]
    pool = SerialPool(federation, Interrupt())
    return SlicedRows(pool, tuple(map(tuple, slabs)), data.shape[1], width)


def cut(n: int, data: st.DataObject) -> list[int]:
    """Sizes of blocks that hold n rows together; some may be empty."""
    edges = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    return [after - before for before, after in zip([0, *edges], [*edges, n], strict=True)]


def weighted(slab: Tensor, columns: Columns) -> Tensor:
    """A function that needs its columns: column j times j + 1."""
    return slab * torch.arange(columns.start + 1, columns.stop + 1, dtype=slab.dtype)


def same_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and bytes_of(first) == bytes_of(second)


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()


@given(st.integers(0, 500), st.integers(1, 200))
def test_slices_cover_every_column_once(size: int, width: int) -> None:
    columns = columns_of(size, width)
    assert [number for each in columns for number in range(size)[each]] == list(range(size))
    assert len(columns) == max(1, -(-size // width))
    assert all(each.stop - each.start == width for each in columns[:-1])


@given(**SIZES, dtype=DTYPES)
def test_local_rows_are_what_plain_torch_says(n: int, d: int, width: int, dtype: torch.dtype) -> None:
    """float64 sums of float64 products: relative to the lengths, they agree within 1e-13."""
    data = matrix(n, d, dtype)
    rows, wide = LocalRows(data, width), data.double()
    lengths = wide.square().sum(1).sqrt()
    assert rows.size == d
    assert torch.equal(rows.collect(), data)
    assert rows.gram().dtype == rows.norms().dtype == torch.float64
    assert ((rows.gram() - wide @ wide.T).abs() <= 1e-13 * lengths[:, None] * lengths).all()
    torch.testing.assert_close(rows.norms(), lengths, rtol=1e-13, atol=0)


@given(**SIZES, dtype=DTYPES)
def test_maps_are_what_plain_torch_says(n: int, d: int, width: int, dtype: torch.dtype) -> None:
    data, rows = matrix(n, d, dtype), LocalRows(matrix(n, d, dtype), width)
    expected = data * torch.arange(1, d + 1, dtype=dtype)
    assert torch.equal(rows.map(weighted).collect(), expected)
    assert torch.equal(rows.map(weighted).map(weighted).collect(), expected * torch.arange(1, d + 1, dtype=dtype))
    torch.testing.assert_close(rows.map(weighted).norms(), expected.double().norm(dim=1), rtol=1e-12, atol=0)
    odd = torch.arange(n) % 2 == 1
    assert torch.equal(rows.map(Select(odd)).collect(), data[1::2])
    sums = rows.map(total).collect()
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, data.double().sum(0, keepdim=True), rtol=0, atol=1e-13 * max(n, 1) * 10)
    shares = torch.arange(2.0 * n).reshape(2, n)
    torch.testing.assert_close(rows.map(Combine(shares)).collect(), shares.to(dtype) @ data, rtol=1e-5, atol=1e-4)


def test_a_map_waits_until_its_result_is_asked_for() -> None:
    calls = []
    rows = LocalRows(torch.ones(2, 100), 64).map(lambda slab, columns: calls.append(columns) or slab)
    assert calls == []
    rows.collect()
    assert calls == [slice(0, 64), slice(64, 100)]


def test_reductions_and_maps_leave_the_rows_alone() -> None:
    data = matrix(4, 100)
    before = data.clone()
    rows = LocalRows(data, 64)
    for value in (rows.gram(), rows.norms(), rows.map(weighted).collect(), rows.map(total).collect()):
        value.fill_(7)
    assert torch.equal(data, before)


def test_hand_derived_gram_and_norms_over_two_slices() -> None:
    """Rows of 65 ones and 65 twos, cut after 64: products 65, 130, 260; lengths sqrt 65 and 2 sqrt 65."""
    rows = LocalRows(torch.tensor([[1.0], [2.0]]).expand(2, 65), 64)
    assert rows.gram().tolist() == [[65, 130], [130, 260]]
    assert rows.norms().tolist() == [65**0.5, 260**0.5]


def test_integer_rows_have_lengths() -> None:
    assert LocalRows(torch.tensor([[3, 4]], dtype=torch.int8)).norms().tolist() == [5]


@pytest.mark.parametrize("where", ["local", "sliced"])
def test_maps_keep_the_columns(where: str, federation: Federation) -> None:
    data = matrix(5, 100)
    rows: Rows = LocalRows(data, 64) if where == "local" else sliced(federation, data, 64, [2, 3])
    kept = rows.map(Select(torch.tensor([True, False, True, True, False])))
    assert kept.size == 100
    assert kept.collect().shape == (3, 100)


@given(**SIZES, dtype=DTYPES, data=st.data())
@settings(max_examples=50)
def test_sliced_rows_give_the_bits_of_local_rows(
    federation: Federation, n: int, d: int, width: int, dtype: torch.dtype, data: st.DataObject
) -> None:
    numbers = matrix(n, d, dtype)
    local, spread = LocalRows(numbers, width), sliced(federation, numbers, width, cut(n, data))
    assert spread.size == local.size
    for there, here in ((spread, local), (spread.map(weighted), local.map(weighted))):
        assert same_bits(there.gram(), here.gram())
        assert same_bits(there.norms(), here.norms())
        assert same_bits(there.collect(), here.collect())
    assert same_bits(spread.map(total).collect(), local.map(total).collect())


OMNISCIENT = [name for name, attack in registry.members("attack").items() if getattr(attack, "omniscient", False)]


@pytest.mark.parametrize("name", OMNISCIENT)
@pytest.mark.parametrize("attackers", [[0], [1, 6], [0, 1, 2, 3, 4, 5, 6]], ids=str)
def test_every_omniscient_attack_gives_the_same_bits_in_slices(
    federation: Federation, name: str, attackers: list[int]
) -> None:
    attack = registry.build("attack", name, {}, facts=federation.facts)
    data, byzantine = matrix(7, 200), torch.zeros(7, dtype=torch.bool)
    byzantine[attackers] = True
    context = Context(torch.zeros(200), Layout({"row": (200,)}), torch.arange(7), 1, streams=Streams(0))
    view = View(byzantine, torch.ones(7, dtype=torch.float64), context, Mean())

    def sent(rows: Rows) -> tuple[Tensor, Tensor, Any]:
        lies, weights, memory = attack.corrupt(rows, view)
        return lies.collect(), weights, memory

    there, here = sent(sliced(federation, data, 64, [3, 4])), sent(LocalRows(data, 64))
    assert same_bits(there[0], here[0])
    assert same_bits(there[1], here[1])
    assert there[2].keys() == here[2].keys()


def test_some_attack_is_omniscient_and_some_rule_works_on_slices() -> None:
    """Else the tests above would pass by having no cases."""
    rules: dict[str, Callable[..., Any]] = dict(registry.members("rule"))
    assert OMNISCIENT
    assert any(not rule.linear for rule in rules.values())
