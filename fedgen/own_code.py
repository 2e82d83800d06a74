"""The user's own code: which files belong to it, and where in it an exception was raised."""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path
from traceback import walk_tb

HOME = Path(__file__).parent
PLACE = "fedgen_place"
"""The attribute in which an exception keeps its place where it leaves its process, and its frames behind."""


def is_own(file: str) -> bool:
    """Whether a file is the user's: neither fedgen's nor Python's nor of an installed package."""
    path = Path(file)
    if file.startswith("<") or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    return not any(path.is_relative_to(root) for root in _installed())


@cache
def _installed() -> tuple[Path, ...]:
    python = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    layers = [(HOME / layer).resolve() for layer in ("clients", "server")]
    return (*map(Path, python), HOME, HOME.resolve(), *layers)


def explained(error: BaseException) -> str:
    """What was raised and, in the user's own code, where: ``my_model.py:12: ValueError: no weights``."""
    place = place_of(error)
    return f"{place}: {type(error).__name__}: {error}" if place else f"{type(error).__name__}: {error}"


def place_of(error: BaseException) -> str:
    """File and line of the innermost frame in the user's own code, "" where there is none."""
    own = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        own.append((error.filename, error.lineno or 0))
    own = [(file, line) for file, line in own if is_own(file)]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else getattr(error, PLACE, "")


def keep_place(error: Exception) -> None:
    """Note the place in the exception itself, before it crosses to another process without its frames."""
    if place := place_of(error):
        setattr(error, PLACE, place)
