"""Pieces of text that several parts of the report use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import median

from fedgen.server.words import split_metric

LONGEST_TEXT = 400


def spread(values: Sequence[float]) -> str:
    low = min(values)
    middle = median(values)
    high = max(values)
    if low == high:
        return f"{low:,.0f}"
    return f"{low:,.0f} to {high:,.0f} (median {middle:,.6g})"


def clipped(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + " …"


def plain_value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def metric_words(name: str) -> str:
    split, base = split_metric(name)
    return f"{split} {base.replace('_', ' ')}"
