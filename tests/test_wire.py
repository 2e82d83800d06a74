"""Messages: what is encoded comes back bit for bit, and whatever else comes is refused with a reason."""

from __future__ import annotations

from math import inf, isnan, nan
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from fedgen.attacks.forged import Forged
from fedgen.parameters import Layout
from fedgen.registry import parameters
from fedgen.wire.message import DTYPES, Malformed, decode, encode, seal, unseal

LAYOUT = Layout({"weight": (2, 3), "bias": (2,), "steps": ()})
MESSAGE = encode(torch.arange(9.0), 20.0, LAYOUT, round=3, client=7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    layout = Layout(LAYOUT.shapes, dtype)
    row = (50 * torch.randn(9, generator=torch.Generator().manual_seed(0))).to(dtype)
    got, weight = decode(encode(row, 0.1, layout, -2, 2**31), layout, -2, 2**31)
    assert got.dtype == dtype
    assert torch.equal(got, row)
    assert weight == 0.1


@pytest.mark.parametrize("weight", [nan, inf, -1.0, 1e-300, 5e-324, 0.1 + 0.2])
def test_any_number_is_a_weight_until_admission_looks_at_it(weight: float) -> None:
    row = torch.tensor([nan, inf, -inf])
    got, told = decode(encode(row, weight, Layout({"w": (3,)}), 0, 0), Layout({"w": (3,)}), 0, 0)
    assert torch.equal(got.isnan(), row.isnan())
    assert told == weight or (isnan(told) and isnan(weight))


def test_a_row_without_columns_is_a_message_too() -> None:
    assert decode(encode(torch.empty(0), 1.0, Layout({}), 0, 0), Layout({}), 0, 0)[0].shape == (0,)


def test_a_message_is_a_safetensors_file() -> None:
    tensors = load(MESSAGE)
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        "weight": [[0, 1, 2], [3, 4, 5]],
        "bias": [6, 7],
        "steps": 8,
    }


def test_what_is_decoded_can_be_written_to() -> None:
    row, _ = decode(MESSAGE, LAYOUT, 3, 7)
    row += 1
    assert row[0] == 1


HEADER, PAYLOAD = unseal(MESSAGE)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"", "message of 0 bytes has no header"),
        (b"\xff" * 20, "message of 20 bytes has no header"),
        (MESSAGE[:40], "message of 40 bytes has no header"),
        ((4).to_bytes(8, "little") + b"{{{{", "header that is no JSON"),
        ((2).to_bytes(8, "little") + b"\xff\xff", "header that is no JSON"),
        ((2).to_bytes(8, "little") + b"[]", "header that is no JSON object"),
        ((200_000).to_bytes(8, "little") + b"[" * 200_000, "header that is no JSON"),
        (seal({}, PAYLOAD), "message is of round None, expected '3'"),
        (seal({**HEADER, "__metadata__": []}, PAYLOAD), "message is of round None, expected '3'"),
        (
            seal({**HEADER, "__metadata__": {"round": "3", "client": "7"}}, PAYLOAD),
            "the weight None, expected a number",
        ),
        (
            seal({**HEADER, "__metadata__": {"round": "3", "client": "7", "weight": "x" * 999}}, PAYLOAD),
            r"the weight 'x{56}\.\.\., expected",
        ),
        (seal({**HEADER, "more": HEADER["bias"]}, PAYLOAD), "a tensor 'more' that nobody asked for"),
        (seal({**HEADER, "bias": 5}, PAYLOAD), "tensor 'bias' has dtype None, expected F32"),
        (seal({**HEADER, "bias": {**HEADER["bias"], "data_offsets": [0, 8]}}, PAYLOAD), r"data_offsets \[0, 8\]"),
        (MESSAGE[:-4], "cut short: 32 bytes of numbers, expected 36"),
        (MESSAGE + b"x", "followed by 1 bytes"),
    ],
)
def test_a_malformed_message_says_why(message: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        decode(message, LAYOUT, round=3, client=7)


@pytest.mark.parametrize("kind", parameters(Forged).model_fields["kind"].annotation.__args__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_every_forgery_is_malformed(kind: str, dtype: torch.dtype) -> None:
    layout = Layout(LAYOUT.shapes, dtype)
    message = encode(torch.zeros(9, dtype=dtype), 1.0, layout, 0, 0)
    forged = Forged(kind=kind).forge(message)  # type: ignore[arg-type]
    assert forged != message
    with pytest.raises(Malformed):
        decode(forged, layout, 0, 0)


@given(st.binary(max_size=80))
def test_any_bytes_are_malformed(message: bytes) -> None:
    with pytest.raises(Malformed):
        decode(message, LAYOUT, 3, 7)


@given(st.integers(0, len(MESSAGE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_found_or_is_a_number(place: int, change: int) -> None:
    """Nothing but Malformed comes out; a change of the numbers themselves is admission's business."""
    changed = bytearray(MESSAGE)
    changed[place] ^= change
    try:
        row, weight = decode(bytes(changed), LAYOUT, 3, 7)
    except Malformed:
        return
    assert row.shape == (9,)
    assert isinstance(weight, float)


def test_nothing_is_executed_by_reading() -> None:
    """No pickle in the file that strangers' bytes pass through."""
    source = (Path(__file__).resolve().parents[1] / "fedgen/wire/message.py").read_text()
    assert "pickle" not in source
    assert "torch.load" not in source
