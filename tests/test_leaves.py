"""Records that are taken apart and put together again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedgen.federation import Federation
from fedgen.leaves import Held, Leaf, put_together, taken_apart, with_leaves
from fedgen.server.pools.pool import Interrupt, SerialPool


@dataclass(frozen=True)
class Inner:
    numbers: dict[str, int]
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    several: list[Any] = field(default_factory=list)
    count: int = 0


def records() -> st.SearchStrategy[Any]:
    leaves = st.integers() | st.text(max_size=3) | st.none()
    inner = st.builds(
        Inner, st.dictionaries(st.text(max_size=2), st.integers(), max_size=3), st.tuples(st.text(max_size=2))
    )
    return st.recursive(
        leaves | inner,
        lambda each: (
            st.lists(each, max_size=3)
            | st.dictionaries(st.text(max_size=2), each, max_size=3)
            | st.tuples(each, each)
            | st.builds(Outer, inner, st.lists(each, max_size=2), st.integers())
        ),
        max_leaves=12,
    )


@given(records(), st.integers(0, 5))
def test_what_is_taken_apart_can_be_put_together(record: Any, first: int) -> None:
    outline, leaves = taken_apart(record, int, first)
    assert put_together(outline, [None] * first + leaves) == record
    assert all(isinstance(leaf, int) for leaf in leaves)
    places: list[int] = []
    with_leaves(outline, Leaf, lambda leaf: places.append(leaf.number))
    assert places == list(range(first, first + len(leaves)))


@given(records())
def test_a_record_without_leaves_is_the_same_object(record: Any) -> None:
    assert with_leaves(record, float, lambda leaf: leaf + 1) is record


def test_classes_and_other_objects_are_left_alone() -> None:
    thing = object()
    record = {"class": Inner, "thing": thing, "text": "abc"}
    assert with_leaves(record, int, lambda leaf: -leaf) is record


def double(federation: Federation, shared: Outer, item: Held[Tensor]) -> Tensor:
    return shared.several[0] * item.value


def test_the_serial_pool_aligns_what_is_shared(federation: Federation) -> None:
    """Bits depend on alignment: tensors inside a record are as they would be if they had travelled."""
    crooked = torch.arange(9.0)[1:].view(2, 4).T
    seen: list[Tensor] = []

    def task(federation: Federation, shared: Outer, item: int) -> None:
        seen.append(shared.several[0])

    assert list(SerialPool(federation, Interrupt()).map(task, [0], Outer(Inner({}), [crooked]))) == [None]
    assert torch.equal(seen[0], crooked)
    assert seen[0].is_contiguous()
    assert seen[0].data_ptr() % 64 == 0


@pytest.mark.parametrize("keep", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_records_cross_to_ray_workers_and_back(cluster: None, federation: Federation, keep: int) -> None:
    """Shared tensors come once, handles of what stayed are resolved inside later items."""
    from fedgen.server.pools.ray_pool import RayPool

    pool = RayPool(federation, 2, Interrupt())
    try:
        shared = Outer(Inner({"a": 1}), [torch.arange(4.0)], 3)
        results = list(pool.map(kept if keep else plain, [1, 2, 3], shared, keep))
        if keep:
            assert [torch.equal(pool.fetch(each.several[0]), torch.arange(4.0) * each.count) for each in results] == [
                True
            ] * 3
            again = list(pool.map(double, [each.several[0] for each in results], shared))
            assert torch.equal(again[2], 3 * torch.arange(4.0) ** 2)
        else:
            assert [(each.count, each.several[0].tolist()) for each in results] == [
                (number, [0.0, number, 2.0 * number, 3.0 * number]) for number in (1, 2, 3)
            ]
        first, again_first = pool._sent(shared), pool._sent(shared)
        assert first.handles == again_first.handles, "an unchanged tensor keeps its handle"
    finally:
        pool.close()


def plain(federation: Federation, shared: Outer, item: int) -> Outer:
    return Outer(shared.inner, [shared.several[0] * item], item)


def kept(federation: Federation, shared: Outer, item: int) -> Outer:
    return Outer(shared.inner, [Held(shared.several[0] * item)], item)
