"""Label flip: honest training on wrong labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack
from fedgen.contracts import Block, Facts, Samples
from fedgen.data.targets import TargetKind
from fedgen.errors import SettingError
from fedgen.registry import register


@register("attack", "label_flip")
@dataclass(frozen=True, kw_only=True)
class LabelFlip(BaseAttack):
    """Trains on labels turned round, class c as C - 1 - c, or on one class called another.

    y <- C - 1 - y for every sample of Byzantine clients;  with `source` and `target`: y <- target where y = source

    C: number of classes.

    >>> from types import SimpleNamespace
    >>> from fedgen.streams import Streams
    >>> y = torch.tensor([[0, 1, 2], [0, 1, 2]])
    >>> block = Block(torch.arange(2), torch.zeros(2, 1), Samples.of(y, y), torch.tensor([3, 3]), {}, 0, Streams(0))
    >>> facts = SimpleNamespace(targets=SimpleNamespace(classes=3))
    >>> LabelFlip(facts=facts).poison(block, torch.tensor([True, False])).y
    tensor([[2, 1, 0],
            [0, 1, 2]])

    Source: V. Tolpegin et al., arXiv 2007.08432 (2020), from source to target; the turned-round form is that of
    M. Fang et al., arXiv 1911.11815 (2020), experiments.
    """

    facts: Facts
    source: Annotated[int | None, Field(ge=0, description="class that is relabelled; all where left out")] = None
    target: Annotated[int | None, Field(ge=0, description="class that `source` is called")] = None
    takes: ClassVar[tuple[TargetKind, ...]] = ("classes",)

    def __post_init__(self) -> None:
        if (self.source is None) != (self.target is None):
            raise SettingError(
                f"byzantine.attack 'label_flip': source = {self.source} and target = {self.target}; give both, or "
                "neither to turn all classes round"
            )
        for name, number in (("source", self.source), ("target", self.target)):
            check_class("label_flip", name, number, self.facts.targets.classes)

    def poison(self, block: Block, byzantine: Tensor) -> Block:
        flipped = torch.where(byzantine[:, None] & block.mask, self._flipped(block.y), block.y)
        return replace(block, samples=Samples.of(block.x, flipped))

    def _flipped(self, y: Tensor) -> Tensor:
        if self.source is None or self.target is None:
            return self.facts.targets.classes - 1 - y
        return y.masked_fill(y == self.source, self.target)


def check_class(attack: str, name: str, number: int | None, classes: int) -> None:
    """Raises SettingError where the data have no class of that number."""
    if number is not None and number >= classes:
        raise SettingError(
            f"byzantine.attack {attack!r}: {name} = {number}, but the data have {classes} classes, numbered from 0"
        )
