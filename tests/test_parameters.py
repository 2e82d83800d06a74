"""Rows and named tensors: nothing is lost, nothing is copied, and canonical memory holds the same numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedgen.parameters import ALIGNMENT_BYTES, Layout, canonical

SHAPES = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple)
LAYOUTS = st.lists(SHAPES, min_size=1, max_size=5).map(
    lambda shapes: Layout({f"t{i}": s for i, s in enumerate(shapes)})
)
LEADS = st.lists(st.integers(0, 3), max_size=2).map(tuple)


def rows_of(layout: Layout, lead: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    shape = (*lead, layout.size)
    return torch.arange(torch.Size(shape).numel(), dtype=dtype).reshape(shape)


@given(LAYOUTS, LEADS, st.sampled_from([torch.float32, torch.float64, torch.int8]))
def test_view_and_flatten_are_inverse(layout: Layout, lead: tuple[int, ...], dtype: torch.dtype) -> None:
    rows = rows_of(layout, lead, dtype)
    tensors = layout.view(rows)
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        name: torch.Size([*lead, *shape]) for name, shape in layout.shapes.items()
    }
    back = layout.flatten(tensors)
    assert back.dtype == dtype
    assert torch.equal(back, rows)


def test_columns_follow_the_order_of_the_names() -> None:
    """weight takes columns 0 .. 5 row by row, bias 6 .. 7."""
    tensors = Layout({"weight": (2, 3), "bias": (2,)}).view(torch.arange(8.0))
    assert tensors["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["bias"].tolist() == [6, 7]


@given(LAYOUTS, LEADS)
def test_views_share_the_rows_memory(layout: Layout, lead: tuple[int, ...]) -> None:
    rows = rows_of(layout, lead)
    for tensor in layout.view(rows).values():
        tensor.add_(1)
    assert torch.equal(rows, rows_of(layout, lead) + 1)


@given(LAYOUTS, LEADS)
def test_flatten_copies(layout: Layout, lead: tuple[int, ...]) -> None:
    tensors = layout.view(rows_of(layout, lead))
    layout.flatten(tensors).fill_(-1)
    assert all((tensor >= 0).all() for tensor in tensors.values())


@pytest.mark.parametrize("lead", [(), (0,), (4,), (2, 3)], ids=str)
def test_scalars_take_one_column(lead: tuple[int, ...]) -> None:
    layout = Layout({"weight": (2,), "temperature": (), "bias": (1,)})
    rows = rows_of(layout, lead)
    tensors = layout.view(rows)
    assert tensors["temperature"].shape == torch.Size(lead)
    assert torch.equal(tensors["temperature"], rows[..., 2])
    assert torch.equal(layout.flatten(tensors), rows)


def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        Layout({"weight": (2,)}).view(torch.zeros(3))


@given(st.integers(0, 40), st.integers(0, 5), st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool]))
def test_canonical_is_contiguous_and_aligned_with_the_same_numbers(offset: int, rows: int, dtype: torch.dtype) -> None:
    numbers = torch.arange(300).to(dtype)
    for tensor in (numbers[offset:], numbers[offset : offset + 2 * rows].reshape(2, rows).T, numbers[offset::3]):
        made = canonical(tensor)
        assert made.is_contiguous()
        assert made.data_ptr() % ALIGNMENT_BYTES == 0
        assert made.dtype == dtype
        assert torch.equal(made, tensor)


def test_canonical_copies_only_where_it_must() -> None:
    made = canonical(torch.zeros(4, 3))
    assert canonical(made) is made
    shifted = torch.zeros(9)[1:]
    canonical(shifted).fill_(1)
    assert not shifted.any()
