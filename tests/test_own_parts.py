"""A user's own parts are checked as ours are, before the run: contracts, shards, functions, names, sizes of inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedgen import aggregate, conformity, registry
from fedgen.aggregation.flag import Flag
from fedgen.aggregation.median import Median
from fedgen.config import Experiment
from fedgen.contracts import Aggregation, Rule
from fedgen.data.partition import Dirichlet
from fedgen.errors import FedgenError, SettingError
from fedgen.federation import Federation
from fedgen.server.directions import directions
from fedgen.server.run.start import Result, RunFailed

UserModule = Callable[[str, str], Path]


# What a part lacks.

PARTS = '''
class Rule:
    linear = False
    def aggregate(self, rows, weights, context): ...

class Linear:
    def linear(self): return False
    def minimum(self): return 1
    aggregate = 3

class Attack:
    omniscient = False
    def poison(self, block, byzantine): return block

class Method:
    setup_rounds = 0
    def broadcast(self, state, round): ...

class Optimizer:
    def __init__(self): self.lr = 0.1
    def scaled(self, factor): return self

class Schedule:
    pass

class Split:
    def split(self, labels): ...

class Wrapper:
    def __init__(self): ...
    def minimum(self, f): return 1

class Loss:
    pass

class Delegating:
    """Every name is somebody else's."""
    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: None
