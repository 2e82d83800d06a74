"""The process that trains: holds what the experiment rebuilds, and nothing else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from fedgen.config import Experiment
from fedgen.federation import Federation


class Worker:
    """One federation, any number of pure tasks.

    search_path: folders where a user's own modules are found, appended to the import path.
    """

    def __init__(self, experiment: Experiment, search_path: tuple[str, ...] = ()) -> None:
        sys.path.extend(folder for folder in search_path if folder not in sys.path)
        self.federation = Federation(experiment)

    def pid(self) -> int:
        return os.getpid()

    def run(self, task: Callable[..., Any], *arguments: Any) -> Any:
        return task(self.federation, *arguments)
