"""Regression on your own data: the diabetes data of scikit-learn, with ten measurements and one score per patient.

fedgen run examples/regression.toml        or        python examples/regression.py
"""

from pathlib import Path

import torch
from sklearn.datasets import load_diabetes

from fedgen import load_experiment, run
from fedgen.data.dataset import Dataset, Source


class Diabetes(Source):
    """x[s, 10], y[s]: the score in units of its standard deviation; every fifth patient is a test sample."""

    def load(self, folder: Path) -> Dataset:
        measured, score = load_diabetes(return_X_y=True)
        x, y = torch.tensor(measured, dtype=torch.float32), torch.tensor(score, dtype=torch.float32)
        test = torch.arange(len(y)) % 5 == 0
        y = (y - y[~test].mean()) / y[~test].std()
        return Dataset("diabetes", x[~test], y[~test], x[test], y[test], kind="numbers")


if __name__ == "__main__":
    result = run(load_experiment(Path(__file__).with_suffix(".toml")))
    print(f"{result.state}: r_squared {result.metrics['r_squared']:.3f}")
