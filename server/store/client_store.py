"""State of clients between rounds, kept by the driver and sent to workers with each block."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedgen.device import on_host
from fedgen.parameters import Tensors, place_rows


class ClientStore:
    """{name: {client: tensor}}, changed only by `commit`, after the last admission of a round."""

    def __init__(self) -> None:
        self._pages: dict[str, _Pages] = {}

    def take(self, clients: Tensor) -> Tensors:
        """{name: [n, ...]} of these clients, zeros for clients without state."""
        return {name: pages.take(clients.tolist()) for name, pages in self._pages.items()}

    def commit(self, clients: Tensor, state: Tensors) -> None:
        """Set the state {name: [n, ...]} of admitted clients; the store may keep host tensors without a copy."""
        taken = {page.data_ptr() for pages in self._pages.values() for page in pages.pages}
        for name, given in state.items():
            values = on_host(given)
            alone = values.data_ptr() not in taken
            taken.add(values.data_ptr())
            self._pages.setdefault(name, _Pages()).commit(clients.tolist(), values if alone else values.clone())

    def tensors(self) -> Tensors:
        """For a checkpoint: "<name>" [k, ...] and "<name>#clients" [k], clients in order."""
        packed = {}
        for name, pages in self._pages.items():
            clients = sorted(pages.place)
            packed[name] = pages.take(clients)
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
    """Clients that were first committed together share a page, so that a whole block is taken without a copy.

    place: client -> (page, row). lent: pages that `take` has returned, which must not change any more.
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
            part = values if len(positions) == len(clients) else values[positions]
            if self._is_page(page, rows) and _owned(part):
                self.pages[page] = part
            else:
                if page in self.lent:
                    self.pages[page] = self.pages[page].clone()
                place_rows(self.pages[page], torch.tensor(rows), part)
            self.lent.discard(page)
        new = [position for position, client in enumerate(clients) if client not in self.place]
        if new or not self.pages:
            self.place |= {clients[position]: (len(self.pages), row) for row, position in enumerate(new)}
            self.pages.append(values[new])

    def _is_page(self, page: int, rows: list[int]) -> bool:
        return rows == list(range(len(self.pages[page])))

    def _by_page(self, clients: list[int]) -> dict[int, tuple[list[int], list[int]]]:
        """page -> (positions in `clients`, rows of the page), of clients with state."""
        found: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for position, client in enumerate(clients):
            if client in self.place:
                page, row = self.place[client]
                found[page][0].append(position)
                found[page][1].append(row)
        return found


def _owned(values: Tensor) -> bool:
    """Whether the tensor owns its memory: not a view, and not in memory shared with a worker."""
    memory = values.untyped_storage()
    return values.is_contiguous() and memory.resizable() and memory.nbytes() == values.nbytes
