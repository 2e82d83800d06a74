"""Atomic writes into a run folder, with one error if the system refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from fedgen.errors import FedgenError
from fedgen.tracking.record import Json


class Unwritable(FedgenError):
    """A file of a run cannot be written: full disk or quota, read-only or missing folder."""


@contextmanager
def writing(path: Path, scratch: Path | None = None) -> Iterator[None]:
    """A block that writes `path`, optionally through the temporary file `scratch`, which a failure removes.

    Raises Unwritable.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if scratch is not None:
            with suppress(OSError):
                scratch.unlink(missing_ok=True)
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Unwritable(
            f"{path} cannot be written: {why}; make room, or let this user write to {path.parent}"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write text atomically.

    Raises Unwritable.
    """
    scratch = path.with_suffix(".tmp")
    with writing(path, scratch):
        scratch.write_text(text, "utf-8")
        os.replace(scratch, path)


def write_json(path: Path, value: Json) -> None:
    """Write indented JSON atomically.

    Raises Unwritable.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")
