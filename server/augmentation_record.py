"""What augmentation.json holds, as the report reads it; nothing here needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fedgen.server.parts import AUGMENTATION

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Augmentation:
    """What generated samples changed: ``counts[2, clients, classes]`` before and after, distances ``[2, clients]`` from
    everybody's samples, how alike shapes are, some samples on two axes, of the first clients where there are many;
    ``domains``: whose shapes they are, clients' where there are none; ``left_out``: whose statistics were refused;
    ``privacy``: epsilon and delta of the pooled statistics."""

    counts: NDArray[np.int64]
    label_distance: NDArray[np.float64]
    embedding_distance: NDArray[np.float64]
    similarity: NDArray[np.float64]
    same: float
    different: float
    points: NDArray[np.float64]
    labels: NDArray[np.int64]
    generated: NDArray[np.bool_]
    clients: int
    upload_bytes: int
    dense_bytes: int
    domains: list[str]
    left_out: list[int]
    privacy: tuple[float, float] | None


def read_augmentation(value: dict[str, Any], notices: list[str]) -> Augmentation | None:
    """What the file holds; None, and a notice, where that cannot be understood."""
    if not value:
        return None
    try:
        counts = np.array(value["counts"], dtype=np.int64)
        if counts.ndim != 3 or len(counts) != 2:
            raise ValueError("counts should be those before and those after")
        return Augmentation(
            counts=counts,
            label_distance=_array(value, "label_distance"),
            embedding_distance=_array(value, "embedding_distance"),
            similarity=_array(value, "similarity"),
            same=float(_array(value, "same")),
            different=float(_array(value, "different")),
            points=_array(value, "points"),
            labels=np.array(value["labels"], dtype=np.int64),
            generated=np.array(value["generated"], dtype=np.bool_),
            clients=int(value["clients"]),
            upload_bytes=int(value["upload_bytes"]),
            dense_bytes=int(value["dense_bytes"]),
            domains=[str(name) for name in value["domains"]],
            left_out=[int(client) for client in value["left_out"]],
            privacy=None if value["privacy"] is None else (float(value["privacy"][0]), float(value["privacy"][1])),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        notices.append(f"{AUGMENTATION} cannot be understood: {type(error).__name__}: {error}.")
        return None


def _array(value: dict[str, Any], name: str) -> NDArray[np.float64]:
    """Numbers, NaN where there are none."""
    return np.array(value[name], dtype=np.float64)
