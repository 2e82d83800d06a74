"""Backdoor: a small mark in the picture makes the model predict the target; other predictions stay right."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedgen.attacks.base import BaseAttack, Distort, Scaled
from fedgen.attacks.label_flip import check_class
from fedgen.attacks.samples import drawn_samples, over_samples
from fedgen.contracts import Block, Facts, Rows, Samples, View
from fedgen.data.targets import TargetKind
from fedgen.errors import SettingError
from fedgen.parameters import Tensors
from fedgen.registry import register


@register("attack", "backdoor")
@dataclass(frozen=True, kw_only=True)
class Backdoor(BaseAttack):
    """Trains on samples with a trigger that are labelled `target`, and may boost the update to replace the model.

    for a drawn `share` of a Byzantine client's samples: x <- x with `size` x `size` pixels of `value` in a corner,
    y <- target;  g_i <- boost * g_i

    boost = 1 sends the trained update.  Model replacement takes boost = cohort / (Byzantine clients in it * server
    learning rate): then the mean is the attackers' model.  In samples that are no pictures, the first ("..._left") or
    last `size` features are the trigger.  The success is measured as `backdoor_rate`: the share of triggered
    test samples of other classes that the model predicts as `target`, where model.metrics has "accuracy".

    >>> import torch
    >>> from types import SimpleNamespace
    >>> facts = SimpleNamespace(targets=SimpleNamespace(classes=3), input_shape=(1, 2, 3))
    >>> x, y = Backdoor(facts=facts, size=1).triggered(torch.zeros(2, 1, 2, 3), torch.tensor([0, 2]))
    >>> x.tolist(), y.tolist()
    ([[[[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]], [0])

    Source: T. Gu, B. Dolan-Gavitt, S. Garg, BadNets, arXiv 1708.06733 (2017), section 3 (trigger); E. Bagdasaryan et
    al., arXiv 1807.00459 (2020), model replacement, with the factor n / eta.
    """

    facts: Facts
    target: Annotated[int, Field(ge=0, description="class that triggered samples are called")] = 0
    size: Annotated[int, Field(ge=1, description="side of the trigger, pixels or features")] = 3
    corner: Annotated[
        Literal["top_left", "top_right", "bottom_left", "bottom_right"], Field(description="where the trigger is")
    ] = "bottom_right"
    value: Annotated[
        float, Field(allow_inf_nan=False, description="brightness of the trigger, in the data's own units")
    ] = 1.0
    share: Annotated[float, Field(gt=0, le=1, description="share of a Byzantine client's samples with the trigger")] = (
        0.5
    )
    boost: Annotated[float, Field(gt=0, description="factor of the update that is sent")] = 1.0
    takes: ClassVar[tuple[TargetKind, ...]] = ("classes",)

    def __post_init__(self) -> None:
        check_class("backdoor", "target", self.target, self.facts.targets.classes)
        room = min(self.facts.input_shape[-2:])
        if self.size > room:
            raise SettingError(
                f"byzantine.attack 'backdoor': size = {self.size} does not fit samples of shape "
                f"{self.facts.input_shape}; give at most {room}"
            )

    def poison(self, block: Block, byzantine: Tensor) -> Block:
        chosen = drawn_samples(block, self.share, "backdoor") & byzantine[:, None]
        x = torch.where(over_samples(chosen, block.x), self._stamped(block.x), block.x)
        return replace(block, samples=Samples.of(x, block.y.masked_fill(chosen, self.target)))

    def corrupt(self, rows: Rows, view: View) -> tuple[Rows, Tensor, Tensors]:
        if self.boost == 1:
            return rows, view.weights, view.memory
        return rows.map(Distort.of(view, Scaled(self.boost))), view.weights, view.memory

    def triggered(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(x, y) of the samples of other classes, with the trigger and the target label."""
        others = y != self.target
        return self._stamped(x[others]), torch.full_like(y[others], self.target)

    def _stamped(self, x: Tensor) -> Tensor:
        """A copy of x[..., height, width] or x[..., features] with the trigger."""
        vertical, horizontal = self.corner.split("_")
        stamped = x.clone()
        columns = slice(None, self.size) if horizontal == "left" else slice(-self.size, None)
        if len(self.facts.input_shape) == 1:
            stamped[..., columns] = self.value
        else:
            stamped[..., slice(None, self.size) if vertical == "top" else slice(-self.size, None), columns] = self.value
        return stamped
