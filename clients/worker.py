"""The process that trains: holds what the experiment rebuilds, and nothing else."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedgen import registry
from fedgen.config import Experiment
from fedgen.federation import Federation


class Worker:
    """One federation, any number of pure tasks.

    search_path: folders where a user's own modules are found, appended to the import path.
    """

    def __init__(self, experiment: Experiment, search_path: tuple[str, ...] = ()) -> None:
        registry.search_in(search_path)
        self.federation = Federation(experiment)

    def pid(self) -> int:
        return os.getpid()

    def introduction(self) -> dict[str, str]:
        return introduction(self.federation)

    def run(self, task: Callable[..., Any], *arguments: Any) -> Any:
        return task(self.federation, *arguments)


def introduction(federation: Federation) -> dict[str, str]:
    """What decides a machine's bits: processor, versions and data."""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return {"processor": processor(), **versions, "data": federation.dataset.sha256}


def processor() -> str:
    """Name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
