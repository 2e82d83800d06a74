"""This process's temporary folder for Ray; the lock of a run folder names it, so that a later process can remove it."""

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
    """This process's folder for Ray: short, because socket paths may have 107 characters; private, for the token."""
    parent = "/tmp" if os.access("/tmp", os.W_OK) else None
    home = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    atexit.register(remove_ray_home, home)
    return home


def remove_ray_home(home: Path) -> None:
    """Remove such a folder, of this process or of a killed one; any other path is left alone."""
    if home.name.startswith(PREFIX):
        shutil.rmtree(home, ignore_errors=True)
