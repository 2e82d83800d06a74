"""The suite that every registered part goes through by being registered."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fedgen import registry
from fedgen.admission import WEIGHT_LIMIT, AsSent, check_update
from fedgen.aggregation.mean import Mean
from fedgen.attacks.garbage import Garbage
from fedgen.config import Experiment
from fedgen.contracts import Aggregation, Attack, Block, Context, Inbox, Method, Rule, Samples, View
from fedgen.data.dataset import Dataset
from fedgen.data.targets import IGNORED, KINDS, Targets
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.leaves import Held
from fedgen.parameters import Layout, Tensors
from fedgen.rows import LocalRows, columns_of
from fedgen.server.pools.pool import Interrupt, SerialPool
from fedgen.server.pools.sliced_rows import SlicedRows
from fedgen.server.schema import listing
from fedgen.streams import Streams

Fingerprint = Callable[[Any], str]
COLUMNS = 70
"""Columns of the rows below: two slices of 64."""

PARTS = [(kind, name) for kind in registry.HOMES for name in registry.members(kind)]
DATACLASSES = [(kind, name) for kind, name in PARTS if inspect.isclass(registry.find(kind, name))]
FUNCTIONS = [(kind, name) for kind, name in PARTS if (kind, name) not in DATACLASSES]


def wrapped(kind: str, wrapper_kind: str) -> list[str]:
    """Every part of a kind, alone and inside every wrapper: "mean", "nnm mean"."""
    alone = list(registry.members(kind))
    return alone + [f"{wrapper} {part}" for wrapper in registry.members(wrapper_kind) for part in alone]


def build(kind: str, wrapper_kind: str, name: str, federation: Federation) -> Any:
    *wrapper, part = name.split()
    supplied = {"facts": federation.facts, "learner": federation.learner}
    built = registry.build(kind, part, {}, **supplied)
    return registry.build(wrapper_kind, wrapper[0], {}, **supplied, inner=built) if wrapper else built


# Every part: documented, frozen, with defaults.


@pytest.mark.parametrize(("kind", "name"), PARTS, ids=lambda part: part)
def test_the_first_line_of_the_docstring_says_what_it_is(kind: str, name: str) -> None:
    member = registry.find(kind, name)
    summary = registry.summary(member)
    assert summary.rstrip(".")
    assert not summary.startswith(f"{member.__name__}("), "the docstring is the one that dataclass makes up"
    assert len(summary) <= 120
    assert f"  {name} " in listing(kind)
    assert summary in listing(kind)


@pytest.mark.parametrize(("kind", "name"), DATACLASSES, ids=lambda part: part)
def test_registered_classes_are_frozen_dataclasses_by_keyword_with_defaults(
    kind: str, name: str, federation: Federation
) -> None:
    member = registry.find(kind, name)
    assert dataclasses.is_dataclass(member)
    assert member.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(field.kw_only for field in dataclasses.fields(member))
    defaults = registry.parameters(member)().model_dump()
    inner = federation.method if kind == "wrapper" else federation.rule
    targets = federation.dataset.targets
    supplied = {"facts": federation.facts, "learner": federation.learner, "inner": inner, "targets": targets}
    part = registry.build(kind, name, defaults, **supplied)
    assert replace(part) == part, "equal parameters, equal parts"


@pytest.mark.parametrize(("kind", "name"), DATACLASSES, ids=lambda part: part)
def test_every_parameter_has_a_description_and_unknown_ones_are_refused(kind: str, name: str) -> None:
    member = registry.find(kind, name)
    model = registry.parameters(member)
    for key, field in model.model_fields.items():
        assert field.description, f"{key} has no description"
    with pytest.raises(ValidationError, match="Extra inputs"):
        model(no_such_key=1)
    with pytest.raises(TypeError, match="no_such_key"):
        member(no_such_key=1)


def test_a_name_is_registered_once(registered: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="rule 'mean' is registered twice"):
        registered("rule", "mean")(Mean)


# Rules.

RULES = wrapped("rule", "rule_wrapper")
NOT_TRANSLATION_EQUIVARIANT = {
    **dict.fromkeys(("flag", "normalised_mean", "foolsgold"), "directions are seen from zero"),
    **dict.fromkeys(("cge", "clip", "arc", "monna"), "lengths are seen from zero"),
    **dict.fromkeys(("fltrust", "sign_majority"), "directions are seen from zero"),
}
"""Rule or wrapper -> why adding the same to all rows does not add it to the result."""

COUNTS_ITSELF = {
    "monna": "the receiver's own model, zero, is one more row",
    "sign_majority": "only signs are left",
}
"""Rule -> why equal rows do not give that row."""

NOT_SCALE_EQUIVARIANT: dict[str, str] = {"clip": "the radius is a number"}
"""Rule or wrapper -> why a common factor of the rows is no factor of its result."""


TIED = "nnm (meamed|phocas|bulyan)|(arc|clip) (cge|monna)"
"""Rules in wrappers that make values equally near a centre, or rows equally long: rounding tells them apart."""


def excused(reasons: dict[str, str], name: str) -> str:
    """Why a rule inside its wrapper is not held to a promise; "" where it is."""
    return next((reasons[part] for part in name.split() if part in reasons), "")


def rows_of(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, COLUMNS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def weights_of(n: int) -> Tensor:
    return torch.arange(1.0, n + 1, dtype=torch.float64)


def context_of(n: int, f: int, dtype: torch.dtype = torch.float32) -> Context:
    layout = Layout({"weight": (6, 10), "bias": (10,)}, dtype)
    root = rows_of(1, 99, dtype)[0]
    return Context(torch.zeros(COLUMNS, dtype=dtype), layout, torch.arange(n), f, root=root)


def in_case(**values: object) -> Callable[[str], str]:
    """A message of torch's that begins with the values of the case."""
    return lambda message: f"{values}: {message}"


