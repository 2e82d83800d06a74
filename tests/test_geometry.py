"""Statistics, shapes, samples and heads, against direct computation over random partitions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedgen.geometry import shapes
from fedgen.geometry.heads import Head, lda, nearest_mean, ridge
from fedgen.geometry.pooling import robust_pooled
from fedgen.geometry.sampler import augment, draw
from fedgen.geometry.shapes import geometry_of, shape_of, similarity
from fedgen.geometry.statistics import Scatter, Statistics, merge, pooled, statistics_of
from fedgen.geometry.uploads import LowRank, Packed, Sums, Upload, dense_bytes, size_bytes

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def samples_of(
    count: int, features: int, classes: int, seed: int, spread: float = 1.0
) -> tuple[Tensor, Tensor, np.random.Generator]:
    generator = np.random.default_rng(seed)
    y = generator.integers(0, classes, count)
    x = 3 * generator.normal(size=(classes, features))[y] + spread * generator.normal(size=(count, features))
    return torch.from_numpy(x), torch.from_numpy(y), generator


def direct(x: Tensor, y: Tensor, label: int) -> tuple[int, Tensor, Tensor]:
    """Count, mean and covariance of a class, by numpy."""
    own = x[y == label].numpy()
    if len(own) == 0:
        return 0, torch.zeros(x.shape[1]).double(), torch.zeros(x.shape[1], x.shape[1]).double()
    covariance = np.atleast_2d(np.cov(own.T, bias=True))
    return len(own), torch.from_numpy(own.mean(0)), torch.from_numpy(covariance)


def assert_direct(statistics: Statistics, x: Tensor, y: Tensor) -> None:
    for label in range(statistics.classes):
        count, mean, covariance = direct(x, y, label)
        assert statistics.counts[label] == count
        torch.testing.assert_close(statistics.means[label], mean, **EXACT)
        torch.testing.assert_close(statistics.covariance(label), covariance, **EXACT)


partitions = st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(1, 8), st.integers(0, 999))


@given(partitions)
def test_pooled_statistics_are_those_of_all_samples(case: tuple[int, int, int, int, int]) -> None:
    """Any partition and order: participants without samples, classes with none or one, both forms of a scatter."""
    count, features, classes, clients, seed = case
    x, y, generator = samples_of(count, features, classes, seed)
    owner = generator.integers(0, clients, count)
    parts = [statistics_of(x[owner == client], y[owner == client], classes) for client in range(clients)]
    nobody = statistics_of(x[:0], y[:0], classes)
    assert_direct(pooled(parts), x, y)
    assert_direct(pooled([parts[place] for place in generator.permutation(clients)]), x, y)
    assert_direct(merge(pooled(parts[: (clients + 1) // 2]), pooled([nobody, *parts[(clients + 1) // 2 :]])), x, y)
    shared = pooled(part.with_shared() for part in parts)
    torch.testing.assert_close(shared.within().dense(), pooled(parts).within().dense(), **EXACT)


def test_mean_and_covariance_of_two_samples_are_the_samples() -> None:
    """x = mean +- sqrt(lambda_1) axis_1, which is why minimum_count = 2 reveals them; of three a turn is left open."""
    x, _, _ = samples_of(2, 5, 1, 0)
    statistics = statistics_of(x, [0, 0], 1)
    shape = shape_of(statistics.scatters[0], 2)
    away = shape.values[0].sqrt() * shape.axes[0]
    found = torch.stack([statistics.means[0] + away, statistics.means[0] - away])
    torch.testing.assert_close(found[found[:, 0].argsort()], x[x[:, 0].argsort()], rtol=1e-8, atol=1e-8)
    three, _, _ = samples_of(3, 5, 1, 0)
    mean = three.mean(0)
    basis = torch.linalg.svd(three - mean).Vh[:2]
    flat, turn = (three - mean) @ basis.mT, torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    thirds = torch.linalg.svd(flat, full_matrices=False)
    others = mean + (thirds.U @ turn * thirds.S) @ thirds.Vh @ basis
    assert (others - three).abs().max() > 0.1
    one, other = statistics_of(three, [0] * 3, 1), statistics_of(others, [0] * 3, 1)
    torch.testing.assert_close(one.means, other.means, **EXACT)
    torch.testing.assert_close(one.covariance(0), other.covariance(0), **EXACT)


def test_merging_is_stable_far_from_the_origin() -> None:
    """Means of 1e6 and deviations of one: raw second moments would have lost them."""
    x, y, _ = samples_of(200, 4, 1, 0)
    x = x + 1e6
    parts = [statistics_of(x[start : start + 20], y[start : start + 20], 1) for start in range(0, 200, 20)]
    torch.testing.assert_close(pooled(parts).covariance(0), direct(x, y, 0)[2], rtol=1e-8, atol=1e-8)


def test_a_scatter_of_few_samples_never_becomes_a_matrix() -> None:
    """37,000 features: a matrix would be 11 GB."""
    x, y, _ = samples_of(20, 37_000, 2, 0)
    parts = [statistics_of(x[:8], y[:8], 2), statistics_of(x[8:], y[8:], 2)]
    whole = pooled(parts)
    assert all(scatter.factored for scatter in whole.scatters)
    geometry = geometry_of(whole, "eigenvalue")
    augmented = augment(x[:8], y[:8], geometry, target=30)
    assert augmented.x.shape == (60, 37_000)
    accuracy = (ridge(whole)(x).argmax(1) == y).double().mean()
    assert accuracy == 1
    sent = LowRank(classes=2, features=37_000, rank=16, dtype=torch.float64)
    received = pooled(sent.decode(sent.encode(part)) for part in parts)
    outer = received.scatters[0].rows @ whole.scatters[0].rows.mT
    torch.testing.assert_close(
        outer.square().sum(), (whole.scatters[0].rows @ whole.scatters[0].rows.mT).square().sum()
    )


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), [0, 1, 2], "labels run from 0 to 2; expected 0 to 1"),
        (np.zeros((3, 2)), [0, -1, 1], "labels run from -1 to 1"),
        (np.zeros((3, 2)), [0, 1], r"x \(3, 2\) and y \(2,\): expected"),
        (np.zeros(3), [0, 1, 1], r"x \(3,\) and y \(3,\): expected"),
    ],
)
def test_samples_that_do_not_fit_are_refused(x: Any, y: Any, message: str) -> None:
    fitting = statistics_of(np.zeros((2, 2)), [0, 1], classes=2)
    with pytest.raises(ValueError, match=message):
        statistics_of(x, y, classes=2)
    with pytest.raises(ValueError, match=message):
        augment(x, y, geometry_of(fitting), target=3)


def test_a_geometry_of_other_features_is_refused() -> None:
    with pytest.raises(ValueError, match="x has 3 features, the geometry 2"):
        augment(np.zeros((2, 3)), [0, 1], geometry_of(statistics_of(np.zeros((2, 2)), [0, 1], classes=2)), target=3)


def test_the_pool_of_nobody_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one participant"):
        pooled([])


# Uploads.


def uploads(classes: int, features: int, rank: int = 40) -> dict[str, tuple[Upload, float]]:
    """Name -> (upload, relative error of a covariance)."""
    return {
        "sums": (Sums(classes, features), 1e-10),
        "packed, double": (Packed(classes, features, dtype=torch.float64), 1e-12),
        "packed, half": (Packed(classes, features), 2e-3),
        "low rank, double": (LowRank(classes, features, rank, torch.float64), 1e-9),
        "low rank, half": (LowRank(classes, features, rank), 5e-3),
    }


@pytest.mark.parametrize("name", uploads(1, 1))
@given(partitions, st.sampled_from([1e-6, 1.0, 1e5]))
@settings(max_examples=25)
def test_an_upload_is_decoded_to_what_was_sent(name: str, case: tuple[int, int, int, int, int], unit: float) -> None:
    count, features, classes, _, seed = case
    upload, error = uploads(classes, features)[name]
    x, y, _ = samples_of(count, features, classes, seed)
    sent = statistics_of(unit * x, y, classes)
    row = upload.encode(sent)
    assert (tuple(row.shape), row.dtype) == ((upload.layout.size,), upload.layout.dtype)
    received = upload.decode(row)
    assert torch.equal(received.counts, sent.counts)
    torch.testing.assert_close(received.means, sent.means, rtol=0, atol=error * float(sent.means.abs().max()))
    for label in range(classes):
        size = float(sent.means[label].square().sum() + sent.scatter(label).trace / sent.counts[label].clamp_min(1))
        assert (received.covariance(label) - sent.covariance(label)).abs().max() <= error * size


def test_counts_are_exact_in_half_precision() -> None:
    counts = torch.tensor([0.0, 1.0, 1023.0, 1024.0, 54_321.0, 2_000_000.0], dtype=torch.float64)
    nothing = Scatter(torch.zeros(0, 2, dtype=torch.float64))
    statistics = Statistics(counts, torch.ones(6, 2, dtype=torch.float64), (nothing,) * 6)
    assert torch.equal(Packed(6, 2).decode(Packed(6, 2).encode(statistics)).counts, counts)


def test_sums_of_rows_are_rows_of_the_pool() -> None:
    x, y, _ = samples_of(60, 5, 3, 1)
    for shared in (False, True):
        upload = Sums(3, 5, shared)
        rows = [upload.encode(statistics_of(x[start::4], y[start::4], 3)) for start in range(4)]
        received, expected = upload.decode(torch.stack(rows).sum(0)), statistics_of(x, y, 3)
        torch.testing.assert_close(received.means, expected.means, **EXACT)
        torch.testing.assert_close(received.within().dense(), expected.within().dense(), **EXACT)


@given(partitions, st.sampled_from([0.0, 10.0, 100.0, 1e4]))
@settings(max_examples=40)
def test_sums_lose_the_square_of_the_offset_and_merged_statistics_nothing(
    case: tuple[int, int, int, int, int], offset: float
) -> None:
    """Means of so many deviations: 1e-10 holds to some hundred of them in sums, and always where statistics merge."""
    count, features, classes, clients, seed = case
    x, y, generator = samples_of(count, features, classes, seed)
    x, upload = x + offset, Sums(classes, features)
    owner = generator.integers(0, clients, count)
    parts = [statistics_of(x[owner == client], y[owner == client], classes) for client in range(clients)]
    received, merged = upload.decode(torch.stack([upload.encode(part) for part in parts]).sum(0)), pooled(parts)
    for label in range(classes):
        expected = direct(x, y, label)[2]
        assert (received.covariance(label) - expected).abs().max() <= 5e-15 * (100 + offset**2)
        assert (merged.covariance(label) - expected).abs().max() <= 1e-10


def test_a_truncated_upload_keeps_the_variance() -> None:
    x, y, _ = samples_of(400, 30, 2, 0)
    sent = statistics_of(x, y, 2)
    received = LowRank(2, 30, rank=4).decode(LowRank(2, 30, rank=4).encode(sent))
    for label in range(2):
        assert received.scatter(label).trace == pytest.approx(sent.scatter(label).trace, rel=1e-3)
        largest = torch.linalg.eigvalsh(received.covariance(label))[-4:]
        torch.testing.assert_close(largest, torch.linalg.eigvalsh(sent.covariance(label))[-4:], rtol=5e-3, atol=0)


def test_upload_sizes() -> None:
    """Rank 32 in half precision is 60 times smaller than whole covariances; second moments are below half a MB."""
    assert dense_bytes(10, 512) >= 60 * size_bytes(LowRank(10, 512, 32))
    assert size_bytes(Packed(200, 512, shared=True)) <= 500_000
    upload = Packed(3, 4)
    assert upload.encode(statistics_of(torch.zeros(0, 4), torch.zeros(0), 3)).nbytes == size_bytes(upload)


# Shapes.


@given(partitions, st.booleans())
def test_a_shape_is_the_eigendecomposition(case: tuple[int, int, int, int, int], dense: bool) -> None:
    count, features, _, _, seed = case
    x, y, _ = samples_of(count, features, 1, seed)
    statistics = statistics_of(x, y, 1)
    scatter = Scatter(x[:0], statistics.scatters[0].dense()) if dense else statistics.scatters[0]
    shape = shape_of(scatter, count)
    assert (shape.values > 0).all()
    assert all(first >= second for first, second in pairwise(shape.values.tolist()))
    torch.testing.assert_close(shape.axes @ shape.axes.mT, torch.eye(len(shape.axes)).double(), rtol=0, atol=1e-7)
    again = (shape.axes.mT * shape.values) @ shape.axes
    torch.testing.assert_close(again, direct(x, y, 0)[2], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("scale", ["standard_deviation", "eigenvalue"])
@pytest.mark.parametrize("count", [1, 2, 6, 11, 60])
def test_roots_have_the_covariance_of_the_noise(scale: Any, count: int) -> None:
    """S for standard deviations, S^2 for eigenvalues, whichever form the scatter has."""
    x, y, _ = samples_of(count, 20, 1, 3)
    statistics = statistics_of(x, y, 1)
    as_matrix = Statistics(statistics.counts, statistics.means, (Scatter(x[:0], statistics.scatters[0].dense()),))
    covariance = direct(x, y, 0)[2]
    expected = covariance if scale == "standard_deviation" else covariance @ covariance
    for each in (statistics, as_matrix):
        root = geometry_of(each, scale).roots[0].double()
        torch.testing.assert_close(root.mT @ root, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max() + 1e-9))


@pytest.mark.parametrize("scale", ["standard_deviation", "eigenvalue"])
def test_an_even_remainder_is_part_of_the_noise(scale: Any) -> None:
    """rows^T rows + 2 I: the noise has S, or S^2, in every direction."""
    rows = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scatter = Scatter(rows, None, 2.0)
    statistics = Statistics(torch.ones(1).double(), torch.zeros(1, 6).double(), (scatter,))
    geometry = geometry_of(statistics, scale)
    noise = geometry.roots[0].double().mT @ geometry.roots[0].double() + geometry.remainders[
        0
    ].double() ** 2 * torch.eye(6)
    expected = scatter.dense() if scale == "standard_deviation" else scatter.dense() @ scatter.dense()
    torch.testing.assert_close(noise, expected, rtol=1e-5, atol=1e-5)


def test_a_noisy_matrix_that_is_no_covariance_is_mended() -> None:
    """Negative eigenvalues, as noise for privacy leaves them, are left out."""
    matrix = torch.diag(torch.tensor([4.0, 1.0, -0.5, 0.0]).double())
    for count in (2.0, 100.0):
        statistics = Statistics(
            torch.tensor([count]).double(), torch.zeros(1, 4).double(), (Scatter(matrix[:0], count * matrix),)
        )
        root = geometry_of(statistics).roots[0].double()
        torch.testing.assert_close(root.mT @ root, matrix.clamp_min(0), rtol=1e-6, atol=1e-6)


def test_similarity_counts_the_axes_that_agree() -> None:
    x, y, _ = samples_of(500, 8, 1, 0)
    x = x * torch.arange(8, 0, -1)
    one = shape_of(statistics_of(x[::2], y[::2], 1).scatters[0], 250)
    other = shape_of(statistics_of(x[1::2], y[1::2], 1).scatters[0], 250)
    assert similarity(one, one) == pytest.approx(8)
    assert similarity(one, one, axes=3) == pytest.approx(3)
    turned = shapes.Shape(one.values, one.axes.roll(1, 0))
    assert similarity(one, turned) == pytest.approx(0, abs=1e-9)
    assert 4 < similarity(one, other) < 8


# Samples.


def test_new_samples_have_mean_and_covariance() -> None:
    x, y, _ = samples_of(60, 5, 1, 0)
    statistics = statistics_of(x, y, 1)
    around = augment(x[:0], y[:0], geometry_of(statistics), target=200_000).x.double()
    torch.testing.assert_close(around.mean(0), statistics.means[0], rtol=0, atol=0.02)
    torch.testing.assert_close(torch.from_numpy(np.cov(around.T.numpy())), statistics.covariance(0), rtol=0, atol=0.03)
    own = augment(x[:2], y[:2], geometry_of(statistics), target=200_000, centre="sample")
    torch.testing.assert_close(own.x[::2].double().mean(0), x[0], rtol=0, atol=0.02)


def test_every_class_reaches_its_target_and_no_more() -> None:
    """Around their own samples participants fill what they hold; around the mean what anybody holds."""
    x, y, _ = samples_of(80, 4, 5, 0)
    x, y = x[y != 3], y[y != 3]
    geometry = geometry_of(statistics_of(x, y, 5))
    own = (y == 0) | (y == 1)
    held = torch.bincount(y[own], minlength=5).tolist()
    filled = augment(x[own], y[own], geometry, target=30, centre="sample")
    assert torch.bincount(filled.y, minlength=5).tolist() == [30, 30, 0, 0, 0]
    assert torch.equal(filled.x[: filled.real], x[own].float())
    assert torch.bincount(augment(x[own], y[own], geometry, target=30).y, minlength=5).tolist() == [30, 30, 30, 0, 30]
    each = augment(x[own], y[own], geometry, target=[1, 40, 7, 9, 0]).y
    assert torch.bincount(each, minlength=5).tolist() == [held[0], 40, 7, 0, 0]
    with pytest.raises(ValueError, match="target: 2 numbers for 5 classes"):
        augment(x, y, geometry, target=[1, 2])


def test_prototypes_of_other_domains_are_centres_too() -> None:
    x, y, _ = samples_of(40, 6, 2, 0, spread=0.01)
    prototypes = torch.full((3, 2, 6), torch.nan)
    prototypes[0, 0], prototypes[2, 0], prototypes[2, 1] = 100, 200, 300
    augmented = augment(x, y, geometry_of(statistics_of(x, y, 2)), target=0, prototypes=prototypes, per_prototype=4)
    new, labels = augmented.x[augmented.real :], augmented.y[augmented.real :]
    assert labels.tolist() == [0] * 8 + [1] * 4
    assert new.mean(1).round().tolist() == [100.0] * 4 + [200.0] * 4 + [300.0] * 4


def test_equal_seeds_make_equal_samples_of_a_class_whatever_else_is_made() -> None:
    x, y, _ = samples_of(40, 6, 3, 0)
    geometry = geometry_of(statistics_of(x, y, 3))
    one = augment(x, y, geometry, target=50, seed=4)
    other = augment(x, y, geometry, target=[50, 0, 50], seed=4)
    for label in (0, 2):
        assert torch.equal(one.x[one.y == label], other.x[other.y == label])
    assert not torch.equal(one.x, augment(x, y, geometry, target=50, seed=5).x)


def test_a_triangular_root_draws_as_a_whole_one() -> None:
    """The products of column blocks, which skip zeros, against one product."""
    whole = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    for root in (whole, whole.triu(), whole.triu()[:40], torch.zeros(2, 300)):
        out = torch.empty(1500, 300)
        draw(out, torch.zeros(1, 300), root, 0.0, torch.Generator().manual_seed(1))
        generator, rows = torch.Generator().manual_seed(1), len(root) if root.any() else 0
        parts = [torch.empty(size, rows).normal_(generator=generator) for size in (1024, 476)]
        torch.testing.assert_close(out, torch.cat(parts) @ root[:rows], rtol=1e-4, atol=1e-4)


# Heads.

HEADS: dict[str, Callable[[Statistics], Head]] = {
    "nearest_mean": nearest_mean,
    "lda": lda,
    "ridge": ridge,
    "ridge of samples": lambda statistics: ridge(statistics, balanced=False),
}


@pytest.mark.parametrize("name", HEADS)
@given(partitions)
@settings(max_examples=25)
def test_a_head_is_the_same_for_every_partition(name: str, case: tuple[int, int, int, int, int]) -> None:
    count, features, classes, clients, seed = case
    x, y, generator = samples_of(count, features, classes, seed)
    owner = generator.integers(0, clients, count)
    parts = [statistics_of(x[owner == client], y[owner == client], classes) for client in range(clients)]
    split, whole = HEADS[name](pooled(parts))(x), HEADS[name](statistics_of(x, y, classes))(x)
    torch.testing.assert_close(split, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("features", [3, 50])
def test_ridge_is_least_squares(balanced: bool, features: int) -> None:
    x, y, _ = samples_of(30, features, 3, 0)
    z, weights = torch.cat([x, torch.ones(30, 1)], 1).double(), torch.ones(30).double()
    if balanced:
        weights = 30 / (3 * torch.bincount(y)[y].double())
    second = z.mT @ (weights[:, None] * z)
    penalty = 0.05 * second.trace() / (features + 1)
    targets = z.mT @ (weights[:, None] * torch.nn.functional.one_hot(y, 3).double())
    expected = torch.linalg.solve(second + penalty * torch.eye(features + 1), targets)
    head = ridge(statistics_of(x, y, 3), 0.05, balanced)
    torch.testing.assert_close(head.weight, expected[:-1].mT, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(head.bias, expected[-1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("features", [4, 60])
def test_lda_scores_are_log_posteriors(features: int) -> None:
    """Of normal classes with the pooled, shrunken covariance, up to what all classes have in common."""
    x, y, _ = samples_of(40, features, 3, 0)
    statistics = statistics_of(x, y, 3)
    within = torch.stack([direct(x, y, c)[2] * (y == c).sum() for c in range(3)]).sum(0) / 40
    covariance = within + 0.3 * within.trace() / features * torch.eye(features)
    joint = torch.stack(
        [
            torch.distributions.MultivariateNormal(x[y == c].mean(0), covariance).log_prob(x)
            + ((y == c).sum() / 40).log()
            for c in range(3)
        ],
        dim=1,
    )
    torch.testing.assert_close(lda(statistics)(x).log_softmax(1), joint.log_softmax(1), rtol=1e-6, atol=1e-6)


def test_the_nearest_mean_wins_and_empty_classes_never_do() -> None:
    x, y, _ = samples_of(50, 4, 3, 0)
    statistics = statistics_of(x, y, 5)
    nearest = torch.cdist(x, statistics.means[:3]).argmin(1)
    assert torch.equal(nearest_mean(statistics)(x).argmax(1), nearest)
    for head in HEADS.values():
        assert head(statistics)(x).argmax(1).max() < 3


# Byzantine clients.


def participants() -> list[Statistics]:
    x, y, _ = samples_of(400, 6, 4, 0)
    return [statistics_of(x[start::5], y[start::5], 4) for start in range(5)]


IMPOSSIBLE: dict[str, tuple[Callable[[Statistics], Statistics], str]] = {
    "negative counts": (lambda s: Statistics(-s.counts, s.means, s.scatters), "fewer than 0 samples"),
    "negative variances": (
        lambda s: Statistics(s.counts, s.means, tuple(Scatter(each.rows[:0], -each.dense()) for each in s.scatters)),
        "negative variance",
    ),
    "infinite": (lambda s: Statistics(s.counts, s.means * torch.inf, s.scatters), "not finite"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_no_samples_have_is_left_out_of_the_pool(name: str) -> None:
    lie, why = IMPOSSIBLE[name]
    parts = participants()
    result = robust_pooled([lie(parts[0]), *parts[1:]])
    assert list(result.refused) == [0]
    assert why in result.refused[0]
    torch.testing.assert_close(result.statistics.means, pooled(parts[1:]).means, **EXACT)


FORGED: dict[str, Callable[[Statistics], Statistics]] = {
    "all times 100": lambda s: Statistics(
        100 * s.counts, 100 * s.means, tuple(each.scaled(1e4) for each in s.scatters)
    ),
    "means times 100": lambda s: Statistics(s.counts, 100 * s.means, s.scatters),
    "scatters times 1e4": lambda s: Statistics(s.counts, s.means, tuple(each.scaled(1e4) for each in s.scatters)),
    "one class times 1e9": lambda s: Statistics(s.counts, s.means * torch.tensor([[1e9], [1], [1], [1]]), s.scatters),
    "counts times 1e6": lambda s: Statistics(1e6 * s.counts, s.means, tuple(each.scaled(1e6) for each in s.scatters)),
}


@pytest.mark.parametrize("name", FORGED)
@pytest.mark.parametrize("shared", [False, True])
def test_a_scaled_lie_does_not_outweigh_the_others(name: str, shared: bool) -> None:
    """Shortened, its direction is still a truth: the pool stays near the honest one."""
    parts = [part.with_shared() if shared else part for part in participants()]
    honest, bounded = pooled(parts), robust_pooled([FORGED[name](parts[0]), *parts[1:]])
    assert not bounded.refused
    size = float(honest.means.norm())
    assert (bounded.statistics.means - honest.means).norm() < 0.3 * size
    total = bounded.statistics.within().trace / bounded.statistics.counts.sum()
    assert total == pytest.approx(honest.within().trace / float(honest.counts.sum()), rel=0.3)
    plain = pooled([FORGED[name](parts[0]), *parts[1:]])
    moved = (plain.means - honest.means).norm() / size + abs(
        plain.within().trace / float(plain.counts.sum()) / total - 1
    )
    assert moved > 0.05


def test_nobody_is_left_out_where_nobody_lies_and_nobody_outweighs_the_others() -> None:
    parts = participants()
    honest = robust_pooled(parts)
    assert not honest.refused
    torch.testing.assert_close(honest.statistics.covariance(2), pooled(parts).covariance(2), **EXACT)
    x, y, _ = samples_of(40, 6, 4, 1)
    heavy = statistics_of(x.repeat(1000, 1) + 1, y.repeat(1000), 4)
    assert robust_pooled([heavy, *parts]).statistics.counts.sum() == pytest.approx(3 * 80 + 400)
    with pytest.raises(ValueError, match="no participant's statistics"):
        robust_pooled([IMPOSSIBLE["infinite"][0](parts[0])])
