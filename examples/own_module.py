"""Federate a torch module of your own, with its own loss and metric.

Parts of your own are named by import path; this file is found as `own_module` because Python searches a script's folder.
"""

from torch import Tensor, nn
from torch.nn import functional

from fedgen import Experiment, run


class Net(nn.Module):
    """A hidden layer with a way around it; the arguments are keys of [model]."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.gelu(self.first(x.flatten(1)))
        return self.last(hidden + functional.gelu(self.second(hidden)))


def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with smoothed labels: outputs[b, c], targets[b] -> one number a sample, [b]."""
    return functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


def top_two(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the target is among the two largest outputs: [b]."""
    return (outputs.topk(2).indices == targets[:, None]).any(1).double()


if __name__ == "__main__":  # importing this file, as fedgen does, starts nothing
    model = {"name": "own_module:Net", "width": 96, "loss": "own_module:smoothed"}
    model["metrics"] = ["accuracy", "own_module:top_two"]
    federation = {"rounds": 10, "cohort": 5, "server_optimizer": {"momentum": 0.5}}
    result = run(Experiment(data={"clients": 10}, model=model, federation=federation, runtime={"backend": "serial"}))
    for name, values in result.history.items():
        print(f"{name:20}", *(f"{value:.3f}" for value in values))