def aggregate(
    rule: Rule,
    rows: Tensor,
    weights: Tensor | None = None,
    f: int = 0,
    clients: Tensor | None = None,
    root: Tensor | None = None,
) -> Tensor:
    """root: the server's own update; the plain mean where not given."""
    weights = weights_of(len(rows)) if weights is None else weights
    context = replace(context_of(len(rows), f, rows.dtype), root=rows.mean(0) if root is None else root)
    if clients is not None:
        context = replace(context, clients=clients)
    return rule.aggregate(LocalRows(rows, 64), weights, context).aggregate


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest, federation: Federation) -> Rule:
    built: Rule = build("rule", "rule_wrapper", request.param, federation)
    return built


def test_the_fewest_rows_grow_with_the_liars(rule: Rule) -> None:
    fewest = [rule.minimum(f) for f in range(20)]
    assert fewest == sorted(fewest)
    assert all(isinstance(n, int) for n in fewest)
    assert fewest[0] >= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_result_is_one_row_of_the_rows_dtype(rule: Rule, dtype: torch.dtype) -> None:
    for f in (0, 1, 2):
        assert_one_row(rule, f, dtype)


def assert_one_row(rule: Rule, f: int, dtype: torch.dtype) -> None:
    n = rule.minimum(f) + 2
    result = rule.aggregate(LocalRows(rows_of(n, dtype=dtype), 64), weights_of(n), context_of(n, f, dtype))
    assert isinstance(result, Aggregation)
    assert result.aggregate.shape == (COLUMNS,)
    assert result.aggregate.dtype == dtype
    assert result.aggregate.isfinite().all()
    if result.coefficients is not None:
        assert result.coefficients.shape == (n,)
        assert result.coefficients.dtype == torch.float64
        torch.testing.assert_close(result.coefficients.to(dtype) @ rows_of(n, dtype=dtype), result.aggregate)


@pytest.mark.parametrize("f", [0, 1, 2])
def test_the_order_of_the_rows_does_not_matter(rule: Rule, f: int, request: pytest.FixtureRequest) -> None:
    if re.fullmatch(TIED, request.node.callspec.params["rule"]):
        pytest.skip("told apart by rounding")
    n = rule.minimum(f) + 4
    rows, weights, order = rows_of(n), weights_of(n), torch.randperm(n, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        aggregate(rule, rows[order], weights[order], f, order), aggregate(rule, rows, weights, f), rtol=1e-5, atol=1e-5
    )


def test_a_common_factor_of_the_rows_is_one_of_the_result(rule: Rule, request: pytest.FixtureRequest) -> None:
    if reason := excused(NOT_SCALE_EQUIVARIANT, request.node.callspec.params["rule"]):
        pytest.skip(reason)
    if re.fullmatch(TIED, request.node.callspec.params["rule"]):
        pytest.skip("told apart by rounding")
    for spare, factor in product((2, 3), (1e-8, 1e-3, 1e3, 1e8, -1.0)):
        rows = rows_of(rule.minimum(1) + spare)
        expected, scaled = factor * aggregate(rule, rows, f=1), aggregate(rule, factor * rows, f=1)
        torch.testing.assert_close(
            scaled, expected, rtol=1e-4, atol=1e-6 * abs(factor), msg=in_case(spare=spare, factor=factor)
        )


def test_equal_rows_give_that_row(rule: Rule, request: pytest.FixtureRequest) -> None:
    if reason := excused(NOT_SCALE_EQUIVARIANT | COUNTS_ITSELF, request.node.callspec.params["rule"]):
        pytest.skip(reason)
    for f, size in product((0, 1, 2), (1e-8, 1.0, 1e6)):
        row = size * rows_of(1)
        result = aggregate(rule, row.expand(rule.minimum(f) + 2, -1), f=f)
        torch.testing.assert_close(result, row[0], rtol=1e-5, atol=1e-6 * size, msg=in_case(f=f, size=size))


@pytest.mark.parametrize("f", [0, 1])
def test_duplicates_are_no_trouble(rule: Rule, f: int, request: pytest.FixtureRequest) -> None:
    n = rule.minimum(f) + 3
    rows = rows_of(n)
    rows[1:3] = rows[0]
    result = aggregate(rule, rows, f=f)
    assert result.isfinite().all()
    if not excused(NOT_TRANSLATION_EQUIVARIANT, request.node.callspec.params["rule"]):
        assert (result >= rows.min(0).values - 1e-5).all()
        assert (result <= rows.max(0).values + 1e-5).all()


def test_a_common_offset_of_the_rows_is_one_of_the_result(rule: Rule, request: pytest.FixtureRequest) -> None:
    """In float64: at +1e3 the rows' own differences are 1e-3 of what is stored."""
    if re.fullmatch(TIED, request.node.callspec.params["rule"]):
        pytest.skip("told apart by rounding")
    if reason := excused(NOT_TRANSLATION_EQUIVARIANT, request.node.callspec.params["rule"]):
        pytest.skip(reason)
    for f, offset in product((0, 1, 2), (-1.0, 1e3)):
        rows = rows_of(rule.minimum(f) + 3, dtype=torch.float64)
        expected, moved = aggregate(rule, rows, f=f) + offset, aggregate(rule, rows + offset, f=f)
        torch.testing.assert_close(moved, expected, rtol=1e-7, atol=1e-7, msg=in_case(f=f, offset=offset))


