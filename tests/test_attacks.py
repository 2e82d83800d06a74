"""Attacks one by one: by hand, and against slow float64 references."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log

import pytest
import torch
from torch import Tensor

from fedgen import registry
from fedgen.aggregation.mean import Mean
from fedgen.attacks.alie import ALittleIsEnough, z_max
from fedgen.attacks.augmented import Augmented, lotka_volterra, sampled, smooth_remainder
from fedgen.attacks.backdoor import Backdoor
from fedgen.attacks.dropped import Dropped
from fedgen.attacks.fang import FangKrum, FangTrimmedMean
from fedgen.attacks.free_rider import FreeRider
from fedgen.attacks.label_flip import LabelFlip
from fedgen.attacks.mimic import Mimic
from fedgen.attacks.noise import Gaussian, Uniform
from fedgen.attacks.search import LEAST, MOST, POINTS, maximum
from fedgen.config import Experiment
from fedgen.contracts import Block, Context, Rule, SlabFunction, View
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.parameters import Layout
from fedgen.rows import LocalRows
from fedgen.server.run.result import Result
from fedgen.streams import Streams


def view_of(n: int, d: int, attackers: list[int], rule: Rule | None = None, round: int = 0) -> View:
    byzantine = torch.zeros(n, dtype=torch.bool)
    byzantine[attackers] = True
    context = Context(
        reference=torch.zeros(d),
        layout=Layout({"row": (d,)}),
        clients=torch.arange(n),
        f=len(attackers),
        round=round,
        streams=Streams(0),
        root=torch.ones(d),
    )
    return View(byzantine, torch.ones(n, dtype=torch.float64), context, rule or Mean())


def rows_of(n: int, d: int, seed: int = 0) -> Tensor:
    """Rows with a common direction, so that their mean is not all noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator) + 0.5 * torch.randn(d, generator=generator)


# Row-wise.


def test_noise_is_the_clients_stream_of_the_round() -> None:
    """By absolute column, so a slice that begins at column 64 goes on where the one before it ended."""
    clients = torch.tensor([1, 3])
    sent = Gaussian(scale=3.0)(torch.zeros(4, 100), [1, 3], round=7, seed=5)
    assert torch.equal(sent[[1, 3]], 3 * Streams(5).normal("attack.gaussian", 7, clients, 100))
    sent = Uniform(low=-1.0, high=3.0)(torch.zeros(4, 100), [1, 3], round=7, seed=5)
    assert torch.equal(sent[[1, 3]], -1 + 4 * Streams(5).uniform("attack.uniform", 7, clients, 100))


def test_uniform_bounds_that_are_no_interval_are_refused() -> None:
    with pytest.raises(SettingError, match=r"'uniform': low = 2.0 must be less than high = 1.0"):
        Uniform(low=2.0)


def test_a_share_of_the_coordinates_is_dropped_and_the_others_are_kept() -> None:
    rows = rows_of(3, 20_000)
    sent = Dropped(share=0.3)(rows, [1])
    dropped = sent[1] == 0
    assert abs(float(dropped.double().mean()) - 0.3) < 5 * (0.3 * 0.7 / 20_000) ** 0.5
    assert torch.equal(sent[1][~dropped], rows[1][~dropped])


def test_a_free_rider_sends_the_last_step_of_the_model() -> None:
    """Two rounds: it remembers the model it saw first, and sends what has become of it since."""
    attack, rows = FreeRider(), rows_of(3, 4)
    first = view_of(3, 4, [2])
    view = replace(first, context=replace(first.context, reference=torch.tensor([1.0, 2, 3, 4])))
    first, _, memory = attack.corrupt(LocalRows(rows), view)
    assert first.collect()[2].tolist() == [0, 0, 0, 0]
    context = replace(view.context, reference=torch.tensor([1.5, 1, 3, 6]), round=1)
    later = replace(view, context=context, memory=memory)
    second, _, memory = attack.corrupt(LocalRows(rows), later)
    assert second.collect()[2].tolist() == [0.5, -1, 0, 2]
    assert memory["reference"].tolist() == [1.5, 1, 3, 6]


