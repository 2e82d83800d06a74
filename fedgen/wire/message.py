"""One client's update as bytes, and the checks before its numbers are used.

The bytes are a safetensors file: the length of a JSON header, the header, the row's tensors one after another. Round,
client and weight are its metadata. Nothing is executed by reading it.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from fedgen.device import on_host
from fedgen.parameters import Layout

Header = dict[str, Any]

METADATA = "__metadata__"
LENGTH_BYTES = 8
HEADER_BYTES_MOST = 1 << 24
"""Longest header that is parsed: the names of some hundred thousand tensors."""

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
}


class Malformed(ValueError):
    """A message that is not what the broadcast asked for; its text is the reason for which its client is rejected."""


def encode(row: Tensor, weight: float, layout: Layout, round: int, client: int) -> bytes:
    """row[d] of layout.dtype with round, client and weight, as bytes.

    >>> message = encode(torch.tensor([1.0, 2.0]), 20.0, Layout({"w": (2,)}), round=3, client=7)
    >>> decode(message, Layout({"w": (2,)}), round=3, client=7)
    (tensor([1., 2.]), 20.0)
    """
    metadata = {"round": str(round), "client": str(client), "weight": repr(weight)}
    return seal({METADATA: metadata, **_tensors(layout)}, on_host(row).contiguous().view(torch.uint8).numpy().tobytes())


def decode(message: bytes, expects: Layout, round: int, client: int) -> tuple[Tensor, float]:
    """(row[d], weight) of the one message that `client` sends in `round`; admission judges both.

    Raises Malformed.
    """
    header, payload = unseal(message)
    weight = _checked_metadata(header.pop(METADATA, None), round, client)
    _check_tensors(header, _tensors(expects))
    size_bytes = expects.size * expects.dtype.itemsize
    if len(payload) < size_bytes:
        raise Malformed(f"message is cut short: {len(payload)} bytes of numbers, expected {size_bytes}")
    if len(payload) > size_bytes:
        raise Malformed(f"message is followed by {len(payload) - size_bytes} bytes: a client sends one a round")
    if not size_bytes:
        return torch.empty(0, dtype=expects.dtype), weight
    return torch.frombuffer(bytearray(payload), dtype=expects.dtype), weight


def seal(header: Header, payload: bytes) -> bytes:
    """The bytes of a message from its parts."""
    text = json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(LENGTH_BYTES, "little") + text + payload


def unseal(message: bytes) -> tuple[Header, bytes]:
    """(header, payload) of any bytes that are a message in form.

    Raises Malformed.
    """
    length = int.from_bytes(message[:LENGTH_BYTES], "little")
    end = LENGTH_BYTES + length
    if len(message) < end or len(message) < LENGTH_BYTES or length > HEADER_BYTES_MOST:
        raise Malformed(f"message of {len(message)} bytes has no header")
    try:
        header = json.loads(message[LENGTH_BYTES:end])
    except (ValueError, RecursionError) as error:
        raise Malformed("message has a header that is no JSON") from error
    if not isinstance(header, dict):
        raise Malformed("message has a header that is no JSON object")
    return header, message[end:]


def _tensors(layout: Layout) -> Header:
    """What the header says of the row: {name: dtype, shape, place in the payload}."""
    itemsize = layout.dtype.itemsize
    dtype = DTYPES[layout.dtype]
    return {
        name: {"dtype": dtype, "shape": list(shape), "data_offsets": [itemsize * part.start, itemsize * part.stop]}
        for name, (part, shape) in layout.columns.items()
    }


def _checked_metadata(metadata: object, round: int, client: int) -> float:
    """The weight.

    Raises Malformed.
    """
    told = metadata if isinstance(metadata, dict) else {}
    for name, expected in (("round", round), ("client", client)):
        if told.get(name) != str(expected):
            raise Malformed(f"message is of {name} {_quoted(told.get(name))}, expected '{expected}'")
    try:
        return float(told["weight"])
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed(f"message has the weight {_quoted(told.get('weight'))}, expected a number") from error


def _check_tensors(got: Header, expected: Header) -> None:
    missing = next((name for name in expected if name not in got), None)
    if missing is not None:
        raise Malformed(f"message has no tensor {_quoted(missing)}")
    unknown = next((name for name in got if name not in expected), None)
    if unknown is not None:
        raise Malformed(f"message has a tensor {_quoted(unknown)} that nobody asked for")
    for name, wanted in expected.items():
        described = got[name] if isinstance(got[name], dict) else {}
        for key, value in wanted.items():
            if described.get(key) != value:
                raise Malformed(f"tensor {_quoted(name)} has {key} {_quoted(described.get(key))}, expected {value}")


def _quoted(value: object, most: int = 60) -> str:
    """repr(value), cut to the length of a reason, as its sender chose it."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."