@pytest.mark.parametrize("f", [0, 1])
def test_zeros_give_zeros(rule: Rule, f: int) -> None:
    assert not aggregate(rule, torch.zeros(rule.minimum(f) + 1, COLUMNS), f=f).any()


def test_one_row_without_liars_is_the_result(rule: Rule, request: pytest.FixtureRequest) -> None:
    scaled = excused(NOT_SCALE_EQUIVARIANT | COUNTS_ITSELF, request.node.callspec.params["rule"])
    if rule.minimum(0) == 1 and not scaled:
        torch.testing.assert_close(aggregate(rule, rows_of(1)), rows_of(1)[0])


def test_a_rule_changes_nothing_and_repeats_its_bits(rule: Rule, fingerprint: Fingerprint) -> None:
    n = rule.minimum(1) + 2
    rows, weights, context = rows_of(n), weights_of(n), context_of(n, 1)
    before = fingerprint([rows, weights, context])
    first = rule.aggregate(LocalRows(rows, 64), weights, context)
    second = rule.aggregate(LocalRows(rows, 64), weights, context)
    assert fingerprint(first) == fingerprint(second)
    assert fingerprint([rows, weights, context]) == before


@pytest.mark.parametrize("blocks", [[1, 4], [2, 2, 1]])
def test_rows_in_slices_at_the_workers_give_the_bits_of_local_rows(
    rule: Rule, blocks: list[int], federation: Federation, fingerprint: Fingerprint
) -> None:
    n = rule.minimum(1) + 5
    rows, weights, context = rows_of(n), weights_of(n), context_of(n, 1)
    parts = tuple(
        tuple(map(Held, rows[:, columns].contiguous().split([*blocks, n - sum(blocks)])))
        for columns in columns_of(COLUMNS, 64)
    )
    sliced = SlicedRows(SerialPool(federation, Interrupt()), parts, COLUMNS, 64)
    expected = rule.aggregate(LocalRows(rows, 64), weights, context)
    assert fingerprint(rule.aggregate(sliced, weights, context)) == fingerprint(expected)


def test_a_rule_goes_on_with_its_own_memory(rule: Rule, fingerprint: Fingerprint) -> None:
    n = rule.minimum(1) + 2
    first = rule.aggregate(LocalRows(rows_of(n), 64), weights_of(n), context_of(n, 1))
    context = replace(context_of(n, 1), memory=first.memory)
    before = fingerprint(context)
    second = rule.aggregate(LocalRows(rows_of(n, seed=1), 64), weights_of(n), context)
    assert second.memory.keys() == first.memory.keys()
    assert fingerprint(context) == before


def test_linear_rules_are_the_weighted_mean(rule: Rule) -> None:
    if not rule.linear:
        pytest.skip("not linear")
    n = 9
    rows, weights = rows_of(n), weights_of(n)
    expected = (weights @ rows.double() / weights.sum()).float()
    torch.testing.assert_close(aggregate(rule, rows, weights), expected, rtol=1e-5, atol=1e-6)


ATTACKERS: dict[str, Callable[[Tensor], Tensor]] = {
    "all together": lambda lies: torch.full_like(lies, 1e12),
    "opposite": lambda lies: 1e12 * (-1) ** torch.arange(len(lies))[:, None] * torch.ones_like(lies),
    "one column": lambda lies: torch.zeros_like(lies).index_fill(1, torch.tensor([3]), -1e12),
    "random": lambda lies: 1e12 * rows_of(len(lies), seed=5),
}


NOT_ROBUST = ("mean", "foolsgold")
"""Rules that one Byzantine row can move arbitrarily far, alone or inside most wrappers."""

INSIDE_THE_BOX = ("median", "trimmed_mean")
"""Rules whose result stays between the least and the largest honest value of every coordinate."""


@pytest.mark.parametrize("lie", ATTACKERS)
def test_f_liars_do_not_move_a_robust_rule_far(rule: Rule, lie: str, request: pytest.FixtureRequest) -> None:
    """|A - mean_H| <= (1 + 2 (n - f) / (n - 2 f)) max_i |g_i - mean_H|, the geometric median's bound; the mean leaves.

    Source of the bound: K. Pillutla et al., arXiv 1912.13445 (2022), lemma 2 for equal weights, one unit added.
    """
    for f, spare in product((1, 2, 4), (0, 1, 5)):
        assert_attackers_move_it_little(rule, request.node.callspec.params["rule"].split(), lie, f, spare)


def assert_attackers_move_it_little(rule: Rule, name: list[str], lie: str, f: int, spare: int) -> None:
    n = max(rule.minimum(f), 2 * f + 1) + spare
    rows, place = rows_of(n, seed=f), slice(spare, spare + f)
    honest = torch.cat([rows[:spare], rows[spare + f :]])
    rows[place] = ATTACKERS[lie](rows[place])
    centre = honest.mean(0)
    result = aggregate(rule, rows, torch.ones(n, dtype=torch.float64), f, root=centre)
    bound = (1 + 2 * (n - f) / (n - 2 * f)) * (honest - centre).norm(dim=1).max()
    assert name[-1] in NOT_ROBUST or (result - centre).norm() <= bound
    if name[0] in INSIDE_THE_BOX:
        assert (result >= honest.min(0).values - 1e-5).all()
        assert (result <= honest.max(0).values + 1e-5).all()
    if rule.linear and lie != "opposite":
        assert (result - centre).norm() > bound, "a linear rule follows any attacker, so this test can fail"