def test_the_disguise_of_a_free_rider_shrinks_with_the_rounds() -> None:
    attack, rows = FreeRider(update="zeros", noise=2.0, decay=1.0), torch.zeros(1, 64)
    sent, _, _ = attack.corrupt(LocalRows(rows), view_of(1, 64, [0], round=3))
    noise = Streams(0).normal("attack.free_rider", 3, torch.tensor([0]), 64)
    assert torch.equal(sent.collect(), 0.5 * noise)


@pytest.mark.parametrize("name", registry.members("attack"))
def test_an_attack_can_be_called_on_plain_arrays(name: str, federation: Federation) -> None:
    attack = registry.build("attack", name, {}, facts=federation.facts)
    rows = rows_of(7, 10)
    sent = attack(rows.numpy(), [2, 5])
    assert torch.equal(sent[[0, 1, 3, 4, 6]], rows[[0, 1, 3, 4, 6]])


# Omniscient, against float64 on whole rows.

SHAPES = [(4, 3, [3]), (7, 40, [0, 3]), (12, 200, [1, 2, 7, 11]), (9, 130, [0, 1, 2, 3])]


def honest_of(rows: Tensor, attackers: list[int]) -> Tensor:
    return rows.double()[[row for row in range(len(rows)) if row not in attackers]]