'''

LACKING: list[tuple[dict[str, Any], list[str]]] = [
    ({"aggregation": {"rule": "mine:Rule"}}, ["rule 'mine:Rule' lacks 'minimum'"]),
    (
        {"aggregation": {"rule": "mine:Linear"}},
        [
            "has 'linear' as a function, not as a value",
            "has 'minimum' that does not take (f)",
            "has 'aggregate' as a value, not as a function",
        ],
    ),
    ({"aggregation": {"wrappers": ["mine:Wrapper"]}}, ["rule_wrapper 'mine:Wrapper' lacks 'linear'", "'aggregate'"]),
    ({"byzantine": {"attack": "mine:Attack"}}, ["attack 'mine:Attack' lacks 'corrupt'"]),
    ({"training": {"method": "mine:Method"}}, ["lacks 'modes'", "lacks 'server_update'", "lacks 'evaluate'"]),
    ({"training": {"wrappers": ["mine:Method"]}}, ["wrapper 'mine:Method' lacks 'modes'"]),
    ({"training": {"optimizer": "mine:Optimizer"}}, ["lacks 'state' and lacks 'step'"]),
    ({"training": {"schedule": "mine:Schedule"}}, ["schedule 'mine:Schedule' lacks 'factor'"]),
    ({"federation": {"server_optimizer": "mine:Schedule"}}, ["server_optimizer 'mine:Schedule' lacks 'state'"]),
    ({"data": {"partition": "mine:Split"}}, ["has 'split' that does not take (labels, clients, generator)"]),
    ({"data": {"dataset": "mine:Schedule"}}, ["dataset 'mine:Schedule' lacks 'load'"]),
    ({"model": {"name": "logistic", "loss": "mine:Loss"}}, ["loss 'mine:Loss' must be callable"]),
]


@pytest.mark.parametrize(("tables", "told"), LACKING, ids=str)
def test_what_a_part_lacks_is_named_before_the_run(
    tables: dict[str, Any], told: list[str], tiny: Callable[..., Experiment], user_module: UserModule
) -> None:
    user_module("mine", PARTS)
    with pytest.raises(SettingError) as caught:
        Federation(tiny(**tables))
    assert [fragment for fragment in told if fragment not in str(caught.value)] == [], caught.value


def test_names_that_are_delegated_are_there(user_module: UserModule) -> None:
    user_module("mine", PARTS)
    assert registry.build("schedule", "mine:Delegating", {}).factor(3) is None


@pytest.mark.parametrize("kind", conformity.CONTRACTS)
def test_every_contract_says_something_and_our_parts_keep_it(kind: str) -> None:
    class Nothing:
        pass

    with pytest.raises(SettingError, match=f"{kind} 'x' (lacks|must be callable)"):
        conformity.conforming(kind, "x", Nothing())


# Shards.

SHARDS: dict[str, tuple[str, str]] = {
    "too few": ("np.array_split(np.arange(s), 3)", "gave 3 shards for data.clients = 4"),
    "too many": ("np.array_split(np.arange(s), 5)", "gave 5 shards for data.clients = 4"),
    "an empty one": ("[[0], [1], [], [2]]", "leaves client 2 without samples"),
    "beyond the end": ("[[0], [1], [2], [s]]", "the shard of client 3 has numbers from [0-9]+ to [0-9]+; they count"),
    "negative": ("[[0], [-1], [2], [3]]", "the shard of client 1 has numbers from -1 to -1"),
    "twice": ("[[0], [1], [2, 5, 2], [3]]", "the shard of client 2 holds a sample twice"),
    "shared": ("[[0, 7], [1], [2], [3, 7]]", "clients 0 and 3 both hold sample 7"),
    "fractions": ("[[0], [1.5], [2], [3]]", r"the shard of client 1 must be a list of whole numbers; got float64\[1\]"),
    "truths": ("[np.arange(s) % 4 == c for c in range(4)]", "client 0 must be a list of whole numbers; got bool"),
    "a table": ("[[[0, 1]], [2], [3], [4]]", r"client 0 must be a list of whole numbers; got int64\[1, 2\]"),
    "nothing": ("None", r"failed \(TypeError"),
    "a mistake of its own": ("1 / 0", r"failed \(cut.py:6: ZeroDivisionError: division by zero\)"),
}


@pytest.mark.parametrize("case", SHARDS)
def test_shards_are_checked_and_the_client_is_named(
    case: str, tiny: Callable[..., Experiment], user_module: UserModule
) -> None:
    result, told = SHARDS[case]
    user_module(
        "cut",
        f"""
import numpy as np
class Cut:
    def split(self, labels, clients, generator):
        s = len(labels)
        return {result}
""",
    )
    with pytest.raises(SettingError, match=f"^data.partition 'cut:Cut':? .*{told}"):
        Federation(tiny(data={"clients": 4, "partition": "cut:Cut"}, federation={"cohort": 2}))


def test_a_partition_gets_what_it_asks_for_by_name(tiny: Callable[..., Experiment], user_module: UserModule) -> None:
    """x and numbers are those of the samples that are not held back, in the order of the labels."""
    user_module(
        "asking",
        """
import numpy as np
class Asking:
    def split(self, labels, clients, generator, x, numbers, domain, client=None):
        Asking.seen = labels, x, numbers, domain, client
        return [[int(place)] for place in np.argsort(numbers)[:clients]]
""",
    )
    federation = Federation(tiny(data={"clients": 4, "partition": "asking:Asking"}, federation={"cohort": 2}))
    labels, x, numbers, domain, client = sys.modules["asking"].Asking.seen
    assert (domain, client) == (None, None)
    assert torch.equal(torch.from_numpy(numbers), federation.training)
    assert torch.equal(torch.from_numpy(labels), federation.dataset.y[federation.training])
    assert torch.equal(torch.from_numpy(x), federation.dataset.x[federation.training])
    assert [shard.tolist() for shard in federation.shards] == [[each] for each in federation.training[:4].tolist()]


def test_owners_hold_their_samples(tiny: Callable[..., Experiment], tmp_path: Path) -> None:
    x, owner = np.random.default_rng(0).normal(size=(40, 3)), np.array(["north", "south", "east", "west"] * 10)
    np.savez(tmp_path / "own.npz", x_train=x, y_train=np.arange(40) % 2, x_test=x, y_test=np.arange(40) % 2,
             client_train=owner)  # fmt: skip
    data = {"dataset": {"name": "features", "path": "own.npz"}, "clients": 4, "partition": "natural"}
    tables = {"runtime": {"backend": "serial", "data_dir": str(tmp_path)}, "federation": {"cohort": 2}}
    shards = Federation(tiny(data=data, **tables)).shards
    assert [set(owner[shard.numpy()]) for shard in shards] == [{"east"}, {"north"}, {"south"}, {"west"}]
    with pytest.raises(SettingError, match=r"'natural': the samples are of 4 clients; set data\.clients = 4"):
        Federation(tiny(data=data | {"clients": 5}, **tables))
    with pytest.raises(SettingError, match="'natural' needs a data set that says whose its samples are"):
        Federation(tiny(data={"partition": "natural"}))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return (1, 2)", "load must return a fedgen.data.dataset.Dataset; it returned tuple"),
        ("raise KeyError('patients')", r"could not be loaded \(ward.py:3: KeyError: 'patients'\)"),
    ],
)
def test_a_data_set_that_is_none_is_named(
    body: str, told: str, tiny: Callable[..., Experiment], user_module: UserModule
) -> None:
    user_module("ward", f"class Ward:\n    def load(self, folder):\n        {body}\n")
    with pytest.raises(SettingError, match=f"^data.dataset 'ward:Ward':? {told}"):
        Federation(tiny(data={"dataset": "ward:Ward"}))


# A rule that is a function.

RULES = """
import torch
def middle(updates, f):
    updates.sort(0)
    updates[:] = updates.sort(0).values   # its own copy
    return updates[len(updates) // 2]

def short(updates, f):
    return updates[0, :3]

def broken(updates, f):
    raise ValueError("no idea")

def lonely(updates):
    return updates[0]
"""


def test_a_function_is_a_rule(
    tiny: Callable[..., Experiment], user_module: UserModule, run_in: Callable[..., Result]
) -> None:
    user_module("rules", RULES)
    tables = {"federation": {"cohort": 5, "rounds": 2}, "byzantine": {"attack": "sign_flip", "clients": 1}}
    own = run_in(tiny(aggregation={"rule": "rules:middle", "f": 2}, **tables), "own")
    ours = run_in(tiny(aggregation={"rule": "median", "f": 2}, **tables), "ours")
    assert own.state == "completed"
    assert own.metrics["loss"] == pytest.approx(ours.metrics["loss"], rel=1e-6)
    wrapped = run_in(tiny(aggregation={"rule": "rules:middle", "f": 1, "wrappers": ["nnm"]}, **tables), "wrapped")
    assert wrapped.state == "completed"


@pytest.mark.parametrize(
    ("name", "told"),
    [("short", r"rule 'short' must return \[650\] numbers for updates \[4, 650\]; it returned \[3\]"),
     ("broken", r"rule 'broken' failed \(rules.py:12: ValueError: no idea\)")],
)  # fmt: skip
def test_a_function_that_fails_is_named(
    name: str, told: str, tiny: Callable[..., Experiment], user_module: UserModule, run_in: Callable[..., Result]
) -> None:
    user_module("rules", RULES)
    with pytest.raises(RunFailed, match=told):
        run_in(tiny(aggregation={"rule": f"rules:{name}"}))


def test_a_function_of_one_argument_is_refused_before_the_run(
    tiny: Callable[..., Experiment], user_module: UserModule
) -> None:
    user_module("rules", RULES)
    with pytest.raises(SettingError, match=r"aggregation.rule 'lonely' must be called as rule\(updates, f\)"):
        Federation(tiny(aggregation={"rule": "rules:lonely"}))


# fedgen.aggregate.

MATRIX = np.random.default_rng(0).normal(size=(7, 12))


@pytest.mark.parametrize(
    "rule",
    [Median(), {"name": "median"}, {"name": "median", "params": {}}, lambda updates, f: updates.median(0).values],
)
def test_a_rule_is_a_name_a_table_an_instance_or_a_function(rule: Any) -> None:
    expected = aggregate(MATRIX, "median", f=2).aggregate
    assert torch.equal(aggregate(MATRIX, rule, f=2).aggregate, expected)


def test_parameters_stand_in_the_table_or_beside_the_name() -> None:
    expected, once = aggregate(MATRIX, Flag(form="paper"), f=2).aggregate, {"form": "paper"}
    assert not torch.equal(aggregate(MATRIX, Flag(), f=2).aggregate, expected)
    for rule, more in (("flag", once), ({"name": "flag", **once}, {}), ({"name": "flag", "params": once}, {})):
        assert torch.equal(aggregate(MATRIX, rule, f=2, **more).aggregate, expected)
    with pytest.raises(SettingError, match="form are parameters of a rule that is named"):
        aggregate(MATRIX, Flag(), f=2, form="paper")
    with pytest.raises(SettingError, match="expected a rule, got the class Flag; make one"):
        aggregate(MATRIX, Flag, f=2)
    with pytest.raises(SettingError, match="rule 'Dirichlet' lacks 'linear'"):
        aggregate(MATRIX, Dirichlet(), f=2)
    with pytest.raises(SettingError, match="a table needs a name"):
        aggregate(MATRIX, once)


def states(dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    return [
        {"w": row[:8].view(2, 4), "b": row[8:], "steps": torch.tensor(place)}
        for place, row in enumerate(torch.tensor(MATRIX, dtype=dtype))
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_state_dicts_come_back_as_a_state_dict(dtype: torch.dtype) -> None:
    expected = aggregate(torch.tensor(MATRIX, dtype=dtype), "median", f=2).aggregate
    found = aggregate(states(dtype), "median", f=2)
    assert list(found.aggregate) == ["w", "b", "steps"]
    assert torch.equal(torch.cat([found.aggregate["w"].flatten(), found.aggregate["b"]]), expected)
    assert found.aggregate["w"].dtype == dtype
    assert int(found.aggregate["steps"]) == 3, "the middle one of 0 .. 6"
    module = torch.nn.Linear(4, 2)
    given = [{name: value + place for name, value in module.state_dict().items()} for place in range(3)]
    module.load_state_dict(aggregate(given, "median").aggregate)
    assert torch.equal(module.weight.data, given[1]["weight"])


def test_lists_of_arrays_and_arrays_of_any_shape_come_back_as_they_are() -> None:
    expected = aggregate(MATRIX, "median", f=2).aggregate
    layers = aggregate([[row[:8].reshape(2, 4), row[8:]] for row in MATRIX], "median", f=2).aggregate
    assert [tuple(each.shape) for each in layers] == [(2, 4), (4,)]
    assert torch.equal(torch.cat([each.flatten() for each in layers]), expected)
    pictures = aggregate([row.reshape(3, 4) for row in MATRIX], "median", f=2).aggregate
    assert torch.equal(pictures, expected.view(3, 4))
    assert torch.equal(aggregate(list(MATRIX), "median", f=2).aggregate, expected)
    assert torch.equal(aggregate(MATRIX.tolist(), "median", f=2).aggregate, expected)


def test_updates_that_differ_are_named() -> None:
    given = states()
    given[4]["w"] = given[4]["w"].T
    with pytest.raises(ValueError, match=r"update 4: 'w' must be \[2, 4\], as in the first update; got \[4, 2\]"):
        aggregate(given, "median")
    with pytest.raises(ValueError, match=r"update 1: 'b' must be \[4\], .*; got only w"):
        aggregate([states()[0], {"w": torch.zeros(2, 4)}])
    with pytest.raises(ValueError, match="hold no floating-point numbers: steps"):
        aggregate([{"steps": torch.tensor(1)}])


def test_a_root_has_the_form_of_the_updates() -> None:
    root = states()[0]
    flat = np.concatenate([root["w"].flatten(), root["b"]])
    expected = aggregate(MATRIX.astype(np.float32), "fltrust", root=flat).aggregate
    found = aggregate(states(), "fltrust", root=root).aggregate
    torch.testing.assert_close(torch.cat([found["w"].flatten(), found["b"]]), expected)


# Names.


@pytest.fixture
def searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's own, behind everything that is installed."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(registry, "_SEARCHED", [])
    registry.search_in([str(tmp_path)])
    return tmp_path


@pytest.mark.parametrize("name", ["random", "test", "math", "torch"])
def test_a_module_hidden_by_another_is_named_with_its_file(name: str, searched: Path) -> None:
    (searched / f"{name}.py").write_text("class Net: ...")
    with pytest.raises(SettingError) as caught:
        registry.find("model", f"{name}:Net")
    message = str(caught.value)
    file = getattr(sys.modules[name], "__file__", None) or "Python itself"
    assert f"module '{name}' has no 'Net'; it was imported from {file}, which hides your own" in message
    assert str(searched / f"{name}.py") in message


def test_a_module_without_the_class_is_named_with_its_file(user_module: UserModule) -> None:
    path = user_module("plain", "class Other: ...")
    with pytest.raises(SettingError, match=f"module 'plain' has no 'Net'; it was imported from {path}$"):
        registry.find("model", "plain:Net")


@pytest.mark.parametrize(("name", "meant"), [("syn.Net", "syn:Net"), ("my.parts.Net", "my.parts:Net")])
@pytest.mark.parametrize("kind", ["model", "loss", "rule", "partition", "attack"])
def test_a_dot_where_a_colon_was_meant(kind: str, name: str, meant: str) -> None:
    with pytest.raises(SettingError, match=f"{kind} '{name}' is not known: did you mean '{meant}'"):
        registry.find(kind, name)


# Sizes.

NETS = """
import torch
class Wrong(torch.nn.Linear):
    def __init__(self): super().__init__(63, 10)
    def forward(self, x): return super().forward(x.flatten(1))

class Pair(torch.nn.Linear):
    def __init__(self): super().__init__(64, 10)
    def forward(self, x): return super().forward(x.flatten(1)), x

class Summed(torch.nn.Linear):
    def __init__(self): super().__init__(64, 10)
    def forward(self, x): return super().forward(x.flatten(1)).sum(0)

class Looked(torch.nn.Embedding):
    def __init__(self): super().__init__(17, 10)
    def forward(self, x): return super().forward(x.flatten(1)).mean(1)

class NoModule:
    def module(self, input_shape, outputs): return [input_shape]

class NoLuck:
    def module(self, input_shape, outputs): raise KeyError("width")

class Eager(torch.nn.Linear):
    '''Fails in training alone, which is the business of training.'''
    def __init__(self): super().__init__(64, 10)
    def forward(self, x):
        if self.training: raise ValueError("not yet")
        return super().forward(x.flatten(1))
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "Wrong",
            r"cannot take the samples of the data, which are float32\[1, 8, 8\] each; .*x\[2, 1, 8, 8\] .*2x64 and",
        ),
        ("Looked", r"cannot take the samples of the data, which are float32\[1, 8, 8\] each"),
        ("NoModule", "must make a torch.nn.Module; it made list"),
        ("NoLuck", r"cannot be made \(syn.py:[0-9]+: KeyError: 'width'\)"),
        ("Pair", "must give one tensor of outputs, .*; it gave tuple"),
        ("Summed", r"must give one tensor of outputs, \[b, ...\], for a batch x\[2, 1, 8, 8\]; it gave \[10\]"),
    ],
)
def test_a_model_that_does_not_fit_the_samples_is_refused_with_shapes(
    name: str, told: str, tiny: Callable[..., Experiment], user_module: UserModule
) -> None:
    user_module("syn", NETS)
    with pytest.raises(SettingError, match=f"^model.name 'syn:{name}' {told}"):
        Federation(tiny(model={"name": f"syn:{name}"}))


def test_a_model_that_fails_in_training_alone_is_let_through(
    tiny: Callable[..., Experiment], user_module: UserModule
) -> None:
    user_module("syn", NETS)
    assert Federation(tiny(model={"name": "syn:Eager"})).learner.model.module.training


def test_errors_of_functions_are_for_people() -> None:
    with pytest.raises(FedgenError, match=r"rule '<lambda>' must return \[12\] numbers"):
        aggregate(MATRIX, lambda updates, f: updates)


class Plain:
    """A rule that is derived from nothing."""

    linear = False

    def minimum(self, f: int) -> int:
        return 2 * f + 1

    def aggregate(self, rows: Any, weights: Any, context: Any) -> Aggregation:
        return Aggregation(rows.collect().median(0).values)


class Slotted:
    """Without room for anything more."""

    __slots__ = ()
    linear, minimum, aggregate = Plain.linear, Plain.minimum, Plain.aggregate


def test_a_rule_that_is_derived_from_nothing_has_the_defaults_of_rules() -> None:
    rule = conformity.conforming("rule", "plain", Plain())
    assert isinstance(rule, Rule)
    assert (rule.root_samples, rule.sends_change, rule.gram_weights(), rule.batched()) == (0, False, None, None)
    assert type(rule).aggregate is Plain.aggregate


def test_a_rule_that_cannot_be_given_them_is_told_what_to_derive_from() -> None:
    with pytest.raises(SettingError, match=r"rule 'slotted': derive its class from fedgen.contracts.Rule"):
        conformity.conforming("rule", "slotted", Slotted())


# What parts declare.

DECLARING = """
import torch
from dataclasses import dataclass

class Cut:
    def check_partition(self, name, parameters):
        if name != "iid":
            from fedgen.errors import SettingError
            raise SettingError(f"this cut is for iid, and not for {name}")
    def load(self, folder):
        from fedgen.data.dataset import Dataset
        x, y = torch.rand(40, 2), torch.arange(40) % 2
        return Dataset("cut", x, y, x, y, classes=("a", "b"))

class Numbered:
    takes = ("numbers",)
    def split(self, labels, clients, generator): ...

class Wide:
    lower_is_better = False
    def __call__(self, outputs, targets):
        return (outputs.argmax(-1) == targets).double()

class Silent:
    def __call__(self, outputs, targets):
        return (outputs.argmax(-1) == targets).double()

made = Wide()

def function(outputs, targets):
    return (outputs.argmax(-1) == targets).double()
function.takes = ("labels",)
"""


def test_a_data_set_may_ask_for_a_partition(tiny: Callable[..., Experiment], user_module: UserModule) -> None:
    user_module("telling", DECLARING)
    Federation(tiny(data={"dataset": "telling:Cut"}))
    with pytest.raises(SettingError, match="this cut is for iid, and not for dirichlet"):
        Federation(tiny(data={"dataset": "telling:Cut", "partition": "dirichlet"}))


def test_parts_that_are_derived_from_nothing_say_which_targets_they_take(
    tiny: Callable[..., Experiment], user_module: UserModule
) -> None:
    user_module("telling", DECLARING)
    with pytest.raises(SettingError, match=r"'telling:Numbered' is made for numbers.*choose from classes, dirichlet"):
        Federation(tiny(data={"partition": "telling:Numbered"}))
    with pytest.raises(
        SettingError, match=r"model.metrics 'telling:function' is made for labels.*choose from absolute_error, accuracy"
    ):
        Federation(tiny(model={"metrics": ["telling:function"]}))


def test_a_metric_says_which_way_is_better_however_it_is_made(
    tiny: Callable[..., Experiment], user_module: UserModule
) -> None:
    user_module("telling", DECLARING)
    known = directions(Federation(tiny(model={"metrics": ["telling:Wide", "telling:Silent", "telling:made"]})))
    told = {name: better for name, better in known.items() if name.startswith("telling")}
    assert told == {"telling:Wide": False, "telling:made": False}
    assert known["loss"] is True


def test_an_ability_in_another_form_is_named(tiny: Callable[..., Experiment], user_module: UserModule) -> None:
    user_module("telling", "from fedgen.aggregation.mean import Mean\nclass Rule(Mean):\n    gram_weights = 3\n")
    with pytest.raises(SettingError, match="rule 'telling:Rule' has 'gram_weights' as a value, not as a function"):
        Federation(tiny(aggregation={"rule": "telling:Rule"}))
