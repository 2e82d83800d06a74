"""What clients keep, against a plain dictionary; memory that is used again."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedgen.server.rounds.spare import Spare
from fedgen.server.store.client_store import ClientStore

COHORT = st.lists(st.integers(0, 8), min_size=1, max_size=6, unique=True)


@given(cohorts=st.lists(st.tuples(COHORT, st.sampled_from(["own", "shared", "returned", "part"])), max_size=12))
def test_the_store_is_a_dictionary_of_clients(cohorts: list[tuple[list[int], str]]) -> None:
    """Whatever a method does with memory: two names in one tensor, what it was given, a part of something larger."""
    store = ClientStore()
    reference: dict[str, dict[int, Tensor]] = {"a": {}, "b": {}}
    for number, (cohort, kind) in enumerate(cohorts):
        clients = torch.tensor(cohort)
        taken = store.take(clients)
        values = torch.randn(len(cohort), 3, generator=torch.Generator().manual_seed(number))
        state = {
            "own": {"a": values, "b": values + 1},
            "shared": {"a": values, "b": values},
            "returned": {"a": taken.get("b", values), "b": taken.get("b", values)},
            "part": {"a": torch.cat([values, values])[: len(cohort)], "b": values.expand(1, -1, -1)[0]},
        }[kind]
        wanted = {name: value.clone() for name, value in state.items()}
        before = {name: value.clone() for name, value in taken.items()}
        store.commit(clients, state)
        assert all(torch.equal(taken[name], value) for name, value in before.items())
        for name, value in wanted.items():
            reference[name] |= dict(zip(cohort, value, strict=True))
    everyone = torch.arange(9)
    for name, value in store.take(everyone).items():
        for client in range(9):
            assert torch.equal(value[client], reference[name].get(client, torch.zeros(3)))
    again = ClientStore.restore(store.tensors())
    assert all(torch.equal(value, again.take(everyone)[name]) for name, value in store.take(everyone).items())


def test_spare_memory_is_another_object_of_the_same_size() -> None:
    spare, first, other = Spare(), torch.zeros(4, 6), torch.zeros(4, 3)
    spare.give(first)
    spare.give(other)
    assert spare.empty_like(torch.empty(4, 5)).shape == (4, 5)
    again = spare.empty_like(first)
    assert again is not first
    assert again.data_ptr() == first.data_ptr()
    assert spare.empty_like(first).data_ptr() != first.data_ptr()
    assert spare.empty_like(first, columns=3).data_ptr() == other.data_ptr()


def test_parts_of_something_larger_are_not_spare() -> None:
    spare, whole = Spare(), torch.zeros(4, 6)
    spare.give(whole[:, :3])
    spare.give(whole[:2])
    assert spare.empty_like(whole[:2]).untyped_storage().data_ptr() != whole.data_ptr()
