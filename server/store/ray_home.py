"""The temporary folder for Ray; the lock file of a run names it, so that it can be removed after a kill."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

PREFIX = "fedgen-"


@cache
def ray_home() -> Path:
    """The folder of this process for Ray: short, as socket paths are limited to 107 characters, and private."""
    parent = "/tmp" if os.access("/tmp", os.W_OK) else None
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    atexit.register(remove_ray_home, home)
    return home


def remove_ray_home(home: Path) -> None:
    """Remove a folder made by `ray_home`, of this process or of a killed one; other paths are ignored."""
    if home.name.startswith(PREFIX):
        shutil.rmtree(home, ignore_errors=True)
