"""Asks method, rule and attack for what there is to see of them, and keeps it with the round; see `fedgen.exhibits`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from fedgen.contracts import Block, Occasion
from fedgen.exhibits import KINDS, Exhibit
from fedgen.models.model import own_generator
from fedgen.own_code import explained
from fedgen.server.rounds.session import Session
from fedgen.server.store.checkpoint import flat

Ask = Callable[[Occasion], Sequence[Exhibit]]


def note_exhibits(session: Session, note: Callable[[str], None]) -> None:
    """Keep the exhibits of the round that was just played and evaluated.

    A part that raises, or returns anything else, does not end the run: the event "exhibits_failed" and `note` say so.
    """
    federation, standing = session.federation, session.standing
    rounds = federation.experiment.federation.rounds
    occasion = Occasion(
        round=standing.round - 1,
        last=standing.round == rounds,
        members="peers" if federation.experiment.federation.mode == "gossip" else "clients",
        dataset=federation.dataset,
        block=lambda clients: _block(session, clients),
    )
    asked: dict[str, Ask] = {
        "method": lambda occasion: federation.method.exhibits(standing.state, occasion),
        "rule": lambda occasion: federation.rule.exhibits(
            standing.rule_memory | flat(standing.memories.rule), occasion
        ),
        "attack": lambda occasion: federation.attack.exhibits(
            standing.attack_memory | flat(standing.memories.attack), occasion
        ),
    }
    for part, ask in asked.items():
        for given in _given(_named(session, part), ask, occasion):
            if isinstance(given, Exhibit):
                session.journal.exhibit({"round": occasion.round, "by": part, **given.to_json()})
            else:
                session.journal.event("exhibits_failed", occasion.round, reason=given)
                note(given)


def _given(part: str, ask: Ask, occasion: Occasion) -> Iterator[Exhibit | str]:
    """The exhibits of a part, and in words what is wrong with what it gave."""
    try:
        with own_generator():  # what a part draws for a picture must not move what training draws
            exhibits: object = ask(occasion)
    except Exception as error:
        yield f"{part}: its exhibits are left out ({explained(error)})"
        return
    kinds = ", ".join(each.__name__ for each in KINDS.values())
    if not isinstance(exhibits, list | tuple):
        yield f"{part}: exhibits must return a list of fedgen.exhibits ({kinds}); it returned {type(exhibits).__name__}"
        return
    for place, exhibit in enumerate(exhibits):
        if isinstance(exhibit, Exhibit) and isinstance(exhibit, tuple(KINDS.values())):
            yield exhibit
        else:
            yield f"{part}: exhibit {place} is left out, it must be one of {kinds}; got {type(exhibit).__name__}"


def _named(session: Session, part: str) -> str:
    """The part in its wrappers, as the experiment names it."""
    experiment = session.federation.experiment
    chosen, wrappers = {
        "method": (f"training.method {experiment.training.method.name!r}", experiment.training.wrappers),
        "rule": (f"aggregation.rule {experiment.aggregation.rule.name!r}", experiment.aggregation.wrappers),
        "attack": (f"byzantine.attack {experiment.byzantine.attack.name!r}", ()),
    }[part]
    return chosen + "".join(f" in {wrapper.name!r}" for wrapper in wrappers)


def _block(session: Session, clients: Tensor) -> Block:
    standing = session.standing
    model = standing.state["model"]
    start = model if model.dim() == 1 else model[clients]
    return session.federation.block(clients, start, standing.clients.take(clients), standing.round)
