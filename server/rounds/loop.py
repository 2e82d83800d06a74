"""What a loop is: how the rounds of a federation are played."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.parameters import Tensors
from fedgen.server.rounds.session import Session
from fedgen.tracking.record import RoundRecord


class Loop(ABC):
    """One for each mode and clock; it holds no state, that is all in the session."""

    def check(self, federation: Federation) -> None:
        """Raises SettingError where the loop cannot play this federation; asked before anything is written."""
        section, method = federation.experiment.federation, federation.method
        if section.mode not in method.modes:
            raise SettingError(
                f"training.method {federation.experiment.training.method.name!r} in its wrappers runs in "
                f"{sorted(method.modes)}, not in federation.mode = {section.mode!r}"
            )
        if section.rounds == 0 and method.setup_rounds == 0:
            raise SettingError(
                "federation.rounds = 0 leaves only what a method exchanges before round 0, and this one exchanges "
                'nothing; ask for a round, or for training.wrappers = [{ name = "ggeur", start = "ridge" }]'
            )

    @abstractmethod
    def initial_state(self, federation: Federation) -> Tensors:
        """The state before the first exchange: the server's, or {name: [N, ...]} of all peers."""

    @abstractmethod
    def play_round(self, session: Session, evaluate: bool) -> RoundRecord:
        """Play the next round. `session.standing` changes when nothing can interrupt it any more, or not at all.

        Raises FedgenError where the round cannot be played, such as where everybody failed.
        """

    @abstractmethod
    def final_model(self, federation: Federation, state: Tensors, round: int) -> Tensor:
        """The row [d] that a run leaves behind after that round."""
