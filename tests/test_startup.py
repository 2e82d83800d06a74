"""Starting costs little: the command line answers at once, and what is heavy loads only where it is used."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "ray", "pydantic", "flwr", "sklearn", "matplotlib")


def cpu_seconds(*command: str) -> float:
    """User and system time of one child, which must succeed."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_help_costs_less_than_three_tenths_of_a_cpu_second() -> None:
    fedgen = Path(sys.executable).with_name("fedgen")
    assert min(cpu_seconds(str(fedgen), "--help") for _ in range(5)) < 0.3


@pytest.mark.parametrize("module", ["fedgen", "fedgen.server.cli"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    program = f"import json, sys, {module}; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert json.loads(out) == []
