"""Chooses the loop of an experiment."""

from __future__ import annotations

from fedgen.config import Experiment
from fedgen.federation import Federation
from fedgen.server.rounds.gossip import Gossip
from fedgen.server.rounds.loop import Loop
from fedgen.server.rounds.star import Star
from fedgen.server.rounds.virtual_time import VirtualTime

LOOPS: dict[tuple[str, str], Loop] = {
    ("star", "rounds"): Star(),
    ("gossip", "rounds"): Gossip(),
    ("gossip", "events"): VirtualTime(),
}
"""(federation.mode, gossip.clock) -> loop."""


def loop_of(experiment: Experiment) -> Loop:
    return LOOPS[experiment.federation.mode, experiment.gossip.clock]


def checked(experiment: Experiment) -> Federation:
    """The federation of an experiment, checked by its loop.

    Raises SettingError if the loop cannot play it.
    """
    federation = Federation(experiment)
    loop_of(experiment).check(federation)
    return federation
