"""Formats numbers and names for people: units, metric names, printable text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import pairwise

from fedgen.amounts import counted as counted
from fedgen.amounts import human_bytes as human_bytes
from fedgen.amounts import human_count as human_count
from fedgen.tracking.record import NOT_FINITE

OUTCOMES = ("admitted", "late", "failed", "rejected")
OF_PEERS = ("p10_", "worst_", "consensus_")
"""Prefixes of metrics that compare gossip peers."""

STATE_MARKS = {"completed": "✓", "degraded": "▲", "failed": "✕", "stopped": "■", "running": "…"}


def leading_metric(names: Iterable[str]) -> str | None:
    """The metric to show first: test before validation before training; then accuracy, others, loss, peer metrics."""

    def order(name: str) -> tuple[int, int, str]:
        split, base = split_metric(name)
        rank = 3 if base.startswith(OF_PEERS) else {"accuracy": 0, "loss": 2}.get(base, 1)
        return ("test", "validation", "train").index(split), rank, base

    return min(names, key=order, default=None)


def split_metric(name: str) -> tuple[str, str]:
    """``validation_loss`` -> (``validation``, ``loss``); a name without a prefix belongs to the test set."""
    for split in ("validation", "train"):
        if name.startswith(split + "_"):
            return split, name[len(split) + 1 :]
    return "test", name


def is_share(name: str) -> bool:
    """Whether a metric is a share between 0 and 1, shown in per cent."""
    return name.lower().endswith(("accuracy", "backdoor_rate"))


def finite(value: object) -> float | None:
    """`value` as a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def numbers(mapping: object) -> dict[str, float]:
    """{printable name: finite number} of a mapping; empty for any other value."""
    if not isinstance(mapping, Mapping):
        return {}
    return {printable(name): number for name, value in mapping.items() if (number := finite(value)) is not None}


def measures(mapping: object) -> dict[str, float | str | None]:
    """{printable name: metric} of a mapping; empty for any other value.

    A metric is a finite number, one of `NOT_FINITE`, or None if it is undefined.
    """
    if not isinstance(mapping, Mapping):
        return {}
    found: dict[str, float | str | None] = {}
    for name, value in mapping.items():
        if value is None or value in NOT_FINITE:
            found[printable(name)] = value
        elif (number := finite(value)) is not None:
            found[printable(name)] = number
        elif isinstance(value, float):
            found[printable(name)] = "NaN" if math.isnan(value) else NOT_FINITE[1 + (value < 0)]
    return found


def round_name(round: int) -> str:
    """-1 -> ``before training``; 3 -> ``round 3``. The first round of training is round 0."""
    return "before training" if round < 0 else f"round {round}"


def in_round(round: int) -> str:
    return round_name(round) if round < 0 else f"in {round_name(round)}"


def members_of(mode: object) -> str:
    """The participants: peers in gossip, else clients."""
    return "peers" if mode == "gossip" else "clients"


def printable(text: object) -> str:
    """`text` on one line without control characters, as messages may quote untrusted clients."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def human_seconds(seconds: float) -> str:
    """200 -> ``3 min 20 s``."""
    if abs(seconds) < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if abs(seconds) < 59.95:
        return f"{seconds:.1f} s" if abs(seconds) < 9.95 else f"{seconds:.0f} s"
    if abs(seconds) > 1e10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def human_metric(name: str, value: float | str | None) -> str:
    """An accuracy in per cent, other numbers with four significant digits, a word for no number."""
    if value is None:
        return "undefined"
    if isinstance(value, str):
        return f"not finite ({value})"
    return f"{100 * value:.2f} %" if is_share(name) and abs(value) < 1e6 else f"{value:.4g}"


def sparkline(values: list[float], width: int) -> str:
    """`values` as at most `width` block characters, each for the mean of some values."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [index * len(values) // count for index in range(count + 1)]
    means = [sum(value / (end - begin) for value in values[begin:end]) for begin, end in pairwise(edges)]
    low = min(means)
    high = max(means)
    # Halved, because the difference of two finite numbers may overflow.
    span = high / 2 - low / 2
    levels = [0 if span <= 0 else int(7.999 * ((mean / 2 - low / 2) / span)) for mean in means]
    return "".join("▁▂▃▄▅▆▇█"[min(7, max(0, level))] for level in levels)
