"""A worker: it builds the federation from the experiment and runs tasks on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from fedgen.clients.own_modules import OwnModules
from fedgen.config import Experiment
from fedgen.errors import FedgenError
from fedgen.federation import Federation
from fedgen.own_code import keep_place

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Greeting:
    """The first message of a worker: process, node and machine, or why it could not start."""

    pid: int
    node: str = ""
    introduction: Mapping[str, str] = field(default_factory=dict)
    failure: str = ""


class Worker:
    """Runs pure tasks on one federation."""

    federation: Federation

    def start(self, experiment: Experiment, modules: OwnModules) -> Greeting:
        """Build the federation. An error is returned, not raised, as a remote traceback is hard to read."""
        modules.install()
        try:
            self.federation = Federation(experiment)
        except Exception as error:
            return Greeting(os.getpid(), failure=_why(error))
        return Greeting(os.getpid(), introduction=introduction(self.federation))

    def run(self, task: Callable[[Federation, Shared, Item], Result], shared: Shared, item: Item) -> Result:
        try:
            return task(self.federation, shared, item)
        except Exception as error:
            keep_place(error)
            raise


def _why(error: Exception) -> str:
    missing = error.__cause__ if isinstance(error.__cause__, ModuleNotFoundError) else error
    if isinstance(missing, ModuleNotFoundError):
        return f"{missing}; install it on that machine or put it beside the experiment file"
    return str(error) if isinstance(error, FedgenError) else f"{type(error).__name__}: {error}"


def introduction(federation: Federation) -> dict[str, str]:
    """Processor, versions and data of a machine: results are equal bit for bit where these are."""
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
