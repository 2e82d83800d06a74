"""Asks method, rule and attack for their exhibits and logs them with the round; see `fedgen.exhibits`."""

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
    """Log the exhibits of the round that was just played and evaluated.

    A part that raises, or returns something else, does not end the run; event "exhibits_failed" and `note` report it.
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
    """The exhibits of a part, or a message for each that is invalid."""
    try:
        with own_generator():  # random numbers drawn for a picture must not change those of training
            exhibits: object = ask(occasion)
    except Exception as error:
        yield f"{part}: its exhibits are left out ({explained(error)})"
        return
    kinds = ", ".join(kind.__name__ for kind in KINDS.values())
    if not isinstance(exhibits, list | tuple):
        yield f"{part}: exhibits must return a list of fedgen.exhibits ({kinds}); it returned {type(exhibits).__name__}"
        return
    for place, exhibit in enumerate(exhibits):
        if isinstance(exhibit, Exhibit) and isinstance(exhibit, tuple(KINDS.values())):
            yield exhibit
        else:
            yield f"{part}: exhibit {place} is left out, it must be one of {kinds}; got {type(exhibit).__name__}"


def _named(session: Session, part: str) -> str:
    """Key and name of a part with its wrappers, as in the experiment file."""
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
