"""Describes the environment of a run: versions, machine, commit, data."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from fedgen.clients.worker import processor
from fedgen.config import Experiment
from fedgen.federation import Federation
from fedgen.server.directions import directions
from fedgen.server.store.user_code import Sources
from fedgen.tracking.record import Json
from fedgen.version import __version__

PACKAGES = ("torch", "numpy", "ray", "flwr", "pydantic", "scikit-learn", "safetensors", "grpcio")


def describe(
    experiment: Experiment, federation: Federation, search_path: tuple[str, ...], code: Sources
) -> dict[str, Json]:
    """The contents of environment.json."""
    dataset = federation.dataset
    return {
        "fedgen": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "device": experiment.training.device,
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(),
        "command": _command(sys.argv),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": {
            "dataset": dataset.name,
            "sha256": dataset.sha256,
            "training": len(federation.training),
            "validation": len(federation.validation),
            "test": len(dataset.test_y),
        },
        "lower_is_better": directions(federation),
        "identity": experiment.identity,
        "search_path": list(search_path),
        "code": code,
    }


def _command(arguments: list[str]) -> list[str]:
    """The command line as somebody would type it; a script or `python -m` leaves only the file in sys.argv."""
    program, *others = arguments or [""]
    if program.endswith("__main__.py"):
        return ["python", "-m", "fedgen.server" if Path(program).parent.name == "server" else program, *others]
    return ["python", program, *others] if program.endswith(".py") else [program, *others]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Json] | None:
    """Commit of the checkout of fedgen, if it runs from one."""
    home = Path(__file__).resolve().parent

    def ask(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(home), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(ask("rev-parse", "--show-toplevel")) != home.parent:
            return None
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