ATTACK_SETTINGS = {
    "sign_flip": {"scale": 1e3},
    "scaling": {"scale": 1e6},
    "ipm": {"optimize": True},
    "alie": {"optimize": True},
    "gaussian": {"scale": 100.0},
}
"""Attack -> strength, where the default is a mild one."""


@pytest.mark.parametrize("attack", [name for name in registry.members("attack") if name not in ("garbage", "forged")])
def test_kappa_of_a_robust_rule_is_small_under_every_attack(
    rule: Rule, attack: str, request: pytest.FixtureRequest, federation: Federation
) -> None:
    """|A - mean_H|^2 <= 3 mean |g_i - mean_H|^2, twice what Krum has in the worst case; the mean has thousands."""
    name = request.node.callspec.params["rule"].split()
    if name[-1] in NOT_ROBUST:
        pytest.skip("follows attackers")
    rows, attackers = rows_of(max(15, rule.minimum(3)), seed=3), [0, 5, 9]
    honest = rows[[row for row in range(len(rows)) if row not in attackers]]
    centre = honest.mean(0)
    lies: Any = registry.build("attack", attack, ATTACK_SETTINGS.get(attack, {}), facts=federation.facts)
    sent = lies(rows, attackers, rule=rule, f=3, root=centre)
    moved = (aggregate(rule, sent, torch.ones(len(rows), dtype=torch.float64), 3, root=centre) - centre).square().sum()
    assert moved <= 3 * (honest - centre).square().sum(1).mean()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", [3.25, -1.5]),
        ("median", [2.5, -1.5]),
        ("trimmed_mean", [2.5, -1.5]),
    ],
)
def test_rules_by_hand(name: str, expected: list[float], federation: Federation) -> None:
    """Columns 1, 2, 3, 7 and -1, -2, -9, 6 with f = 1.

    Equal weights: means 13/4 and -6/4; the middle pairs are 2, 3 and -2, -1, which is also what trimming one leaves.
    """
    rows = torch.tensor([[1.0, -1], [2, -2], [3, -9], [7, 6]])
    context = Context(torch.zeros(2), Layout({"w": (2,)}), torch.arange(4), f=1)
    rule: Rule = registry.build("rule", name, {}, facts=federation.facts)
    weights = torch.ones(4, dtype=torch.float64)
    assert rule.aggregate(LocalRows(rows, 64), weights, context).aggregate.tolist() == expected


# Attacks.

ATTACKER_SETS = {"none": [], "one": [4], "some": [0, 3, 5], "all": list(range(6))}


def masked(clients: list[int], n: int = 6) -> Tensor:
    mask = torch.zeros(n, dtype=torch.bool)
    mask[clients] = True
    return mask


def view_of(byzantine: Tensor, dtype: torch.dtype = torch.float32) -> View:
    n = len(byzantine)
    layout, clients = context_of(n, 1, dtype).layout, torch.arange(10, 10 + n)
    context = Context(torch.ones(COLUMNS), layout, clients, f=1, round=2, streams=Streams(0))
    return View(byzantine, weights_of(n), context, Mean())


def sub_view(view: View, positions: Tensor) -> View:
    """What the same attack knows in a block of some of the clients."""
    context = replace(view.context, clients=view.context.clients[positions])
    return replace(view, byzantine=view.byzantine[positions], weights=view.weights[positions], context=context)


@pytest.fixture(params=registry.members("attack"))
def attack(request: pytest.FixtureRequest, federation: Federation) -> Attack:
    built: Attack = registry.build("attack", request.param, {}, facts=federation.facts)
    return built


