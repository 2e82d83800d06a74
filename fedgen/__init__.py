"""Federated and decentralised learning on Ray: one experiment file, one run, any method, rule and attack.

The names below load on first use, so that ``import fedgen`` and the command line start without torch and ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedgen.version import __version__ as __version__

if TYPE_CHECKING:
    from fedgen.aggregation.call import aggregate as aggregate
    from fedgen.config import Experiment as Experiment
    from fedgen.server.experiment_file import load_experiment as load_experiment
    from fedgen.server.run.start import resume as resume
    from fedgen.server.run.start import run as run
    from fedgen.tracking.observer import Observer as Observer
    from fedgen.tracking.observer import Plan as Plan
    from fedgen.tracking.record import RoundRecord as RoundRecord
    from fedgen.tracking.result import Result as Result

_HOMES = {
    "Experiment": "fedgen.config",
    "aggregate": "fedgen.aggregation.call",
    "load_experiment": "fedgen.server.experiment_file",
    "Observer": "fedgen.tracking.observer",
    "Plan": "fedgen.tracking.observer",
    "Result": "fedgen.tracking.result",
    "RoundRecord": "fedgen.tracking.record",
    "resume": "fedgen.server.run.start",
    "run": "fedgen.server.run.start",
}

__all__ = [
    "Experiment",
    "Observer",
    "Plan",
    "Result",
    "RoundRecord",
    "__version__",
    "aggregate",
    "load_experiment",
    "resume",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fedgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
