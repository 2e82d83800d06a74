"""Trains your own torch module with your own loss and metric, all named by import path."""

from torch import Tensor, nn

from fedgen import Experiment, run


class Net(nn.Module):
    """Two hidden layers with a residual connection; the arguments are keys of [model]."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, width), nn.Linear(width, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = nn.functional.gelu(self.first(x.flatten(1)))
        return self.last(hidden + nn.functional.gelu(self.second(hidden)))


def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy with smoothed labels: outputs[b, c], targets[b] -> one number per sample, [b]."""
    return nn.functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


def top_two(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where the target is among the two largest outputs, else 0: [b]."""
    return (outputs.topk(2).indices == targets[:, None]).any(1).double()


top_two.lower_is_better = False  # the report can then show the best round

if __name__ == "__main__":  # fedgen imports this file as own_module from the script's folder
    experiment = Experiment(
        data={"clients": 10, "standardise": True},
        model={"name": "own_module:Net", "loss": "own_module:smoothed", "metrics": ["own_module:top_two", "accuracy"]},
        federation={"rounds": 10, "cohort": 5},
    )
    for name, values in run(experiment).history.items():
        print(f"{name:30}", *(f"{value:.3f}" for value in values))
