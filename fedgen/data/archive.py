"""Reading the .npz files of the data directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from fedgen.errors import SettingError
from fedgen.parameters import Array

Arrays = dict[str, Array]

DAMAGE = (OSError, EOFError, BadZipFile, TypeError, ValueError, KeyError)
"""What reading a file that is no whole .npz may raise."""


def read_arrays(path: Path, names: Sequence[str], optional: Sequence[str] = ()) -> Arrays:
    """The named arrays of an .npz file, and the optional ones that it has. Raises one of `DAMAGE`."""
    # Through memory: numpy leaves the file of a damaged archive open.
    with np.load(BytesIO(path.read_bytes())) as file:
        return {name: file[name] for name in (*names, *(name for name in optional if name in file))}


def read_embeddings(
    folder: Path, name: Path, names: Sequence[str], what: str, optional: Sequence[str] = (), key: str = ""
) -> Arrays:
    """The named arrays of a file below the data directory that cannot be downloaded; key: the setting that names it.

    Raises SettingError where it is not there or damaged.
    """
    path = folder / name
    try:
        return read_arrays(path, names, optional)
    except FileNotFoundError as error:
        raise SettingError(
            f"{key or 'runtime.data_dir'}: {what} are not at {path}; {f'correct {key}, or ' if key else ''}set "
            f"runtime.data_dir, or the variable FEDGEN_DATA_DIR, to the folder that holds {name}"
        ) from error
    except DAMAGE as error:
        raise SettingError(
            f"{key or 'runtime.data_dir'}: {path} cannot be read ({error}); expected an .npz file with "
            f"{', '.join(names)}"
        ) from error


def scaled(x: Array, norm: float, like: Array | None = None) -> Array:
    """x[s, d] times the factor that gives the rows of `like` (default: x) the mean length `norm`."""
    lengths = np.linalg.norm(x if like is None else like, axis=1)
    return x * x.dtype.type(norm / lengths.mean())  # type: ignore[no-any-return]


def kept(path: Path) -> tuple[Tensor, Tensor] | None:
    """The embeddings of the training and of the test samples in a file that `keep` wrote; None where there is none."""
    try:
        arrays = read_arrays(path, ("x_train", "x_test"))
    except DAMAGE:
        return None
    return torch.from_numpy(arrays["x_train"]), torch.from_numpy(arrays["x_test"])


def keep(path: Path, parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The embeddings, written to a file whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as file:
            np.savez(file, x_train=parts[0].numpy(), x_test=parts[1].numpy())
        scratch.replace(path)
    return parts
