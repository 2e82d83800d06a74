"""No attack."""

from __future__ import annotations

from dataclasses import dataclass

from fedgen.attacks.base import BaseAttack
from fedgen.registry import register


@register("attack", "none")
@dataclass(frozen=True, kw_only=True)
class NoAttack(BaseAttack):
    """Byzantine clients behave like honest ones."""
