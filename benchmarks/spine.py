"""Accuracy of the quickstart experiment over three seeds, and the time from its command to its report.

python -m benchmarks.spine [--tiny]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean
from time import monotonic
from typing import Any

from benchmarks.harness import ROOT, header, table

QUICKSTART = ROOT / "examples" / "quickstart.toml"


def command(out: Path, *settings: str) -> dict[str, Any]:
    """`fedgen run` of the quickstart in a separate process, as a user would start it."""
    words = [sys.executable, "-m", "fedgen.server", "run", str(QUICKSTART), "--out", str(out), "--json"]
    words += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main(rounds: int, seeds: range) -> None:
    with tempfile.TemporaryDirectory() as folder:
        seconds = {}
        for backend in ("auto", "ray"):
            began = monotonic()
            command(Path(folder) / backend, f"runtime.backend={backend}", f"federation.rounds={rounds}")
            seconds[backend] = monotonic() - began
        settings = ("runtime.backend=serial", "tracking.report=false", f"federation.rounds={rounds}")
        results = [command(Path(folder) / f"seed-{seed}", f"experiment.seed={seed}", *settings) for seed in seeds]
    print(header("python -m benchmarks.spine"))
    print()
    accuracies = [result["metrics"]["accuracy"] for result in results]
    rows: list[tuple[object, ...]] = [
        (
            f"test accuracy after {rounds} rounds, seeds {', '.join(map(str, seeds))}",
            ", ".join(f"{a:.4f}" for a in accuracies),
        ),
        ("mean", f"{mean(accuracies):.4f}"),
        ("quickstart, command to report, s", f"{seconds['auto']:.1f}"),
        ("the same with Ray on this machine, s", f"{seconds['ray']:.1f}"),
    ]
    print(table(("measure", "value"), rows))


if __name__ == "__main__":
    tiny = "--tiny" in sys.argv
    main(rounds=3 if tiny else 100, seeds=range(1 if tiny else 3))
