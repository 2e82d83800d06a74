"""Shared by all benchmarks: a header with machine, versions and date; tables for the docs; measurements on one core."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "benchmarks" / ".peers"
"""The environment of the systems that fedgen is compared with, made by `python -m benchmarks.engines --setup`."""

ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    # As in fedgen's own processes, the heap keeps large arrays; set for all systems.
    **dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(1 << 30)),
    "PYTHONPATH": str(ROOT / "benchmarks" / "peers" / "stubs"),
    "PYTHONWARNINGS": "ignore",
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class MeasurementError(Exception):
    """A measured process failed or took too long; the text is the end of its output."""


def measured(python: Path, *words: str, timeout_s: float | None = None) -> dict[str, Any]:
    """The line of JSON that `python -m words` prints, with one thread on one core.

    Raises MeasurementError if it fails or takes too long.
    """
    core = max(os.sched_getaffinity(0))
    try:
        done = subprocess.run(
            [str(python), "-m", *words],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise MeasurementError(f"{' '.join(words)} ended with {error.returncode}:\n{error.stderr[-3_000:]}") from error
    except subprocess.TimeoutExpired as error:
        raise MeasurementError(f"{' '.join(words)} took more than {timeout_s:.0f} s") from error
    [line] = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(line)  # type: ignore[no-any-return]


def python_of_peers(folder: Path) -> Path:
    """The Python of the other systems' environment.

    Raises SystemExit if there is none.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        raise SystemExit(
            f"{python} does not exist; `python -m benchmarks.engines --setup` makes it, and --tiny needs no peers"
        )
    return python


def header(command: str, packages: Sequence[str] = ("torch", "numpy", "ray")) -> str:
    """Command, machine, versions and date, as one line of Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    machine = f"{cpu()}, {os.cpu_count()} cores"
    return f"`{command}` — {machine}; Python {platform.python_version()}, {versions}; {date.today()}"


def cpu() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
