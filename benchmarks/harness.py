"""What every benchmark shares: a header with machine, versions and date, and a table that goes into the docs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


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
