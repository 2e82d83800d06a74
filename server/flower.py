"""Every rule as a strategy of Flower: robust aggregation for an unmodified ClientApp.

Importing this module imports flwr; nothing else of fedgen does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedgen.admission import Limits, judge
from fedgen.aggregation.call import rule_of
from fedgen.aggregation.statistics import apply_rule
from fedgen.contracts import Context
from fedgen.parameters import Layout, Tensors
from fedgen.rows import LocalRows
from fedgen.streams import Streams

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # flwr's own imports
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg
    from flwr.supercore import log


@dataclass(frozen=True)
class Model:
    """The arrays that a round starts from: floating-point arrays as one row, others unchanged.

    Arrays named running_... are statistics, which do not affect the decisions of a rule. An array that is not finite,
    such as a mask of -inf, is a constant.
    """

    arrays: ArrayRecord
    layout: Layout
    row: Tensor

    @classmethod
    def of(cls, arrays: ArrayRecord) -> Model:
        values = {name: array.numpy() for name, array in arrays.items() if _floating(array)}
        values = {name: value for name, value in values.items() if np.isfinite(value).all()}
        dtype = torch.float64 if any(value.dtype == np.float64 for value in values.values()) else torch.float32
        layout = Layout.of_state({name: value.shape for name, value in values.items()}, dtype)
        return cls(arrays, layout, _flat(layout, values))

    def difference(self, arrays: ArrayRecord) -> Tensor:
        """The update of a client as a row.

        Raises ValueError for arrays with other names, shapes or dtypes.
        """
        if set(arrays) != set(self.arrays):
            odd = sorted(set(arrays) ^ set(self.arrays))
            raise ValueError(f"arrays have other names than the model: {', '.join(odd[:3])}")
        for name, array in arrays.items():
            wanted = self.arrays[name]
            if tuple(array.shape) != tuple(wanted.shape) or array.dtype != wanted.dtype:
                raise ValueError(f"array {name!r} is {array.dtype}{array.shape}, not {wanted.dtype}{wanted.shape}")
        return _flat(self.layout, {name: arrays[name].numpy() for name in self.layout.shapes}) - self.row

    def moved(self, update: Tensor) -> ArrayRecord:
        """The arrays after an aggregated update."""
        views = self.layout.view(self.row + update)
        for name in self.layout.variances:
            views[name].clamp_(min=0)
        return ArrayRecord(
            {
                name: Array(views[name].numpy().astype(array.dtype)) if name in views else array
                for name, array in self.arrays.items()
            }
        )


def _floating(array: Array) -> bool:
    return np.issubdtype(np.dtype(array.dtype), np.floating)


def _flat(layout: Layout, values: Mapping[str, Any]) -> Tensor:
    parts = [torch.from_numpy(np.array(values[name])).to(layout.dtype).flatten() for name in layout.shapes]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=layout.dtype)


class RuleStrategy(FedAvg):
    """FedAvg with another aggregation rule and admission of replies.

    Clients send models, as for FedAvg; the rule gets their differences from the model that was sent to them. A reply is
    rejected, with a reason in the log, if it has other names, shapes or dtypes, values that are not finite, a
    difference longer than norm_limit, or if the node has already replied. With too few replies for the rule the round
    is skipped and the model kept.

    rule, parameters, wrappers: as in `fedgen.aggregate`. f: number of Byzantine replies per round that the rule must
    tolerate, including rejected ones. weights: "equal", or "samples" for the value that clients report as
    `weighted_by_key`. root: ArrayRecord -> ArrayRecord, trains on the server's own data for rules that trust such an
    update. Other keywords as for FedAvg.

    >>> strategy = RuleStrategy("flag", f=2, wrappers=["nnm"], fraction_evaluate=0.5)

    Raises SettingError for unknown names and parameters of rules.
    """

    def __init__(
        self,
        rule: Any = "mean",
        *,
        f: int = 0,
        wrappers: Sequence[str | Mapping[str, Any]] = (),
        parameters: Mapping[str, Any] | None = None,
        weights: str = "equal",
        norm_limit: float = inf,
        seed: int = 0,
        root: Callable[[ArrayRecord], ArrayRecord] | None = None,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        if weights not in ("equal", "samples"):
            raise ValueError(f"weights must be 'equal' or 'samples', got {weights!r}")
        if f < 0:
            raise ValueError(f"f is the number of Byzantine replies per round, at least 0; got {f}")
        self.rule = rule_of(rule, wrappers, parameters or {})
        self.f = f
        self.root = root
        if root is None and self.rule.root_samples:
            raise ValueError(f"rule {rule!r} needs the server's own update: give root, which trains the arrays")
        self.weights = weights
        self.norm_limit = norm_limit
        self.streams = Streams(seed)
        self.memory: Tensors = {}
        self.numbers: dict[int, int] = {}
        self.model: Model | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self.model = Model.of(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        assert self.model is not None, "call configure_train first"
        valid, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        kept, rows, weights, rejected = self._admitted(self.model, valid)
        for node, reason in rejected.items():
            log(WARNING, "\t> Left out node %d: %s", node, reason)
        allowed = max(0, self.f - len(rejected))
        needed = max(1, self.rule.minimum(allowed))
        metrics = _means([reply.content for reply in kept])
        metrics["rejected"] = len(rejected)
        if len(kept) < needed:
            log(WARNING, "\t> Round skipped: %d replies, the rule needs %d for f = %d", len(kept), needed, allowed)
            return None, metrics
        clients = torch.tensor([self._number(reply.metadata.src_node_id) for reply in kept])
        own = None if self.root is None else self.model.difference(self.root(self.model.arrays))
        context = Context(
            self.model.row, self.model.layout, clients, allowed, self.memory, server_round, self.streams, own
        )
        result = apply_rule(self.rule, LocalRows(rows), weights, context)
        self.memory = result.memory
        return self.model.moved(result.aggregate), metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        valid, _ = self._check_and_log_replies(replies, is_train=False, validate=False)
        return _means([reply.content for reply in valid]) if valid else None

    def summary(self) -> None:
        log(INFO, "\t├──> Rule: %s, f = %d, weights = %s", self.rule, self.f, self.weights)
        super().summary()

    def _number(self, node: int) -> int:
        """A 32-bit client number for random streams, as node ids have 64 bits."""
        return self.numbers.setdefault(node, len(self.numbers))

    def _admitted(
        self, model: Model, replies: Sequence[Message]
    ) -> tuple[list[Message], Tensor, Tensor, dict[int, str]]:
        """(replies by node, their rows, weights, reasons of rejected replies)."""
        kept: list[Message] = []
        rows = []
        weights = []
        rejected = {}
        for reply in sorted(replies, key=lambda message: message.metadata.src_node_id):
            node = reply.metadata.src_node_id
            try:
                if kept and kept[-1].metadata.src_node_id == node:
                    raise ValueError("a second reply in one round")
                row = model.difference(_only(reply.content, "array"))
                weight = self._weight(reply.content)
            except ValueError as error:
                rejected[node] = str(error)
                continue
            kept.append(reply)
            rows.append(row)
            weights.append(weight)
        matrix = torch.stack(rows) if rows else torch.zeros(0, model.layout.size, dtype=model.layout.dtype)
        shares = torch.tensor(weights, dtype=torch.float64)
        admission = judge(LocalRows(matrix), shares, model.row, model.layout, Limits(self.norm_limit, inf))
        rejected |= {kept[place].metadata.src_node_id: reason for place, reason in admission.reasons.items()}
        mask = admission.mask
        admitted = [reply for reply, good in zip(kept, mask.tolist(), strict=True) if good]
        return admitted, matrix[mask], shares[mask], rejected

    def _weight(self, content: RecordDict) -> float:
        if self.weights == "equal":
            return 1.0
        weight = _only(content, "metric").get(self.weighted_by_key)
        if not isinstance(weight, int | float):
            raise ValueError(f"no number {self.weighted_by_key!r} among the metrics")
        return float(weight)


def _only(content: RecordDict, kind: str) -> Any:
    """The only array or metric record of a reply.

    Raises ValueError if it has none or several.
    """
    records = list((content.array_records if kind == "array" else content.metric_records).values())
    if len(records) != 1:
        raise ValueError(f"{len(records)} {kind} records instead of one")
    return records[0]


def _means(contents: Sequence[RecordDict]) -> MetricRecord:
    """Unweighted mean of every number that all replies report."""
    reports = [dict(next(iter(content.metric_records.values()), {})) for content in contents]
    shared = [
        name
        for name in (reports[0] if reports else {})
        if all(isinstance(report.get(name), int | float) for report in reports)
    ]
    return MetricRecord({name: float(np.mean([report[name] for report in reports])) for name in shared})
