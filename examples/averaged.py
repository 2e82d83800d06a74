"""Your own method with two pictures in the report: local SGD, evaluated at the running mean of the server's models.

fedgen run examples/averaged.toml
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.contracts import Inbox, Occasion
from fedgen.exhibits import Exhibit, Heatmap, Images
from fedgen.methods.sgd import LocalSgd


@dataclass(frozen=True, kw_only=True)
class Averaged(LocalSgd):
    """average <- decay * average + (1 - decay) * model, after every round."""

    decay: float = 0.8

    def initial_state(self, replica: int) -> dict[str, Tensor]:
        state = super().initial_state(replica)
        return {**state, "average": state["model"]}

    def server_update(self, state: dict[str, Tensor], inbox: Inbox, round: int) -> dict[str, Tensor]:
        after = super().server_update(state, inbox, round)
        return {**after, "average": torch.lerp(after["model"], state["average"], self.decay)}

    def evaluate(self, state: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return super().evaluate({**state, "model": state["average"]}, x, y)

    def exhibits(self, state: dict[str, Tensor], occasion: Occasion) -> Sequence[Exhibit]:
        """The weights of each digit as an image, and the confusion matrix of the test set."""
        weights, bias = self.layout.view(state["average"]).values()
        looks = weights.view(10, 8, 8) / (2 * weights.abs().max()) + 0.5  # grey: weight 0
        digits, x, y = occasion.dataset.classes, occasion.dataset.test_x, occasion.dataset.test_y
        confused = torch.zeros(10, 10)
        confused.index_put_((y, (x.flatten(1) @ weights.T + bias).argmax(1)), torch.ones(len(y)), accumulate=True)
        return [
            Images("looks", "What the mean model looks for", looks, names=digits, section="Mean model"),
            Heatmap("confused", "Test digits, and what they were taken for", {"": confused}, x_label="taken for",
                    y_label="digit", row_names=digits, column_names=digits, written=True, section="Mean model"),
        ]  # fmt: skip
