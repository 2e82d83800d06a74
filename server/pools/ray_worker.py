"""The worker in a Ray actor, and short forms of Ray's error messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedgen.clients.own_modules import OwnModules
from fedgen.clients.worker import Greeting, Worker
from fedgen.config import Experiment
from fedgen.federation import Federation
from fedgen.leaves import Held, put_together, taken_apart
from fedgen.server.pools.ray_cluster import register_serializer

Task = Callable[[Federation, Any, Any], object]

COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class RayWorker(Worker):
    """A worker as a Ray actor."""

    def __init__(self) -> None:
        import ray

        register_serializer(ray)

    def greet(self, setup: tuple[Experiment, OwnModules]) -> Greeting:
        import ray

        return replace(self.start(*setup), node=str(ray.util.get_node_ip_address()))  # type: ignore[no-untyped-call]

    def answer(self, keep: int, task: Task, outlines: tuple[object, object], *leaves: object) -> object:
        """The result or, with keep, (its outline, held value, ...)."""
        result = self.run(task, *put_together(outlines, leaves))
        if not keep:
            return result
        outline, held = taken_apart(result, Held)
        return (outline, *(leaf.value for leaf in held))


def in_short(error: Exception) -> str:
    """A long message of Ray in short: its first line, or the last line of a traceback in it."""
    lines = [line.strip() for line in COLOUR.sub("", str(error)).splitlines() if line.strip()]
    if "creation task" in str(error):  # "... ray::RayWorker.__init__() (pid=1, ip=10.0.0.5, ...)", then a traceback
        node = re.search(r"ip=([^,)\s]+)", lines[0])
        return f"{lines[-1]} on node {node[1]}" if node else lines[-1]
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