@pytest.mark.parametrize("attackers", ATTACKER_SETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_honest_rows_and_weights_pass_an_attack_bit_for_bit(
    attack: Attack, attackers: str, dtype: torch.dtype, fingerprint: Fingerprint
) -> None:
    rows, view = rows_of(6, dtype=dtype), view_of(masked(ATTACKER_SETS[attackers]), dtype)
    before = fingerprint([rows, view])
    sent, weights, memory = attack.corrupt(LocalRows(rows, 64), view)
    lies = sent.collect()
    assert (lies.shape, lies.dtype) == (rows.shape, rows.dtype)
    assert (weights.shape, weights.dtype) == ((6,), torch.float64)
    honest = ~view.byzantine
    assert fingerprint([lies[honest], weights[honest]]) == fingerprint([rows[honest], view.weights[honest]])
    again, same_weights, same_memory = attack.corrupt(LocalRows(rows, 64), view)
    assert fingerprint([lies, weights, memory]) == fingerprint([again.collect(), same_weights, same_memory])
    assert fingerprint([rows, view]) == before


@pytest.mark.parametrize("attackers", ATTACKER_SETS)
def test_lies_are_numbers_unless_they_are_meant_to_be_none(attack: Attack, attackers: str) -> None:
    """Garbage for admission is told by its name."""
    rows, view = rows_of(6), view_of(masked(ATTACKER_SETS[attackers]))
    sent, weights, _ = attack.corrupt(LocalRows(rows, 64), view)
    if not isinstance(attack, Garbage):
        assert sent.collect().isfinite().all()
        assert ((weights > 0) & (weights <= WEIGHT_LIMIT)).all()


@pytest.mark.parametrize("attackers", ATTACKER_SETS)
def test_a_lie_does_not_depend_on_how_rows_are_sliced(attack: Attack, attackers: str, fingerprint: Fingerprint) -> None:
    """Bit for bit; an omniscient attack may add the slices of a Gram matrix up, where the order changes digits."""
    rows, view = rows_of(6), view_of(masked(ATTACKER_SETS[attackers]))
    sliced, whole = (attack.corrupt(LocalRows(rows, width), view)[0].collect() for width in (64, 128))
    if not attack.omniscient:
        assert fingerprint(sliced) == fingerprint(whole)
    torch.testing.assert_close(sliced, whole, rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("positions", [[3], [0, 3], [5, 0, 1], [5, 4, 3, 2, 1, 0]], ids=str)
def test_a_row_wise_lie_does_not_depend_on_who_else_is_in_the_block(
    attack: Attack, positions: list[int], fingerprint: Fingerprint
) -> None:
    if attack.omniscient:
        pytest.skip("sees the whole round")
    rows, view, chosen = rows_of(6), view_of(masked(ATTACKER_SETS["some"])), torch.tensor(positions)
    whole, whole_weights, _ = attack.corrupt(LocalRows(rows, 64), view)
    part, part_weights, _ = attack.corrupt(LocalRows(rows[chosen], 64), sub_view(view, chosen))
    assert fingerprint([part.collect(), part_weights]) == fingerprint([whole.collect()[chosen], whole_weights[chosen]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_an_attack_acts_on_whatever_is_sent(attack: Attack, dtype: torch.dtype, fingerprint: Fingerprint) -> None:
    rows, view = (20 * rows_of(6)).to(dtype), view_of(masked([0, 3]), dtype)
    sent = attack.corrupt(LocalRows(rows, 64), view)[0].map(AsSent(dtype)).collect()
    assert (sent.shape, sent.dtype) == (rows.shape, dtype)
    assert fingerprint(sent[~view.byzantine]) == fingerprint(rows[~view.byzantine])


def test_an_attack_lies_where_there_is_somebody_to_hide_among(attack: Attack, request: pytest.FixtureRequest) -> None:
    """Except "none", and "statistics" of rows without any; an attack on the data alone is told by `poison`, one on the
    bytes by `forge`."""
    rows, view = rows_of(6), view_of(masked([0, 3]))
    sent, weights, _ = attack.corrupt(LocalRows(rows, 64), view)
    block = block_of(6)
    poisoned = attack.poison(block, view.byzantine)
    changed = not (
        torch.equal(sent.collect(), rows)
        and torch.equal(weights, view.weights)
        and torch.equal(poisoned.x, block.x)
        and torch.equal(poisoned.y, block.y)
        and not attack.forger()
    )
    assert changed == (request.node.callspec.params["attack"] not in ("none", "statistics"))


@pytest.mark.parametrize(
    ("name", "parameters", "expected"),
    [
        ("none", {}, [9, 9]),
        ("sign_flip", {"scale": 10.0}, [-90, -90]),
        ("scaling", {}, [270, 270]),
        ("constant", {"value": 5.0}, [5, 5]),
        ("zeros", {}, [0, 0]),
        ("dropped", {"share": 1.0}, [0, 0]),
        ("free_rider", {}, [0, 0]),
        ("ipm", {"epsilon": 0.5}, [-1, -2]),
        ("dissensus", {"epsilon": 0.5}, [-2.5, -4.5]),
        ("alie", {"z": 3.0}, [5, 7]),
        ("mimic", {"client": 12}, [3, 5]),
        ("min_max", {}, [3, 5]),
        ("min_sum", {"perturbation": "sign"}, [1, 3]),
    ],
)
def test_attacks_by_hand(name: str, parameters: dict[str, float], expected: list[float]) -> None:
    """The Byzantine row is 9, 9; the honest rows 1, 3 and 3, 5 have the mean 2, 4, of which -1/2 is -1, -2.

    Their deviation is 1, 1, three of which below the mean are -1, 1; one below it is as far from 3, 5 as 1, 3 is.
    Weighing 1, 2 and 3, the honest rows add up to 10, 18, half of which the attacker's 2 times 2.5, 4.5 cancels.
    """
    rows, view = torch.tensor([[1.0, 3], [9, 9], [3, 5]]), view_of(masked([1], 3))
    attack: Attack = registry.build("attack", name, parameters)
    sent, _, _ = attack.corrupt(LocalRows(rows, 64), view)
    assert sent.collect().tolist() == [[1, 3], expected, [3, 5]]


def block_of(n: int) -> Block:
    generator = torch.Generator().manual_seed(0)
    counts = torch.arange(1, n + 1)
    x = torch.randn(n, n, 1, 8, 8, generator=generator) * (torch.arange(n) < counts[:, None])[..., None, None, None]
    y = torch.randint(0, 10, (n, n), generator=generator) * (torch.arange(n) < counts[:, None])
    return Block(torch.arange(n), torch.zeros(n, COLUMNS), Samples.of(x, y), counts, {}, 2, Streams(0))


@pytest.mark.parametrize("attackers", ATTACKER_SETS)
def test_poison_changes_the_liars_data_only(attack: Attack, attackers: str, fingerprint: Fingerprint) -> None:
    block, byzantine = block_of(6), masked(ATTACKER_SETS[attackers])
    before = fingerprint([block, byzantine])
    poisoned = attack.poison(block, byzantine)
    assert torch.equal(poisoned.x[~byzantine], block.x[~byzantine])
    assert torch.equal(poisoned.y[~byzantine], block.y[~byzantine])
    assert (poisoned.x.shape, poisoned.y.shape) == (block.x.shape, block.y.shape)
    assert torch.equal(poisoned.clients, block.clients)
    assert not poisoned.x[~block.mask].any(), "padding stays zero"
    assert not poisoned.y[~block.mask].any()
    assert poisoned.x.isfinite().all()
    assert ((poisoned.y >= 0) & (poisoned.y < 10)).all()
    assert fingerprint(poisoned) == fingerprint(attack.poison(block, byzantine))
    assert fingerprint([block, byzantine]) == before


@pytest.mark.parametrize("client", range(6))
def test_poison_does_not_depend_on_who_else_is_in_the_block(
    attack: Attack, client: int, fingerprint: Fingerprint
) -> None:
    """Nor on the padding, which is as long as the longest of the block needs."""
    block, byzantine = block_of(6), masked([0, 3, 5])
    parts = {name: getattr(block, name)[client][None] for name in ("clients", "start", "counts")}
    held = int(block.counts[client])
    own = Samples.of(block.x[client, :held][None], block.y[client, :held][None])
    alone = replace(block, **parts, samples=own)
    together, poisoned = attack.poison(block, byzantine), attack.poison(alone, byzantine[client][None])
    assert fingerprint([poisoned.x[0], poisoned.y[0]]) == fingerprint(
        [together.x[client, :held], together.y[client, :held]]
    )


# Methods.


@pytest.fixture(params=wrapped("method", "wrapper"))
def method(request: pytest.FixtureRequest, federation: Federation) -> Method:
    built: Method = build("method", "wrapper", request.param, federation)
    return built


def inbox_of(clients: Tensor, weights: Tensor, aggregate: Tensor) -> Inbox:
    return Inbox(clients, weights, None, lambda: Aggregation(aggregate))


def test_a_method_has_a_state_with_a_model(method: Method, fingerprint: Fingerprint) -> None:
    state = method.initial_state(0)
    assert state["model"].shape == (method.layout.size,)
    assert state["model"].dtype == method.layout.dtype
    assert fingerprint(method.initial_state(0)) == fingerprint(state)
    assert fingerprint(method.initial_state(1)) != fingerprint(state)
    assert method.modes <= {"star", "gossip"}
    assert method.modes
    assert method.setup_rounds >= 0


def exchanges(method: Method, federation: Federation) -> Iterator[tuple[int, Tensors, Block]]:
    """(round, state, block) of the setup exchanges and of two rounds, the state carried on."""
    state, clients = method.initial_state(0), torch.tensor([1, 4, 7])
    for round in range(-method.setup_rounds, 2):
        broadcast = method.broadcast(state, round)
        block = federation.block(clients, broadcast.start, {}, round)
        yield round, state, block
        update = method.client_update(broadcast, block)
        row = torch.einsum("n,nd->d", update.weights / update.weights.sum(), update.rows.double())
        state = method.server_update(state, inbox_of(clients, update.weights, row.to(update.rows.dtype)), round)


def test_client_updates_are_what_the_broadcast_expects(
    method: Method, federation: Federation, fingerprint: Fingerprint
) -> None:
    for round, state, block in exchanges(method, federation):
        before = fingerprint([state, block])
        broadcast = method.broadcast(state, round)
        sent = fingerprint(broadcast)
        update = method.client_update(broadcast, block)
        check_update(update, broadcast.expects, 3)
        assert update.weights.dtype == torch.float64
        assert update.rows.isfinite().all()
        assert all(len(value) == 3 for value in (*update.client_state.values(), *update.metrics.values()))
        assert fingerprint(method.client_update(broadcast, block)) == fingerprint(update)
        assert fingerprint([state, block]) == before
        assert fingerprint(broadcast) == sent


def test_a_block_is_its_clients_one_by_one(method: Method, federation: Federation) -> None:
    """Another block size is another order of arithmetic, so bits may differ; numbers may not."""
    for round, state, block in exchanges(method, federation):
        broadcast = method.broadcast(state, round)
        together = method.client_update(broadcast, block)
        for row, client in enumerate(block.clients):
            alone = method.client_update(broadcast, federation.block(client[None], broadcast.start, {}, round))
            torch.testing.assert_close(alone.rows[0], together.rows[row], rtol=1e-4, atol=1e-5)
            assert torch.equal(alone.weights[0], together.weights[row])


def test_server_updates_keep_the_form_of_the_state_and_change_nothing(
    method: Method, federation: Federation, fingerprint: Fingerprint
) -> None:
    state, clients, weights = method.initial_state(0), torch.tensor([1, 4, 7]), weights_of(3)
    expects = method.broadcast(state, 0).expects
    row = torch.randn(expects.size, generator=torch.Generator().manual_seed(0)).to(expects.dtype)
    inbox = inbox_of(clients, weights, row)
    before = fingerprint([state, row])
    updated = method.server_update(state, inbox, 0)
    assert {name: (value.shape, value.dtype) for name, value in updated.items()} == {
        name: (value.shape, value.dtype) for name, value in state.items()
    }
    assert not torch.equal(updated["model"], state["model"])
    assert fingerprint(method.server_update(state, inbox, 0)) == fingerprint(updated)
    assert fingerprint([state, row]) == before


def test_one_server_and_many_holders_run_the_same_code(method: Method, fingerprint: Fingerprint) -> None:
    """State[d] of each of three replicas, and state[3, d] of all: the same bits."""
    clients, weights, generator = torch.tensor([1, 4, 7]), weights_of(3), torch.Generator().manual_seed(0)
    states = [method.initial_state(replica) for replica in range(3)]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    rows = torch.randn(3, method.broadcast(states[0], 0).expects.size, generator=generator)
    for round in (0, 1):
        pairs = zip(states, rows, strict=True)
        states = [method.server_update(state, inbox_of(clients, weights, row), round) for state, row in pairs]
        stacked = method.server_update(stacked, inbox_of(clients, weights, rows), round)
    assert fingerprint(stacked) == fingerprint(
        {name: torch.stack([state[name] for state in states]) for name in stacked}
    )


def test_a_state_is_evaluated_by_loss_and_metrics(
    method: Method, federation: Federation, fingerprint: Fingerprint
) -> None:
    state, x, y = method.initial_state(0), federation.dataset.test_x[:20], federation.dataset.test_y[:20]
    before = fingerprint([state, x, y])
    measured = method.evaluate(state, x, y)
    assert set(measured) >= {"loss", *federation.learner.model.metrics}
    assert all(value.shape == () and value.isfinite() for value in measured.values())
    assert fingerprint(method.evaluate(state, x, y)) == fingerprint(measured)
    assert fingerprint([state, x, y]) == before


# Optimisers and engines; tests/test_training.py compares engines over random shapes.


@pytest.mark.parametrize("name", registry.members("optimizer"))
def test_an_optimizer_takes_the_steps_of_its_torch_reference(name: str) -> None:
    """Five steps of three rows at once, against torch's optimiser of each row; the state follows."""
    optimizer = registry.build("optimizer", name, {})
    fields = {each.name for each in dataclasses.fields(optimizer)}
    optimizer = replace(optimizer, **{key: 0.5 for key in ("momentum", "weight_decay") if key in fields})
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, COLUMNS, generator=generator)
    parameters = [torch.nn.Parameter(row.clone()) for row in rows]
    references = [optimizer.reference([parameter]) for parameter in parameters]
    state = optimizer.state(rows)
    assert set(optimizer.reference_names) == set(state)
    for _ in range(5):
        gradients = torch.randn(3, COLUMNS, generator=generator)
        for parameter, reference, gradient in zip(parameters, references, gradients, strict=True):
            parameter.grad = gradient.clone()
            reference.step()
        optimizer.step(rows, gradients, state)
    torch.testing.assert_close(rows, torch.stack([parameter.detach() for parameter in parameters]))
    for own, theirs in optimizer.reference_names.items():
        pairs = zip(references, parameters, strict=True)
        held = torch.stack([reference.state[parameter][theirs] for reference, parameter in pairs])
        torch.testing.assert_close(state[own], held.reshape(state[own].shape))


@pytest.mark.parametrize("name", registry.members("engine"))
def test_an_engine_trains_the_federations_own_model(name: str, tiny: Callable[..., Experiment]) -> None:
    federations = [
        Federation(tiny(training={"engine": engine, "epochs": 1, "steps": None})) for engine in (name, "reference")
    ]
    updates = []
    for federation in federations:
        state = federation.method.initial_state(0)
        broadcast = federation.method.broadcast(state, 0)
        block = federation.block(torch.tensor([0, 11]), broadcast.start, {}, 0)
        updates.append(federation.method.client_update(broadcast, block))
    assert ((updates[0].rows - updates[1].rows).norm(dim=1) <= 1e-4 * updates[1].rows.norm(dim=1)).all()
    torch.testing.assert_close(updates[0].metrics["train_loss"], updates[1].metrics["train_loss"])


@pytest.mark.parametrize("name", registry.members("server_optimizer"))
def test_a_server_optimizer_is_pure_over_any_leading_dimensions(name: str, fingerprint: Fingerprint) -> None:
    optimizer = registry.build("server_optimizer", name, {})
    fields = {each.name for each in dataclasses.fields(optimizer)}
    optimizer = replace(optimizer, **{key: 0.5 for key in ("lr", "momentum") if key in fields})
    models, updates = rows_of(3), rows_of(3, seed=1)
    state = optimizer.state(models)
    assert all(key.startswith("server_optimizer.") for key in state)
    before = fingerprint([models, updates, state])
    changed, kept = optimizer.step(models, updates, state)
    changed, kept = optimizer.step(changed, updates, kept)
    assert fingerprint([models, updates, state]) == before
    assert kept.keys() == state.keys()
    for row in range(3):
        model, held = models[row], optimizer.state(models[row])
        for _ in range(2):
            model, held = optimizer.step(model, updates[row], held)
        assert fingerprint([model, held]) == fingerprint([changed[row], {key: kept[key][row] for key in kept}])
    still, _ = optimizer.step(models, torch.zeros_like(models), optimizer.state(models))
    torch.testing.assert_close(still, models)


# Models, losses, metrics, data sets; tests/test_data.py has the partitions.


@pytest.mark.parametrize("name", registry.members("model"))
def test_a_model_maps_images_to_one_output_a_class(name: str) -> None:
    module = registry.build("model", name, {}).module((1, 28, 28), 7)
    assert module(torch.zeros(2, 1, 28, 28)).shape == (2, 7)


@pytest.mark.parametrize("name", registry.members("model"))
def test_a_model_begins_from_the_seed_and_is_evaluated_row_by_row(
    name: str, tiny: Callable[..., Experiment], fingerprint: Fingerprint
) -> None:
    parameters = {"padding": 1} if name == "cnn" else {}
    federation = Federation(tiny(model={"name": name, **parameters}))
    model = federation.learner.model
    rows = torch.stack([model.initial(Streams(0), replica) for replica in (0, 1)])
    assert rows.shape == (2, model.layout.size)
    assert not torch.equal(rows[0], rows[1])
    torch.manual_seed(5)
    assert torch.equal(model.initial(Streams(0), 0), rows[0]), "torch's own generator plays no part"
    assert not torch.equal(model.initial(Streams(1), 0), rows[0])
    x, y = federation.dataset.test_x[:30], federation.dataset.test_y[:30]
    together = model.evaluate(rows, x, y)
    for row in range(2):
        alone = model.evaluate(rows[row], x, y)
        assert fingerprint(alone) == fingerprint({key: value[row] for key, value in together.items()})


def outputs_and_targets(part: Any, samples: int) -> tuple[Tensor, Tensor]:
    """Four outputs a sample, of tokens for each of three places, and targets of the kind that the part is made for."""
    kind, generator = part.takes[0], torch.Generator().manual_seed(1)
    numbers = torch.randn(samples, 4, generator=generator)
    if kind == "tokens":
        tokens = torch.arange(3 * samples).view(samples, 3) % 4
        return torch.randn(samples, 3, 4, generator=generator), tokens.index_fill(1, torch.tensor([1]), IGNORED)
    targets = {"numbers": numbers, "labels": (numbers > 0).float(), "classes": torch.arange(samples) % 4}[kind]
    return torch.randn(samples, 4, generator=generator), targets


def measure_of(kind: str, name: str) -> Any:
    return registry.build(kind, name, {}, targets=Targets("numbers", 4, variance=2.0))


PER_SAMPLE = [(kind, name) for kind in ("loss", "metric") for name in registry.members(kind)]


@pytest.mark.parametrize(("kind", "name"), PER_SAMPLE, ids=lambda part: part)
def test_losses_and_metrics_say_what_they_take_and_which_way_is_better(kind: str, name: str) -> None:
    """The best outputs there are have a value that is better than that of others."""
    part = measure_of(kind, name)
    outputs, targets = outputs_and_targets(part, 5)
    best = targets.clone()
    if part.takes[0] in ("classes", "tokens"):
        best = torch.nn.functional.one_hot(targets.clamp_min(0), 4).float()
    if part.takes[0] != "numbers":
        best = 20 * (best - 0.5)
    if part.takes[0] == "labels" and kind == "loss":
        assert part(best, targets).max() < 1e-3
    sign = 1 if part.lower_is_better else -1
    assert (sign * part(best, targets)).mean() < (sign * part(outputs, targets)).mean()
    assert set(part.takes) <= set(KINDS)
    assert part.lower_is_better or kind == "metric"


@pytest.mark.parametrize(("kind", "name"), PER_SAMPLE, ids=lambda part: part)
@pytest.mark.parametrize("samples", [1, 5])
def test_losses_and_metrics_give_one_number_a_sample(
    kind: str, name: str, samples: int, fingerprint: Fingerprint
) -> None:
    measure = measure_of(kind, name)
    outputs, targets = outputs_and_targets(measure, samples)
    before = fingerprint([outputs, targets])
    values = measure(outputs, targets)
    assert values.shape == (samples,)
    assert values.isfinite().all()
    for sample in range(samples):
        torch.testing.assert_close(measure(outputs[sample][None], targets[sample][None])[0], values[sample])
    stacked = torch.func.vmap(measure)(torch.stack([outputs, outputs]), torch.stack([targets, targets]))
    torch.testing.assert_close(stacked, torch.stack([values, values]))
    assert fingerprint([outputs, targets]) == before


@pytest.mark.parametrize("name", registry.members("loss"))
def test_losses_have_gradients_that_lead_downhill(name: str) -> None:
    loss = registry.find("loss", name)
    outputs, targets = outputs_and_targets(loss, 3)
    outputs = torch.zeros_like(outputs, requires_grad=True)
    before = loss(outputs, targets).mean()
    (gradient,) = torch.autograd.grad(before, outputs)
    assert loss(outputs - gradient, targets).mean() < before


def no_network(*_: Any, **__: Any) -> Any:
    raise OSError("no network")


@pytest.mark.parametrize("name", registry.members("dataset"))
def test_a_data_set_loads_alike_or_says_what_is_missing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty data directory and without a network: digits loads, any other names the setting."""
    monkeypatch.setattr("sklearn.datasets.fetch_openml", no_network)
    source = registry.build("dataset", name, {})
    if name != "digits":
        with pytest.raises(SettingError, match=re.escape(str(tmp_path))) as raised:
            source.load(tmp_path)
        assert "runtime.data_dir" in str(raised.value)
        return
    dataset = source.load(tmp_path)
    assert isinstance(dataset, Dataset)
    assert dataset.name == name
    assert dataset.x.dtype == dataset.test_x.dtype == torch.float32
    assert dataset.y.dtype == dataset.test_y.dtype == torch.int64
    assert dataset.x.shape[1:] == dataset.test_x.shape[1:]
    assert set(dataset.y.tolist()) == set(range(len(dataset.classes)))
    assert source.load(tmp_path).sha256 == dataset.sha256


def test_every_kind_but_wrappers_and_observers_has_members() -> None:
    """Else a test above could pass by having nothing to look at."""
    assert {kind for kind, _ in PARTS} >= set(registry.HOMES) - {"wrapper", "rule_wrapper", "observer"}
    assert len(list(product(RULES, ATTACKERS))) >= 12
