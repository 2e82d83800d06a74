"""The folder of a run: created once, locked by one process at a time."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from fedgen.errors import SettingError
from fedgen.server.store import parts
from fedgen.server.store.disk import writing
from fedgen.server.store.journal import remedy
from fedgen.server.store.ray_home import ray_home, remove_ray_home

LOCK = ".lock"


def choose(out: str | Path | None, name: str) -> Path:
    """The folder of a new run: `out`, or runs/NAME-TIME.

    Raises SettingError if it has a run, or files that a run would overwrite.
    """
    if out is None:
        return Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = Path(out)
    existing = [name for name in parts.ALL if (folder / name).exists()]
    if parts.RESOLVED in existing:
        raise SettingError(
            f"--out {folder} holds a run; continue it with `fedgen resume {folder}` or name another folder"
        )
    if existing:
        raise SettingError(
            f"--out {folder} already holds {', '.join(existing)}, which a run would overwrite; name another folder"
        )
    return folder


def make(folder: Path, named: bool) -> Path:
    """Create the folder with its parents. If a folder with a default name exists, use the next name, NAME-TIME-2.

    Raises SettingError if that fails.
    """
    made = folder
    number = 2
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                made.mkdir(exist_ok=named)
                break
            except FileExistsError:
                if named:
                    raise
                made = folder.with_name(f"{folder.name}-{number}")
                number += 1
        (made / LOCK).touch()
        return made
    except OSError as error:
        raise SettingError(
            f"--out {folder} cannot be written ({error.strerror}); name a folder that you may write to"
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder, and remove the temporary folder for Ray of a killed process.

    Raises SettingError if another process has locked it.
    """
    with writing(folder / LOCK):
        file = (folder / LOCK).open("ab+", buffering=0)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SettingError(f"run folder {folder} is in use by another process") from error
        file.seek(0)
        left = file.read().decode("utf-8", "replace").strip()
        if left and Path(left) != ray_home():
            remove_ray_home(Path(left))
        with writing(folder / LOCK):
            file.truncate(0)
            file.write(str(ray_home()).encode())
        try:
            yield
        finally:
            file.truncate(0)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file that a resume needs.

    Raises SettingError with advice if the file is missing or damaged.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it should hold one JSON object")
    except FileNotFoundError as error:
        raise SettingError(f"{path} is missing; {remedy(path.parent)}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise SettingError(f"{path} is damaged ({error}); {remedy(path.parent)}") from error
    return value
