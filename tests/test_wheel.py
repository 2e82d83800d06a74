"""The wheel, built from the sdist, is complete, and runs from a folder whose own files bear our folders' names."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

EXPERIMENT = """
[experiment]
name = "wheel"

[data]
clients = 4

[federation]
rounds = 1

[runtime]
backend = "{backend}"
workers = 1
"""


def call(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must exit with 0, and that no variable leads back to the repository."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command} exits with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves a build/ folder behind, and takes stale files from one that is there."""
    copy = tmp_path_factory.mktemp("build") / "copy"
    ignore = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "*.egg-info")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignore)
    call(sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist", cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose virtual environment holds the wheel, and whose own server.py and clients/ raise when imported."""
    folder = tmp_path_factory.mktemp("elsewhere")
    call(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=folder)
    python = folder / "venv/bin/python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # A folder named in a .pth file is searched, but its own .pth files, our editable install among them, are not read.
    (site_packages,) = (folder / "venv/lib").glob("python*/site-packages")
    first = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "first_environment.pth").write_text("\n".join(sorted(first)))
    (folder / "clients").mkdir()
    for stranger in ("server.py", "clients/__init__.py"):
        (folder / stranger).write_text(f"raise RuntimeError('{stranger} of the user was imported')\n")
    return folder


def test_wheel_holds_every_file_once(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = [name for name in archive.namelist() if ".dist-info/" not in name]
    folders = [ROOT / name for name in ("fedgen", "clients", "server")]
    files = [
        path
        for folder in folders
        for pattern in ("*.py", "py.typed", "templates/*", "*.npy")
        for path in folder.rglob(pattern)
    ]
    names = [path.relative_to(ROOT).as_posix() for path in files]
    expected = [name if name.startswith("fedgen/") else f"fedgen/{name}" for name in names]
    assert sorted(packed) == sorted(expected)


def test_wheel_is_imported_not_the_repository(elsewhere: Path) -> None:
    for module in ("fedgen", "fedgen.clients", "fedgen.server"):
        file = call("venv/bin/python", "-c", f"import {module} as module; print(module.__file__)", cwd=elsewhere)
        assert Path(file).is_relative_to(elsewhere / "venv")


def test_wheel_runs_beside_strangers(elsewhere: Path) -> None:
    def run(backend: str) -> dict[str, Any]:
        (elsewhere / "experiment.toml").write_text(EXPERIMENT.format(backend=backend))
        out = call("venv/bin/fedgen", "run", "experiment.toml", "--out", f"out-{backend}", "--json", cwd=elsewhere)
        summary: dict[str, Any] = json.loads(out.splitlines()[-1])
        return summary

    serial, ray = run("serial"), run("ray")
    assert serial["state"] == ray["state"] == "completed"
    assert serial["sha256"] == ray["sha256"]
