"""10,000 clients of MNIST at 1 % participation: seconds to the first round, and growth of private memory.

python -m benchmarks.scale [--tiny]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic, sleep

import numpy as np

from benchmarks.harness import header, table

SETTLED = 50
"""Rounds after which memory should no longer grow."""


def settings(tiny: bool) -> list[str]:
    """Overrides of an empty experiment file."""
    dataset, clients, rounds = ("digits", 500, 60) if tiny else ("mnist", 10_000, 200)
    tables = {
        "data.dataset": dataset,
        "data.clients": clients,
        "data.partition": "iid",
        "federation.cohort": 0.01,
        "federation.rounds": rounds,
        "federation.evaluate_every": 10,
        "runtime.backend": "serial",
        "tracking.report": "false",
    }
    return [word for key, value in tables.items() for word in ("--set", f"{key}={value}")]


def private_kib(pid: int | str) -> int:
    """Memory that only this process holds."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private"))


def observe(tiny: bool) -> tuple[float, list[tuple[int, int]]]:
    """(seconds from the command to the first round's metrics, [(rounds played, private KiB)])."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "scale.toml", Path(folder) / "run"
        file.write_text("")
        words = [sys.executable, "-m", "fedgen.server", "run", str(file), "--out", str(out), *settings(tiny)]
        began = monotonic()
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        first, points = 0.0, []
        while process.poll() is None:
            played = rounds_in(out / "metrics.jsonl")
            if played and not first:
                first = monotonic() - began
            if played and (not points or played > points[-1][0]):
                try:
                    points.append((played, private_kib(process.pid)))
                except OSError:
                    break
            sleep(0.02)
        if process.wait() != 0:
            raise SystemExit(f"the run ended with exit code {process.returncode}")
    return first, points


def rounds_in(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main(tiny: bool) -> None:
    first, points = observe(tiny)
    settled = np.array([point for point in points if point[0] > (10 if tiny else SETTLED)], float)
    slope = float(np.polyfit(settled[:, 0], settled[:, 1], 1)[0]) if len(settled) > 1 else float("nan")
    print(header("python -m benchmarks.scale"))
    print()
    rows = [
        ("command to first round, s", f"{first:.1f}"),
        (f"private memory after {points[-1][0]} rounds, MiB", f"{points[-1][1] / 1024:.0f}"),
        (f"growth after round {SETTLED}, KiB a round", f"{slope:.1f}"),
    ]
    print(table(("measure", "value"), rows))


if __name__ == "__main__":
    main("--tiny" in sys.argv)
