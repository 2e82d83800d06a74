"""The procedure of GGEUR's public implementation, written anew from a description of it.

Augmentation: for every training sample the covariance of its class is decomposed three times (eigenvalues, Cholesky,
and the singular values inside numpy's multivariate_normal), and `target` samples are drawn around it. Of the samples
drawn for a class only as many as it lacks are kept, chosen at random. With several domains, a class that has reached
its target keeps only its own samples; a class without samples takes the first ones around the mean of the first other
domain.

Training: clients never receive the global model, and a softmax is applied before a cross entropy that applies another.
The global model is the unweighted mean of the clients' models and is only evaluated; the best round on the test set is
reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedgen.geometry.sampler import draw
from fedgen.geometry.shapes import Geometry

Client = tuple[Tensor, Tensor]
Array = np.ndarray[Any, Any]


def around(sample: Array, covariance: Array, count: int, generator: np.random.Generator) -> Array:
    """`count` samples of N(sample, covariance), after the covariance is made positive definite."""
    values, vectors = np.linalg.eigh(covariance)
    mended = vectors @ np.diag(values.clip(1e-6)) @ vectors.T
    np.linalg.cholesky(mended)
    return generator.multivariate_normal(sample, mended, count, method="svd")


def augmentation_seconds(clients: Sequence[Client], covariances: Array, target: int, calls: int | None = None) -> float:
    """CPU seconds for all training samples, extrapolated from the first `calls`."""
    generator, samples = np.random.default_rng(0), [pair for x, y in clients for pair in zip(x.numpy(), y, strict=True)]
    timed = samples if calls is None else samples[:calls]
    began = process_time()
    for sample, label in timed:
        around(sample.astype(np.float64), covariances[int(label)], target, generator)
    return (process_time() - began) * len(samples) / len(timed)


def augmented(own: Client, prototypes: Tensor | None, geometry: Geometry, target: int, seed: int) -> Client:
    """The training samples of a client, with the distribution of `around` but drawn faster.

    prototypes[D, C, d]: of the other domains, NaN for classes without samples; None with a single domain.
    """
    generator = torch.Generator().manual_seed(seed)
    xs, ys = [own[0]], [own[1]]
    for label in range(len(geometry.means)):
        held, root = own[0][own[1] == label], geometry.root(label)[0]
        lacking = max(0, target - len(held))
        centres = [held] if len(held) else []
        if prototypes is not None:
            known = prototypes[~prototypes[:, label, 0].isnan(), label]
            centres = [held, known] if len(held) else [known[:1]]
        pool = torch.cat(centres) if centres else held
        if not lacking or not len(pool):
            continue
        # Every centre has `target` samples in the pool, so draws without replacement spread over the centres.
        picks = torch.randperm(len(pool) * target, generator=generator)[:lacking] // target
        made = torch.empty(lacking, pool.shape[1])
        draw(made, pool[picks], root, 0.0, generator)
        xs.append(made)
        ys.append(torch.full((lacking,), label))
    return torch.cat(xs), torch.cat(ys)


def best_accuracy(
    clients: Sequence[Client], tests: Sequence[Client], rounds: int, epochs: int, batch: int, seed: int
) -> float:
    """The best round's mean accuracy over `tests` of the unweighted mean model."""
    torch.manual_seed(seed)
    features, classes = clients[0][0].shape[1], 1 + int(max(y.max() for _, y in tests))
    models = [nn.Linear(features, classes) for _ in clients]
    best = 0.0
    for _ in range(rounds):
        for model, (x, y) in zip(models, clients, strict=True):
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            for _ in range(epochs):
                for rows in torch.randperm(len(y)).split(batch):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(x[rows]).softmax(1), y[rows]).backward()
                    optimizer.step()
        weight = torch.stack([model.weight.detach() for model in models]).mean(0)
        bias = torch.stack([model.bias.detach() for model in models]).mean(0)
        right = [((x @ weight.T + bias).argmax(1) == y).double().mean() for x, y in tests]
        best = max(best, float(torch.stack(right).mean()))
    return 100 * best
