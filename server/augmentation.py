"""What a method finds out about the samples that its clients generate, for the report."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from fedgen.contracts import Block
from fedgen.federation import Federation
from fedgen.server import parts
from fedgen.server.checkpoint import Standing
from fedgen.server.disk import write_json

MOST_CLIENTS = 100
"""Clients that are looked at: their samples are generated again for it."""


def write_augmentation(folder: Path, federation: Federation, standing: Standing) -> None:
    """Write augmentation.json, where the method or one inside its wrappers has findings, after the setup exchange."""
    method = federation.method
    while not hasattr(method, "findings") and hasattr(method, "inner"):
        method = method.inner
    if hasattr(method, "findings") and standing.round >= 0:
        found = method.findings(standing.state, _clients(federation, standing), federation.dataset.domain)
        write_json(folder / parts.AUGMENTATION, _known({**found, "domains": federation.dataset.domains}))


def _known(value: Any) -> Any:
    """The value with null where a finding has no number, which a method says by NaN."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_known(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _clients(federation: Federation, standing: Standing) -> Iterator[Block]:
    """Blocks of one client, as each would begin to train."""
    model = standing.state["model"]
    for client in range(min(federation.experiment.data.clients, MOST_CLIENTS)):
        start = model if model.dim() == 1 else model[client]
        yield federation.block(torch.tensor([client]), start, {}, 0)
