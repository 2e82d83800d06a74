"""The benchmarks still run: each in its tiny preset, as a user would start it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("benchmark", "rows"),
    [
        pytest.param("engines", ("fedgen, stacked", "fedgen, sequential", "fedgen, vmap"), marks=pytest.mark.slow),
        pytest.param("spine", ("mean", "quickstart"), marks=pytest.mark.slow),
        pytest.param("rules", ("krum | 20 | 2", "optimal ALIE | 20", "1 iteration"), marks=pytest.mark.slow),
        pytest.param("byzantine", ("mean", "normalised mean"), marks=pytest.mark.slow),
        ("kappa", ("flag", "nnm, geometric_median")),
        pytest.param(
            "gossip",
            (
                "ring",
                "LayerNorm",
                "corrected | 50%",
                "trimmed mean, auto",
                "64",
                "100 | 3",
                "fedgen |",
                "delta_sum, corrected",
                "plain",
                "federation",
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_tiny_preset_prints_its_table(benchmark: str, rows: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--tiny"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for row in rows:
        assert f"| {row}" in done.stdout
