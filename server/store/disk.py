"""Writing into a run folder: whole files or none, and one error where the system refuses."""

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
    """The system refuses to write a file of a run: a full disk or quota, a folder that is read only or gone."""


@contextmanager
def writing(path: Path, scratch: Path | None = None) -> Iterator[None]:
    """What is inside writes `path`, by way of `scratch` where that is given, which a failure leaves no trace of.

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
    """The text, whole or not at all.

    Raises Unwritable.
    """
    scratch = path.with_suffix(".tmp")
    with writing(path, scratch):
        scratch.write_text(text, "utf-8")
        os.replace(scratch, path)


def write_json(path: Path, value: Json) -> None:
    """The value as indented JSON, whole or not at all.

    Raises Unwritable.
    """
    write_text(path, json.dumps(value, indent=2) + "\n")
