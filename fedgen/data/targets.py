"""What the targets of a data set are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

TargetKind = Literal["classes", "numbers", "labels", "tokens"]
KINDS: tuple[TargetKind, ...] = get_args(TargetKind)

IGNORED = -100
"""In place of a token that is not to be predicted, as torch has it."""

_FORMS: dict[str, tuple[torch.dtype, int, str]] = {
    "classes": (torch.int64, 1, "int64[s], one class number a sample"),
    "numbers": (torch.float32, 1, "float32[s] or float32[s, ...], numbers"),
    "labels": (torch.float32, 2, "float32[s, labels], each 0 or 1"),
    "tokens": (torch.int64, 2, f"int64[s, t], token numbers, {IGNORED} for those that do not count"),
}
"""kind -> dtype, least dimensions (of "numbers" any more), and both in words."""


@dataclass(frozen=True)
class Targets:
    """What a model is to predict.

    "classes": y[s] int64, one of `names`.  "numbers": y[s, ...] float32, regression.  "labels": y[s, c] float32, 1 for
    those of `names` that a sample has, else 0.  "tokens": y[s, t] int64, of each place one of `names`, or IGNORED.

    outputs: how many numbers a model gives for a sample, of tokens for each place.  variance: of training numbers, the
    mean over those of a sample; 1 for other kinds.
    """

    kind: TargetKind
    outputs: int
    names: tuple[str, ...] = ()
    variance: float = 1.0

    @property
    def classes(self) -> int:
        """How many classes, labels or tokens there are; 0 for numbers."""
        return len(self.names)

    @classmethod
    def of(cls, kind: TargetKind, names: tuple[str, ...], y: Tensor) -> Targets:
        """Of training targets that passed `complaint`."""
        if kind != "numbers":
            return cls(kind, len(names), names)
        flat = y.flatten(1) if y.dim() > 1 else y[:, None]
        variance = float(flat.double().var(0, correction=0).mean())
        return cls(kind, flat.shape[1], variance=variance)


def fitting(kind: TargetKind, y: Tensor) -> Tensor:
    """Targets in the dtype of their kind, where theirs is another of the same sort: whole numbers for classes and
    tokens, any real ones for numbers and labels."""
    wanted = _FORMS[kind][0]
    sort = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    return y.to(wanted) if sort or (wanted.is_floating_point and not y.is_complex()) else y


def complaint(kind: TargetKind, names: tuple[str, ...], y: Tensor) -> str:
    """What is wrong with targets of that kind, in words; "" where nothing is."""
    dtype, dimensions, words = _FORMS[kind]
    if y.dtype != dtype or y.dim() < dimensions or (y.dim() > dimensions and kind != "numbers") or 0 in y.shape:
        return f"targets of kind {kind!r} are {words}; got {str(y.dtype).removeprefix('torch.')}{list(y.shape)}"
    if not names and kind != "numbers":
        return f"targets of kind {kind!r} need names, classes = (...), one for each number"
    if kind == "numbers":
        broken = (~torch.isfinite(y.reshape(len(y), -1)).all(1)).nonzero().flatten()
        return f"targets are NaN or infinite in {len(broken)} samples, first in {broken[0]}" if len(broken) else ""
    if kind == "labels":
        if y.shape[1] != len(names):
            return f"targets have {y.shape[1]} labels a sample, and {len(names)} are named"
        return "" if bool(((y == 0) | (y == 1)).all()) else "targets of kind 'labels' are 0 or 1 each"
    counted = y if kind == "classes" else y[y != IGNORED]
    if kind == "tokens":
        silent = (y == IGNORED).all(1).nonzero().flatten()
        if len(silent):
            return (
                f"targets are all {IGNORED} in {len(silent)} samples, first in {silent[0]}: every sample needs a token "
                "that counts"
            )
    low = int(counted.min())
    high = int(counted.max())
    what = "labels" if kind == "classes" else "tokens"
    if low < 0 or high >= len(names):
        return f"{what} run from {low} to {high}, expected 0 to {len(names) - 1} for {len(names)} {kind}"
    return ""
