"""Builds the view of an attack, the same for a block, a round, an inbox and the answer to a pull."""

from __future__ import annotations

from torch import Tensor

from fedgen.contracts import Context, View
from fedgen.federation import Federation
from fedgen.parameters import Tensors


def view_of(
    federation: Federation,
    context: Context,
    weights: Tensor,
    *,
    memory: Tensors | None = None,
    receiver: int | None = None,
    start: Tensor | None = None,
) -> View:
    """The view of the rows that `context` describes, with weights[n]; other arguments as in `View`."""
    byzantine = federation.byzantine_among(context.clients, context.round)
    return View(byzantine, weights, context, federation.rule, memory or {}, receiver, start)
