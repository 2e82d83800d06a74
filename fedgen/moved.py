"""Keys of the experiment file that have moved to another table."""

from __future__ import annotations

from collections.abc import Mapping

_FROM_FEDERATION: Mapping[str, tuple[str, ...]] = {
    "gossip": ("topology", "mixing", "keep", "protocol", "seed_agreement", "clock"),
    "virtual_time": ("training_ticks", "stragglers", "slowdown", "delay", "inbox", "age_decay"),
    "faults": ("loss", "churn", "churn_rounds", "away"),
}

MOVED: Mapping[str, str] = {
    f"federation.{key}": f"{table}.{key}" for table, keys in _FROM_FEDERATION.items() for key in keys
}
"""Old path -> new path."""
