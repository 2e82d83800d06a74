"""What clients keep between rounds, held by the driver and sent along with their block."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedgen.device import on_host
from fedgen.parameters import Tensors, place_rows


class ClientStore:
    """{name: {client: tensor}}; changed only by `commit`, after the last admission of a round."""

    def __init__(self) -> None:
        self._held: dict[str, _Pages] = {}

    def take(self, clients: Tensor) -> Tensors:
        """{name: [n, ...]} of these clients, zeros for those that hold none."""
        return {name: held.take(clients.tolist()) for name, held in self._held.items()}

    def commit(self, clients: Tensor, state: Tensors) -> None:
        """The new state[n, ...] of admitted clients, whose memory may become the store's; it is kept on the host."""
        held = {page.data_ptr() for pages in self._held.values() for page in pages.pages}
        for name, given in state.items():
            values = on_host(given)
            alone = values.data_ptr() not in held
            held.add(values.data_ptr())
            self._held.setdefault(name, _Pages()).commit(clients.tolist(), values if alone else values.clone())

    def tensors(self) -> Tensors:
        """For a checkpoint: "<name>" [k, ...] and "<name>#clients" [k], clients in order."""
        packed = {}
        for name, held in self._held.items():
            clients = sorted(held.place)
            packed[name] = held.take(clients)
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


@dataclass
class _Pages:
    """Rows of clients that were first committed together lie together: a block that stays one is a page, not copied.

    place: client -> (page, row of it).  lent: pages that somebody took, which stay as they are from then on.
    """

    pages: list[Tensor] = field(default_factory=list)
    lent: set[int] = field(default_factory=set)
    place: dict[int, tuple[int, int]] = field(default_factory=dict)

    def take(self, clients: list[int]) -> Tensor:
        by_page = self._by_page(clients)
        if len(by_page) == 1:
            ((page, (positions, rows)),) = by_page.items()
            if len(positions) == len(clients):
                if not self._is_page(page, rows):
                    return self.pages[page].index_select(0, torch.tensor(rows))
                self.lent.add(page)
                return self.pages[page]
        taken = self.pages[0].new_zeros(len(clients), *self.pages[0].shape[1:])
        for page, (positions, rows) in by_page.items():
            taken[positions] = self.pages[page][rows]
        return taken

    def commit(self, clients: list[int], values: Tensor) -> None:
        for page, (positions, rows) in self._by_page(clients).items():
            theirs = values if len(positions) == len(clients) else values[positions]
            if self._is_page(page, rows) and _owned(theirs):
                self.pages[page] = theirs
            else:
                if page in self.lent:
                    self.pages[page] = self.pages[page].clone()
                place_rows(self.pages[page], torch.tensor(rows), theirs)
            self.lent.discard(page)
        new = [position for position, client in enumerate(clients) if client not in self.place]
        if new or not self.pages:
            self.place |= {clients[position]: (len(self.pages), row) for row, position in enumerate(new)}
            self.pages.append(values[new])

    def _is_page(self, page: int, rows: list[int]) -> bool:
        return rows == list(range(len(self.pages[page])))

    def _by_page(self, clients: list[int]) -> dict[int, tuple[list[int], list[int]]]:
        """page -> (positions in clients, rows of the page) of those that hold something."""
        found: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for position, client in enumerate(clients):
            if client in self.place:
                page, row = self.place[client]
                found[page][0].append(position)
                found[page][1].append(row)
        return found


def _owned(values: Tensor) -> bool:
    """Whether this memory is the tensor's alone and this process's: no part of another, nor a worker's."""
    memory = values.untyped_storage()
    return values.is_contiguous() and memory.resizable() and memory.nbytes() == values.nbytes
