"""The interface of a loop, which plays the rounds of a federation."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.parameters import Tensors
from fedgen.server.rounds.session import Session
from fedgen.tracking.record import RoundRecord


class Loop(ABC):
    """One class for each mode and clock. A loop has no state; all state is in the session."""

    def check(self, federation: Federation) -> None:
        """Raises SettingError if the loop cannot play this federation; called before anything is written."""
        section = federation.experiment.federation
        method = federation.method
        if section.mode not in method.modes:
            raise SettingError(
                f"training.method {federation.experiment.training.method.name!r} in its wrappers runs in "
                f"{sorted(method.modes)}, not in federation.mode = {section.mode!r}"
            )
        if section.rounds == 0 and method.setup_rounds == 0:
            raise SettingError(
                "federation.rounds = 0 plays setup exchanges only, and this method has none; set federation.rounds to "
                'at least 1, or training.wrappers = [{ name = "ggeur", start = "ridge" }]'
            )

    @abstractmethod
    def initial_state(self, federation: Federation) -> Tensors:
        """The state before the first exchange: the server's, or {name: [N, ...]} of all peers."""

    @abstractmethod
    def play_round(self, session: Session, evaluate: bool) -> RoundRecord:
        """Play the next round. `session.standing` changes at its end, when nothing can interrupt it, or not at all.

        Raises FedgenError if the round cannot be played, for example if every client failed.
        """

    @abstractmethod
    def final_model(self, federation: Federation, state: Tensors, round: int) -> Tensor:
        """[d]: the model that a run writes after that round."""
