"""What clients keep between rounds, held by the driver and sent along with their block."""

from __future__ import annotations

import torch
from torch import Tensor

from fedgen.parameters import Tensors


class ClientStore:
    """{name: {client: tensor}}; changed only by `commit`, after the last admission of a round."""

    def __init__(self) -> None:
        self._held: dict[str, dict[int, Tensor]] = {}

    def take(self, clients: Tensor) -> Tensors:
        """{name: [n, ...]} of these clients, zeros for those that hold none."""
        taken = {}
        for name, held in self._held.items():
            blank = torch.zeros_like(next(iter(held.values())))
            taken[name] = torch.stack([held.get(client, blank) for client in clients.tolist()])
        return taken

    def commit(self, clients: Tensor, state: Tensors) -> None:
        """The new state[n, ...] of admitted clients."""
        for name, values in state.items():
            held = self._held.setdefault(name, {})
            for client, value in zip(clients.tolist(), values, strict=True):
                held[client] = value.clone()

    def tensors(self) -> Tensors:
        """For a checkpoint: "<name>" [k, ...] and "<name>#clients" [k], clients in order."""
        packed = {}
        for name, held in self._held.items():
            clients = sorted(held)
            packed[name] = torch.stack([held[client] for client in clients])
            packed[f"{name}#clients"] = torch.tensor(clients)
        return packed

    @classmethod
    def restore(cls, packed: Tensors) -> ClientStore:
        """The inverse of `tensors`."""
        store = cls()
        for name, values in packed.items():
            if not name.endswith("#clients"):
                store.commit(packed[f"{name}#clients"], {name: values})
        return store