@pytest.mark.parametrize(("n", "d", "attackers"), SHAPES)
@pytest.mark.parametrize("z", [None, 1.5, -0.5])
def test_alie_against_the_reference(n: int, d: int, attackers: list[int], z: float | None) -> None:
    rows = rows_of(n, d)
    honest = honest_of(rows, attackers)
    if z is None:
        supporters = max(n // 2 + 1 - len(attackers), 1)
        z = max(torch.special.ndtri(torch.tensor(1 - supporters / (n - len(attackers))).double()).item(), 0)
        sent = ALittleIsEnough()(rows, attackers)
    else:
        sent = ALittleIsEnough(z=z)(rows, attackers)
    expected = honest.mean(0) + z * (honest - honest.mean(0)).square().mean(0).sqrt()
    torch.testing.assert_close(sent[attackers].double(), expected.expand(len(attackers), -1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "f", "z"), [(50, 24, 1.4261), (15, 3, 0.2104), (10, 1, 0.0), (10, 4, 0.4307), (3, 2, 0.0)]
)
def test_the_papers_z(n: int, f: int, z: float) -> None:
    """50 and 24: s = 2, 24 / 26; 15 and 3: s = 5, 7 / 12; 10 and 4: s = 2, 4 / 6; the others are below a half."""
    assert z_max(n, f) == pytest.approx(z, abs=1e-4)


def perturbation_of(name: str, honest: Tensor) -> Tensor:
    mean = honest.mean(0)
    spread = (honest - mean).square().mean(0).sqrt()
    return {"unit": -mean / mean.norm(), "std": spread, "sign": -mean.sign()}[name]


def halving(allowed: Callable[[float], bool]) -> float:
    """The papers' search: double until it is not allowed, then bisect."""
    low, high = 0.0, 1.0
    while allowed(high):
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low


@pytest.mark.parametrize(("n", "d", "attackers"), SHAPES)
@pytest.mark.parametrize("perturbation", ["unit", "std", "sign"])
@pytest.mark.parametrize("name", ["min_max", "min_sum"])
def test_min_max_and_min_sum_against_a_search_over_whole_rows(
    name: str, perturbation: str, n: int, d: int, attackers: list[int]
) -> None:
    rows = rows_of(n, d)
    honest = honest_of(rows, attackers)
    towards, pairs = perturbation_of(perturbation, honest), torch.cdist(honest, honest)

    def allowed(gamma: float) -> bool:
        apart = (honest.mean(0) + gamma * towards - honest).norm(dim=1)
        if name == "min_max":
            return bool(apart.max() <= pairs.max())
        return bool(apart.square().sum() <= pairs.square().sum(1).max())

    expected = honest.mean(0) + halving(allowed) * towards
    sent = registry.build("attack", name, {"perturbation": perturbation})(rows, attackers)
    torch.testing.assert_close(sent[attackers].double(), expected.expand(len(attackers), -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["min_max", "min_sum"])
@pytest.mark.parametrize("perturbation", ["unit", "std", "sign"])
def test_equal_honest_rows_leave_no_room(name: str, perturbation: str) -> None:
    for row in (torch.zeros(5), torch.arange(5.0)):
        sent = registry.build("attack", name, {"perturbation": perturbation})(row.expand(4, -1), [2])
        torch.testing.assert_close(sent, row.expand(4, -1), rtol=1e-5, atol=1e-5)


def krum_score(rows: Tensor, row: int, f: int) -> float:
    distances = (rows - rows[row]).square().sum(1)
    others = torch.cat([distances[:row], distances[row + 1 :]])
    return float(others.sort().values[: len(rows) - f - 2].sum())


@pytest.mark.parametrize(
    ("n", "d", "attackers"), [(9, 40, [0, 3]), (12, 200, [1, 2, 7, 11]), (15, 10, [3, 4, 5, 6, 7])]
)
def test_fang_on_krum_against_the_papers_search(n: int, d: int, attackers: list[int]) -> None:
    rows = rows_of(n, d)
    honest, c = honest_of(rows, attackers), len(attackers)
    sign = honest.mean(0).sign()
    spread = min(krum_score(honest, row, len(honest) - (n - c)) for row in range(len(honest)))
    size = (spread / ((n - 2 * c - 1) * d)) ** 0.5 + float(honest.norm(dim=1).max()) / d**0.5
    while size >= 1e-5:
        sent = rows.double().clone()
        sent[attackers] = -size * sign
        if min(range(n), key=lambda row: krum_score(sent, row, c)) in attackers:
            break
        size /= 2
    lies = FangKrum()(rows, attackers)[attackers]
    torch.testing.assert_close(lies.double(), (-size * sign).expand(c, -1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("n", "d", "attackers"), SHAPES)
def test_fang_on_the_trimmed_mean_stays_in_the_papers_intervals(n: int, d: int, attackers: list[int]) -> None:
    rows = rows_of(n, d)
    honest = honest_of(rows, attackers)
    lies = FangTrimmedMean(b=3.0)(rows, attackers)[attackers].double()
    for column in range(d):
        low, high = float(honest[:, column].min()), float(honest[:, column].max())
        if honest[:, column].mean() > 0:
            bounds = (low / 3, low) if low > 0 else (3 * low, low)
        else:
            bounds = (high, 3 * high) if high > 0 else (high, high / 3)
        assert (lies[:, column] >= bounds[0] - 1e-6).all()
        assert (lies[:, column] <= bounds[1] + 1e-6).all()
    assert len(attackers) == 1 or not torch.equal(lies[0], lies[1]), "each attacker draws its own"


def test_mimic_copies_the_row_that_is_farthest_along_the_main_direction() -> None:
    rows = rows_of(9, 60)
    honest = honest_of(rows, [2, 5])
    direction = torch.linalg.svd(honest - honest.mean(0), full_matrices=False).Vh[0]
    victim = ((honest - honest.mean(0)) @ direction).abs().argmax()
    sent = Mimic()(rows, [2, 5])
    assert torch.equal(sent[2], honest[victim].float())
    assert torch.equal(sent[5], honest[victim].float())


def test_mimic_stays_with_its_victim_while_it_is_there() -> None:
    attack, rows, view = Mimic(), rows_of(5, 30), view_of(5, 30, [1])
    _, _, memory = attack.corrupt(LocalRows(rows), view)
    victim = int(memory["victim"])
    again, _, memory = attack.corrupt(LocalRows(rows_of(5, 30, seed=1)), replace(view, memory=memory))
    assert int(memory["victim"]) == victim
    assert torch.equal(again.collect()[1], rows_of(5, 30, seed=1)[victim])
    elsewhere = replace(view, context=replace(view.context, clients=torch.arange(10, 15)), memory=memory)
    _, _, memory = attack.corrupt(LocalRows(rows), elsewhere)
    assert int(memory["victim"]) == victim + 10, "the same rows of other clients: chosen anew"
    named, _, _ = Mimic(client=3).corrupt(LocalRows(rows), view)
    assert torch.equal(named.collect()[1], rows[3])


# Line searches.


def wrapped(name: str, federation: Federation) -> Rule:
    *wrappers, part = name.split()
    rule: Rule = registry.build("rule", part, {}, facts=federation.facts)
    for wrapper in wrappers:
        rule = registry.build("rule_wrapper", wrapper, {}, facts=federation.facts, inner=rule)
    return rule


SEARCHED = [
    *registry.members("rule"),
    *(f"{wrapper} {rule}" for wrapper in registry.members("rule_wrapper") for rule in ("geometric_median", "median")
      if rule in registry.members("rule")),
]  # fmt: skip


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("attack", ["alie", "ipm"])
def test_the_searched_strength_is_as_good_as_any_of_the_grid(name: str, attack: str, federation: Federation) -> None:
    """By whole rows and the rule's own aggregate: nothing on the grid moves it farther than what is sent."""
    rule, attackers = wrapped(name, federation), [0, 4, 9]
    rows = rows_of(15, 60)
    honest = honest_of(rows, attackers)
    view = view_of(15, 60, attackers, rule)

    def moved(sent: Tensor) -> float:
        aggregate = rule.aggregate(LocalRows(sent), view.weights, view.context).aggregate
        return float((aggregate.double() - honest.mean(0)).norm())

    def fixed(strength: float) -> Tensor:
        key = {"alie": "z", "ipm": "epsilon"}[attack]
        sent: Tensor = registry.build("attack", attack, {key: strength}).corrupt(LocalRows(rows), view)[0].collect()
        return sent

    sent, _, _ = registry.build("attack", attack, {"optimize": True}).corrupt(LocalRows(rows), view)
    grid = [LEAST * (MOST / LEAST) ** (point / (POINTS - 1)) for point in range(POINTS)]
    assert moved(sent.collect()) >= max(moved(fixed(strength)) for strength in grid) * (1 - 1e-4)


def test_a_search_reads_the_rows_once_where_inner_products_decide(federation: Federation) -> None:
    reads = []

    class Counted(LocalRows):
        def gram(self) -> Tensor:
            reads.append("gram")
            return super().gram()

        def collect(self) -> Tensor:
            reads.append("collect")
            return super().collect()

        def map(self, function: SlabFunction) -> LocalRows:
            return Counted(self.data, self.slice, (*self.functions, function))

    view = view_of(9, 50, [1, 2], wrapped("mean", federation))
    ALittleIsEnough(optimize=True).corrupt(Counted(rows_of(9, 50)), view)
    assert reads == ["gram"]


def test_a_fixed_and_a_searched_z_exclude_each_other() -> None:
    with pytest.raises(SettingError, match=r"'alie': z = 1.0 is fixed and optimize = true searches it"):
        ALittleIsEnough(z=1.0, optimize=True)


@pytest.mark.parametrize("peak", [0.1, 0.13, 1.0, 7.7, 99.0, 100.0])
def test_the_search_finds_a_peak_within_two_per_cent(peak: float) -> None:
    assert maximum(lambda strength: -abs(log(strength / peak))) == pytest.approx(peak, rel=0.02)


# Data poisoning.


def poisoned(attack: object, federation: Federation, clients: list[int], attackers: list[int]) -> tuple[Block, Block]:
    """(honest, poisoned): a block of the tiny experiment's own data."""
    model = federation.method.initial_state(0)["model"]
    block = federation.block(torch.tensor(clients), model, {}, 1)
    byzantine = torch.isin(block.clients, torch.tensor(attackers))
    return block, attack.poison(block, byzantine)  # type: ignore[attr-defined]


def test_labels_are_turned_round_or_one_is_called_another(federation: Federation) -> None:
    honest, flipped = poisoned(LabelFlip(facts=federation.facts), federation, [0, 1], [1])
    held = honest.mask[1]
    assert torch.equal(flipped.y[1][held], 9 - honest.y[1][held])
    honest, flipped = poisoned(LabelFlip(facts=federation.facts, source=3, target=8), federation, [0, 1], [1])
    assert (honest.y[1] == 3).any()
    assert not (flipped.y[1] == 3).any()
    assert torch.equal(flipped.y[1][honest.y[1] != 3], honest.y[1][honest.y[1] != 3])
    assert torch.equal(flipped.x, honest.x)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("label_flip", {"source": 3}, "'label_flip': source = 3 and target = None; give both"),
        ("label_flip", {"source": 3, "target": 10}, "target = 10, but the data have 10 classes"),
        ("backdoor", {"target": 12}, "'backdoor': target = 12, but the data have 10 classes"),
        ("backdoor", {"size": 9}, r"size = 9 does not fit samples of shape \(1, 8, 8\); give at most 8"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(
    name: str, parameters: dict[str, int], message: str, federation: Federation
) -> None:
    with pytest.raises(SettingError, match=message):
        registry.build("attack", name, parameters, facts=federation.facts)


@pytest.mark.parametrize("shape", [(64,), (1, 8, 6)])
def test_only_square_pictures_are_mapped_by_the_cat(shape: tuple[int, ...], federation: Federation) -> None:
    facts = replace(federation.facts, input_shape=shape)
    with pytest.raises(SettingError, match=r"transform = 'cat_map' bends .*pictures, and samples have the shape"):
        Augmented(facts=facts, transform="cat_map")
    if len(shape) == 3:
        Augmented(facts=facts)


def test_a_share_of_a_liars_samples_carries_the_trigger(federation: Federation) -> None:
    attack = Backdoor(facts=federation.facts, target=7, size=2, corner="top_right", value=0.5, share=0.25)
    honest, changed = poisoned(attack, federation, [0, 1], [1])
    touched = (changed.x[1] != honest.x[1]).flatten(1).any(1)
    carries = (changed.x[1][:, 0, :2, -2:] == 0.5).flatten(1).all(1)
    assert int(carries.sum()) == int(0.25 * int(honest.counts[1]) + 0.5)
    assert torch.equal(touched, carries)
    assert (changed.y[1][carries] == 7).all()
    assert torch.equal(changed.y[1][~carries], honest.y[1][~carries])
    inside = changed.x[1][carries][:, 0]
    inside[:, :2, -2:] = honest.x[1][carries][:, 0, :2, -2:]
    assert torch.equal(inside, honest.x[1][carries][:, 0]), "nothing but the corner is stamped"


@pytest.mark.parametrize(("corner", "expected"), [("top_left", [1, 1, 0, 0]), ("bottom_right", [0, 0, 1, 1])])
def test_features_that_are_no_picture_have_a_trigger_too(
    corner: str, expected: list[float], federation: Federation
) -> None:
    facts = replace(federation.facts, input_shape=(4,))
    attack = Backdoor(facts=facts, size=2, corner=corner)  # type: ignore[arg-type]
    x, y = attack.triggered(torch.zeros(3, 4), torch.tensor([0, 5, 6]))
    assert x.tolist() == [expected, expected]
    assert y.tolist() == [0, 0]


def test_model_replacement_is_a_factor(federation: Federation) -> None:
    rows = rows_of(3, 10)
    assert torch.equal(Backdoor(facts=federation.facts, boost=4.0)(rows, [1])[1], 4 * rows[1])
    assert torch.equal(Backdoor(facts=federation.facts)(rows, [1]), rows)


def test_a_backdoor_is_measured_every_round_and_drawn(
    tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    """Boosted attackers teach the mean their trigger; without them almost no triggered sample gets the target label."""
    tables = {
        "federation": {"rounds": 15, "cohort": 12},
        "training": {"steps": None, "epochs": 3, "batch_size": 16},
    }
    attack = {"name": "backdoor", "boost": 3.0}
    lied = run_in(tiny(**tables, byzantine={"attack": attack, "clients": 4}, tracking={"report": True}), "lied")
    honest = run_in(tiny(**tables, byzantine={"attack": attack}), "honest")
    assert len(lied.history["backdoor_rate"]) == 15
    assert lied.metrics["backdoor_rate"] > 0.9
    assert honest.metrics["backdoor_rate"] < 0.2
    assert lied.metrics["accuracy"] > 0.7, "and otherwise the model is a good one"
    assert "Backdoor rate" in (lied.folder / "report.html").read_text()


def test_a_backdoor_without_accuracy_is_not_measured(
    tiny: Callable[..., Experiment], run_in: Callable[..., Result]
) -> None:
    result = run_in(tiny(model={"metrics": []}, byzantine={"attack": "backdoor", "clients": 2}))
    assert "backdoor_rate" not in result.metrics


def test_the_cat_map_moves_every_pixel_to_one_place(federation: Federation) -> None:
    """x(p) <- x(T p): the pixel 1, 2 is read at 2 + 2, 1 + 2; all 64 are read once."""
    attack = Augmented(facts=federation.facts, transform="cat_map", noise=0.0)
    honest, changed = poisoned(attack, federation, [0, 1], [1])
    assert torch.equal(changed.x[1, 0, 0, 1, 2], honest.x[1, 0, 0, 4, 3])
    assert torch.equal(changed.x[1].flatten(1).sort(1).values, honest.x[1].flatten(1).sort(1).values)
    assert not torch.equal(changed.x[1], honest.x[1])


def test_the_smooth_cat_map_tends_to_the_cat_map(federation: Federation) -> None:
    """Away from where the remainder jumps."""
    values = torch.linspace(0.01, 2.99, 500, dtype=torch.float64)
    away = (values % 1 - 0.5).abs() < 0.45
    torch.testing.assert_close(smooth_remainder(values, 0.999)[away], (values % 1)[away], rtol=0, atol=1e-6)


def test_the_flow_is_that_of_the_differential_equation() -> None:
    from scipy.integrate import solve_ivp

    def speed(_: float, at: list[float]) -> list[float]:
        return [2 / 3 * at[0] - 4 / 3 * at[0] * at[1], -at[0] * at[1] + at[1]]

    for start in ([0.1, 0.9], [0.5, 0.5], [0.99, 0.01]):
        expected = solve_ivp(speed, (0, 1), start, method="LSODA", rtol=1e-10, atol=1e-12).y[:, -1]
        flowed = lotka_volterra(torch.tensor([start], dtype=torch.float64))[0]
        torch.testing.assert_close(flowed, torch.from_numpy(expected), rtol=1e-6, atol=1e-8)


def test_pictures_are_read_between_pixels() -> None:
    picture = torch.tensor([[0.0, 1, 2], [10, 11, 12]])
    where = torch.tensor([[[0.5, 0.5], [0.0, 1.25]], [[1.0, 2.0], [-3.0, 9.0]]], dtype=torch.float64)
    assert sampled(picture[:, :2].repeat(1, 1), where[:, :1].expand(2, 2, 2)).tolist() == [[5.5, 5.5], [11, 11]]
    wide = torch.zeros(2, 3, 2, dtype=torch.float64)
    wide[:, :2] = where
    assert sampled(picture, wide)[:, :2].tolist() == [[5.5, 1.25], [12, 2]]


@pytest.mark.parametrize("transform", ["lotka_volterra", "cat_map", "smooth_cat_map"])
def test_noise_has_a_level_of_its_own_for_every_sample(transform: str, federation: Federation) -> None:
    quiet = Augmented(facts=federation.facts, transform=transform, noise=0.0)  # type: ignore[arg-type]
    loud = replace(quiet, noise=0.4)
    _, bent = poisoned(quiet, federation, [0, 1], [1])
    honest, noisy = poisoned(loud, federation, [0, 1], [1])
    levels = (noisy.x - bent.x)[1][honest.mask[1]].flatten(1).std(1)
    assert levels.min() > 0
    assert 0.25 < levels.max() < 0.5
    assert levels.max() > 3 * levels.min()
