"""Forged messages: honest numbers in bytes that are not what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fedgen.attacks.base import BaseAttack
from fedgen.registry import register
from fedgen.wire.message import METADATA, Header, seal, unseal


@register("attack", "forged")
@dataclass(frozen=True, kw_only=True)
class Forged(BaseAttack):
    """Sends a malformed message, which decoding turns away, and its client with it.

    "names": a tensor under another name; "shape": with one more dimension; "dtype": the same bytes as another type;
    "round": a stale message of the round before; "client": in a neighbour's name; "duplicate": the message twice;
    "truncated": without its last byte; "garbled": its bytes from back to front.

    Where an attack forges, every update of its block is encoded and decoded, the honest ones too.

    >>> import torch
    >>> from fedgen.parameters import Layout
    >>> from fedgen.wire.message import decode, encode
    >>> message = encode(torch.zeros(2), 1.0, Layout({"w": (2,)}), round=3, client=7)
    >>> decode(Forged(kind="round").forge(message), Layout({"w": (2,)}), round=3, client=7)
    Traceback (most recent call last):
    fedgen.wire.message.Malformed: message is of round '2', expected '3'
    """

    kind: Annotated[
        Literal["names", "shape", "dtype", "round", "client", "duplicate", "truncated", "garbled"],
        Field(description="what is wrong with the message"),
    ] = "shape"

    def forger(self) -> Callable[[bytes], bytes] | None:
        return self.forge

    def forge(self, message: bytes) -> bytes:
        """The message that one Byzantine client sends."""
        match self.kind:
            case "duplicate":
                return message * 2
            case "truncated":
                return message[:-1]
            case "garbled":
                return message[::-1]
        header, payload = unseal(message)
        return seal(_changed(header, self.kind), payload)


def _changed(header: Header, kind: str) -> Header:
    metadata = header[METADATA]
    name = next(name for name in header if name != METADATA)
    tensor = header[name]
    match kind:
        case "round":
            return {**header, METADATA: {**metadata, "round": str(int(metadata["round"]) - 1)}}
        case "client":
            return {**header, METADATA: {**metadata, "client": str(int(metadata["client"]) + 1)}}
        case "names":
            return {f"{name}.forged" if each == name else each: value for each, value in header.items()}
        case "shape":
            return {**header, name: {**tensor, "shape": [1, *tensor["shape"]]}}
        case _:
            return {**header, name: {**tensor, "dtype": "F32" if tensor["dtype"] == "I32" else "I32"}}
