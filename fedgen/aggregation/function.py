"""A plain function as a rule: function(updates[n, d], f) -> [d]."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedgen.aggregation.base import BaseRule
from fedgen.contracts import Aggregation, Context, Rows
from fedgen.errors import FedgenError, SettingError
from fedgen.own_code import explained


@dataclass(frozen=True)
class FunctionRule(BaseRule):
    """The aggregate is what the function returns of all rows, [n, d] in memory, and f; weights are ignored.

    >>> from fedgen import aggregate
    >>> aggregate([[0.0, 1.0], [2.0, 9.0], [4.0, 5.0]], lambda updates, f: updates.median(0).values, f=1).aggregate
    tensor([2., 5.], dtype=torch.float64)

    Raises SettingError for a function that does not take two arguments, FedgenError where it returns anything but d
    numbers.
    """

    function: Callable[[Tensor, int], Any]

    def __post_init__(self) -> None:
        try:
            inspect.signature(self.function).bind(None, 0)
        except TypeError as error:
            raise SettingError(f"aggregation.rule {self.name!r} must be called as rule(updates, f): {error}") from error

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        updates = rows.collect().clone()  # which the function may write to
        try:
            aggregate = torch.as_tensor(self.function(updates, context.f)).detach().to(updates.device)
        except Exception as error:
            raise FedgenError(f"aggregation.rule {self.name!r} failed ({explained(error)})") from error
        if aggregate.shape != updates.shape[1:] or aggregate.is_complex():
            raise FedgenError(
                f"aggregation.rule {self.name!r} must return [{updates.shape[1]}] numbers for updates "
                f"{list(updates.shape)}; it returned {list(aggregate.shape)} of {aggregate.dtype}"
            )
        return Aggregation(aggregate.to(updates.dtype))
