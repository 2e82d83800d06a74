"""Settings that apply in one mode only."""

from __future__ import annotations

from collections.abc import Mapping

OF_MODE: Mapping[str, tuple[str, ...]] = {
    "a star": ("federation.cohort",),
    "gossip": (
        "gossip.topology",
        "gossip.mixing",
        "gossip.keep",
        "gossip.protocol",
        "gossip.seed_agreement",
        "gossip.clock",
        "faults.loss",
        "faults.churn",
        "faults.churn_rounds",
        "faults.away",
        "byzantine.per_neighbour",
    ),
    "gossip in virtual time": (
        "virtual_time.training_ticks",
        "virtual_time.stragglers",
        "virtual_time.slowdown",
        "virtual_time.delay",
        "virtual_time.inbox",
        "virtual_time.age_decay",
    ),
}
"""Mode -> the settings that say something in it alone; in any other they must keep their defaults."""

HOW: Mapping[str, str] = {
    "a star": 'federation.mode = "star"',
    "gossip": 'federation.mode = "gossip"',
    "gossip in virtual time": 'federation.mode = "gossip" and gossip.clock = "events"',
}
"""Mode -> the settings that ask for it."""
