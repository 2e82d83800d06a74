"""The experiment file: defaults, identity, overrides, and what a mistake in it is called."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError
from torch import Tensor

from fedgen import registry
from fedgen.aggregation.base import RuleWrapper
from fedgen.aggregation.mean import Mean
from fedgen.config import Experiment, parse_experiment, parse_override
from fedgen.contracts import Aggregation, Context, Facts, Rows, Rule
from fedgen.errors import SettingError
from fedgen.federation import Federation
from fedgen.rows import SLICE
from fedgen.server.experiment_file import dump, load_experiment, starter
from fedgen.server.run.loops import checked
from fedgen.server.schema import experiment_schema, key_table, listing
from fedgen.training.learner import Learner

JARGON = re.compile(
    r"constrained|literal\[|Input should|dictionary|tuple|instance of|String should|Value error|validation error"
    r"|match pattern|pydantic|StopIteration|NoneType|Traceback|unhashable|object at 0x|\n\s*\n"
)
"""What a message must not hold: words of the validation library, of Python, and blank lines."""


# Defaults and forms.


def test_an_empty_file_is_the_default_experiment() -> None:
    experiment = parse_experiment("")
    assert experiment == Experiment()
    assert experiment.data.dataset.name == "digits"
    assert experiment.data.clients == 100
    assert (experiment.data.partition.name, experiment.data.partition.params["alpha"]) == ("dirichlet", 0.3)
    assert experiment.model.name == "mlp"
    assert experiment.model.params == {"hidden": (128,), "dropout": 0.0, "norm": "none"}
    assert experiment.training.optimizer.params.items() >= {"lr": 0.1, "momentum": 0.0}.items()
    assert (experiment.aggregation.rule.name, experiment.byzantine.attack.name) == ("mean", "none")
    assert (experiment.federation.mode, experiment.runtime.backend) == ("star", "auto")


@pytest.mark.parametrize(
    "text",
    [
        "rule = 'trimmed_mean'",
        "rule = { name = 'trimmed_mean' }",
        "[aggregation.rule]\nname = 'trimmed_mean'",
    ],
)
def test_a_choice_is_a_name_or_a_table(text: str) -> None:
    rule = parse_experiment(f"[aggregation]\n{text}").aggregation.rule
    assert (rule.name, rule.params) == ("trimmed_mean", {})


def test_a_choice_is_completed_with_defaults() -> None:
    text = "[training]\noptimizer = { name = 'sgd', lr = 1 }\n[byzantine]\nattack = 'ipm'"
    experiment = parse_experiment(text)
    assert experiment.training.optimizer.params.items() >= {"lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}.items()
    assert experiment.byzantine.attack.params == {"epsilon": 2.0, "optimize": False}


def test_parameters_of_a_model_stand_beside_its_name() -> None:
    model = parse_experiment("[model]\nname = 'cnn'\nchannels = [8]\npadding = 1\nmetrics = []").model
    assert model.params == {"channels": (8,), "hidden": 128, "padding": 1, "dropout": 0.0}
    assert model.metrics == ()


@dataclass(frozen=True, kw_only=True)
class Halved(RuleWrapper):
    """Half of what the inner rule says."""

    inner: Rule
    share: float = 0.5

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        return Aggregation(self.share * self.inner.aggregate(rows, weights, context).aggregate)

    def minimum(self, f: int) -> int:
        return self.inner.minimum(f)


@dataclass(frozen=True, kw_only=True)
class Careful(Mean):
    """A rule that needs 4 f + 3 rows."""

    def minimum(self, f: int) -> int:
        return 4 * f + 3


@dataclass(frozen=True, kw_only=True)
class Informed(Mean):
    """A rule that is built from the facts."""

    facts: Facts

    def minimum(self, f: int) -> int:
        return 1


@pytest.mark.parametrize("form", ["'halved'", "{ name = 'halved' }", "'halved', { name = 'halved', share = 0.25 }"])
def test_wrappers_are_a_list_of_choices_innermost_first(form: str, registered: Callable[..., Any]) -> None:
    registered("rule_wrapper", "halved")(Halved)
    text = f"[aggregation]\nwrappers = [{form}]\n[data]\nvalidation = 0.0\nclients = 5\n[federation]\ncohort = 3"
    experiment = parse_experiment(text)
    shares = [wrapper.params["share"] for wrapper in experiment.aggregation.wrappers]
    assert shares == [0.5, 0.25][: len(shares)]
    rule: Any = Federation(experiment).rule
    assert rule.share == shares[-1]
    for _ in shares:
        rule = rule.inner
    assert rule == Mean()


class Plain(Rule):
    """The same, as a class that is no dataclass, with a parameter."""

    def __init__(self, facts: Facts, share: float = 0.5) -> None:
        self.facts, self.share = facts, share

    def minimum(self, f: int) -> int:
        return 1

    def aggregate(self, rows: Rows, weights: Tensor, context: Context) -> Aggregation:
        return Mean().aggregate(rows, weights, context)


@dataclass(frozen=True, kw_only=True)
class Curious(Mean):
    """A rule that asks for what methods alone are given."""

    learner: Learner


def test_a_class_that_is_no_dataclass_is_given_facts_by_name_too(registered: Callable[..., Any]) -> None:
    registered("rule", "plain")(Plain)
    rule: Any = Federation(Experiment(aggregation={"rule": {"name": "plain", "share": 0.25}})).rule
    assert rule.facts.clients == 100
    assert rule.share == 0.25
    with pytest.raises(SettingError, match="facts"):
        Experiment(aggregation={"rule": {"name": "plain", "facts": 1}})


def test_a_rule_is_not_given_the_learner(registered: Callable[..., Any]) -> None:
    registered("rule", "curious")(Curious)
    with pytest.raises(TypeError, match="learner"):
        Federation(Experiment(aggregation={"rule": "curious"}))


def test_a_rule_may_be_built_from_the_facts(registered: Callable[..., Any]) -> None:
    registered("rule", "informed")(Informed)
    experiment = Experiment(aggregation={"rule": "informed"})
    assert Federation(experiment).rule.facts.clients == 100  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("cohort", "clients", "expected"),
    [(0.1, 100, 10), (0.1, 4, 1), (0.5, 5, 3), (0.25, 10, 3), (1.0, 7, 7), (1, 7, 1), (7, 7, 7), (0.001, 5, 1)],
)
def test_a_cohort_is_a_count_or_a_share_rounded_half_up(cohort: float, clients: int, expected: int) -> None:
    experiment = Experiment(data={"clients": clients}, federation={"cohort": cohort})
    assert experiment.cohort_size == expected


def test_an_experiment_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Experiment().data.clients = 3  # type: ignore[misc]


# What a worker resolves.


def test_auto_is_resolved_from_model_and_cohort_alone(tiny: Callable[..., Experiment]) -> None:
    """Whatever [runtime] says; slices of the default width, and one epoch where nothing is said."""
    experiment = tiny(federation={"cohort": 12}, training={"steps": None})
    resolved = Federation(experiment).experiment
    assert (experiment.training.block, experiment.aggregation.slice) == ("auto", "auto")
    assert isinstance(resolved.training.block, int)
    assert 1 <= resolved.training.block <= 12
    assert resolved.aggregation.slice == SLICE
    assert resolved.training.engine in registry.members("engine")
    assert (resolved.training.epochs, resolved.training.steps) == (1, None)
    assert resolved.runtime.data_dir is not None
    elsewhere = Federation(experiment.replace(runtime={"backend": "ray", "workers": 7})).experiment
    assert elsewhere.identity == resolved.identity


def test_what_is_given_is_kept(tiny: Callable[..., Experiment]) -> None:
    given = {"block": 5, "steps": 2, "engine": "reference"}
    resolved = Federation(tiny(training=given, aggregation={"slice": 128})).experiment
    assert resolved.training.model_dump(include=set(given)) == given
    assert resolved.training.epochs is None
    assert resolved.aggregation.slice == 128


def test_resolving_twice_changes_nothing(tiny: Callable[..., Experiment]) -> None:
    once = Federation(tiny()).experiment
    assert Federation(once).experiment == once
    assert Federation(once).experiment.identity == once.identity


# Identity.

DECISIVE: list[dict[str, Any]] = [
    {"experiment": {"seed": 1}},
    {"data": {"clients": 50}},
    {"data": {"partition": {"name": "dirichlet", "alpha": 0.5}}},
    {"data": {"validation": 0.2}},
    {"data": {"standardise": True}},
    {"model": {"hidden": [64]}},
    {"model": {"metrics": []}},
    {"training": {"optimizer": {"name": "sgd", "lr": 0.2}}},
    {"training": {"batch_size": 8}},
    {"training": {"steps": 1}},
    {"training": {"block": 3}},
    {"training": {"threads": 2}},
    {"training": {"engine": "reference"}},
    {"federation": {"cohort": 0.2}},
    {"federation": {"server_optimizer": {"name": "sgd", "momentum": 0.9}}},
    {"federation": {"mode": "gossip"}},
    {"federation": {"mode": "gossip"}, "gossip": {"topology": "ring"}},
    {"federation": {"mode": "gossip"}, "gossip": {"clock": "events"}},
    {"federation": {"mode": "gossip"}, "gossip": {"clock": "events"}, "virtual_time": {"delay": [1, 2]}},
    {"federation": {"mode": "gossip"}, "faults": {"loss": 0.1}},
    {"aggregation": {"rule": "median"}},
    {"aggregation": {"f": 1}},
    {"aggregation": {"slice": 64}},
    {"aggregation": {"norm_limit": 10.0}},
    {"aggregation": {"weights": "equal"}},
    {"byzantine": {"attack": "ipm"}},
    {"byzantine": {"clients": [0]}},
    {"byzantine": {"start": 1}},
    {"byzantine": {"redraw": True}},
]


def test_every_decisive_key_changes_the_identity() -> None:
    identities = [Experiment(**tables).identity for tables in [{}, *DECISIVE]]
    assert all(re.fullmatch("[0-9a-f]{64}", identity) for identity in identities)
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize(
    "tables",
    [
        {"experiment": {"name": "another"}},
        {"federation": {"rounds": 7}},
        {"runtime": {"backend": "ray"}},
        {"runtime": {"backend": "serial", "workers": 3, "data_dir": "/tmp", "checkpoint_every": 1}},
        {"runtime": {"address": "127.0.0.1:1", "keep_checkpoints": 9, "block_timeout_s": 1.0}},
        {"tracking": {"report": False}},
    ],
    ids=str,
)
def test_name_rounds_runtime_and_tracking_do_not(tables: dict[str, Any]) -> None:
    assert Experiment(**tables) != Experiment()
    assert Experiment(**tables).identity == Experiment().identity


def test_forms_of_the_same_experiment_have_one_identity() -> None:
    short = parse_experiment("[aggregation]\nrule = 'mean'\n[training]\noptimizer = { name = 'sgd', lr = 1 }")
    long = parse_experiment("[training]\noptimizer = { name = 'sgd', momentum = 0.0, lr = 1.0 }")
    assert short.identity == long.identity


# Changing an experiment.


def test_replace_changes_the_named_keys_and_nothing_else() -> None:
    before = Experiment(data={"clients": 30}, training={"epochs": 3})
    after = before.replace(data={"standardise": True}, aggregation={"rule": "median"})
    assert (after.data.clients, after.training.epochs) == (30, 3)
    assert (after.data.standardise, after.aggregation.rule.name) == (True, "median")
    assert before == Experiment(data={"clients": 30}, training={"epochs": 3})
    assert before.replace() == before


def test_replace_checks_again() -> None:
    with pytest.raises(SettingError, match=r"federation\.cohort = 101"):
        Experiment().replace(federation={"cohort": 101})
    with pytest.raises(SettingError, match=r"training\.batch_size"):
        Experiment().replace(training={"batch_size": 0})


@pytest.mark.parametrize("name", registry.members("model"))
def test_replace_takes_another_model_without_the_old_ones_parameters(name: str) -> None:
    assert Experiment().replace(model={"name": name}).model.name == name


def test_replace_of_an_unknown_table_is_explained() -> None:
    with pytest.raises(SettingError, match=r"agregation.*aggregation"):
        Experiment().replace(agregation={"f": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("training.epochs=2", ("training.epochs", 2)),
        ("training.epochs = 2", ("training.epochs", 2)),
        ("training.optimizer.lr=1e-3", ("training.optimizer.lr", 1e-3)),
        ("data.standardise=true", ("data.standardise", True)),
        ("model.name=cnn", ("model.name", "cnn")),
        ("model.name='cnn'", ("model.name", "cnn")),
        ("model.hidden=[64, 32]", ("model.hidden", [64, 32])),
        ("aggregation.rule={name = 'median'}", ("aggregation.rule", {"name": "median"})),
        ("model.name=module:Class", ("model.name", "module:Class")),
        ("runtime.data_dir=/data/x", ("runtime.data_dir", "/data/x")),
        ("a=b=c", ("a", "b=c")),
        ("a=", ("a", "")),
        ("data.name=3 digits", ("data.name", "3 digits")),
    ],
)
def test_overrides_are_toml_else_text(text: str, expected: tuple[str, Any]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["training.epochs", "=2", " =2", ""])
def test_an_override_without_key_or_value_is_explained(text: str) -> None:
    with pytest.raises(SettingError, match=r"--set .*expected KEY=VALUE, such as"):
        parse_override(text)


FILE = "[training]\noptimizer = { name = 'sgd', lr = 0.5 }\n[aggregation]\nrule = 'mean'\nwrappers = []\n"


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        ("training.optimizer.lr", 0.25, lambda experiment: experiment.training.optimizer.params["lr"]),
        ("byzantine.attack", "ipm", lambda experiment: experiment.byzantine.attack.name),
        ("training.epochs", 4, lambda experiment: experiment.training.epochs),
        ("aggregation.rule", "median", lambda experiment: experiment.aggregation.rule.name),
        ("aggregation.rule.name", "median", lambda experiment: experiment.aggregation.rule.name),
        ("model.name", "logistic", lambda experiment: experiment.model.name),
        pytest.param(
            "federation.server_optimizer.momentum",
            0.5,
            lambda experiment: experiment.federation.server_optimizer.params["momentum"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_overrides_win_over_the_file(path: str, value: Any, found: Callable[[Experiment], Any]) -> None:
    assert found(parse_experiment(FILE, overrides={path: value})) == value


def test_an_override_below_a_number_is_explained() -> None:
    with pytest.raises(SettingError, match=r"--set aggregation\.wrappers\.name: wrappers is no table but \[\]"):
        parse_experiment(FILE, overrides={"aggregation.wrappers.name": "nnm"})


# Files.


def test_what_is_dumped_is_read_back() -> None:
    for tables in [{}, *DECISIVE, {"runtime": {"address": "127.0.0.1:1", "data_dir": "/a b/'c'"}}]:
        experiment = Experiment(**tables)
        assert parse_experiment(dump(experiment)) == experiment


def test_infinite_parameters_are_dumped_or_refused() -> None:
    try:
        experiment = Experiment(training={"optimizer": {"name": "sgd", "lr": float("inf")}})
    except SettingError:
        return
    assert parse_experiment(dump(experiment)) == experiment


def test_the_starter_holds_every_key_with_its_default() -> None:
    text = starter()
    assert parse_experiment(text) == Experiment()
    for name in Experiment.model_fields:
        section = getattr(Experiment(), name).model_dump()
        for key in section:
            assert re.search(rf"^(# )?{key} =", text, re.MULTILINE), f"{name}.{key} is not in the starter"
    assert all(len(line) <= 120 for line in text.splitlines())


def test_a_file_is_loaded_with_overrides(tmp_path: Any) -> None:
    path = tmp_path / "experiment.toml"
    path.write_text(FILE)
    assert load_experiment(path, {"data.clients": 20}).data.clients == 20


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"], ids=["missing", "no text"])
def test_a_file_that_cannot_be_read_is_named(content: bytes | None, tmp_path: Any) -> None:
    path = tmp_path / "experiment.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingError, match=r"experiment file .*experiment\.toml cannot be read .*fedgen init"):
        load_experiment(path)


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    """The experiment file's schema, itself valid."""
    found = experiment_schema()
    jsonschema.Draft202012Validator.check_schema(found)
    assert json.loads(json.dumps(found)) == found
    return jsonschema.Draft202012Validator(found)


def plain(experiment: Experiment) -> dict[str, Any]:
    """The tables as a file holds them: without keys that have no value."""
    tables = experiment.model_dump(mode="json")
    return {name: {key: value for key, value in table.items() if value is not None} for name, table in tables.items()}


def test_the_schema_accepts_every_experiment_here(schema: jsonschema.Draft202012Validator) -> None:
    for tables in [{}, *DECISIVE]:
        schema.validate(tables)
        schema.validate(plain(Experiment(**tables)))
    schema.validate(tomllib.loads(starter()))
    for choice in ("median", {"name": "median"}, "my_module:Rule", {"name": "my_module:Rule", "depth": 3}):
        schema.validate({"aggregation": {"rule": choice}})


@pytest.mark.parametrize(
    "tables",
    [
        {"dta": {}},
        {"data": {"client": 3}},
        {"data": {"clients": "many"}},
        {"data": {"clients": 0}},
        {"aggregation": {"rule": "medain"}},
        {"aggregation": {"rule": {"name": "mean", "trim": 3}}},
        {"training": {"optimizer": {"name": "sgd", "lr": -1}}},
        {"aggregation": {"wrappers": [{"lr": 1}]}},
        {"federation": {"mode": "ring"}},
        {"aggregation": {"slice": 65}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_parser_refuses(
    tables: dict[str, Any], schema: jsonschema.Draft202012Validator
) -> None:
    assert not schema.is_valid(tables)
    with pytest.raises(SettingError):
        Experiment(**tables)


def test_every_key_has_a_description_in_schema_and_table() -> None:
    table = key_table()
    for name, field in Experiment.model_fields.items():
        section: Any = type(getattr(Experiment(), name))
        assert f"### [{name}]" in table
        for key, each in section.model_fields.items():
            if key != "params":
                assert each.description, f"{name}.{key}"
                assert f"| `{key}` | " in table
        assert section.__doc__, field


def test_the_table_has_the_right_articles() -> None:
    assert not re.findall(r"\| a [aeiou][^|]*\|", key_table())
    assert "| `optimizer` | an optimizer |" in key_table()
    assert "| `rule` | a rule |" in key_table()


def test_the_starter_describes_every_key() -> None:
    assert " of mlp" not in starter()
    assert re.search(r"\n# [^\n]*width[^\n]*\nhidden = \[128\]", starter())


def test_the_listing_of_an_unknown_kind_is_explained() -> None:
    with pytest.raises(SettingError, match="kind 'rules' is not known: did you mean 'rule'"):
        listing("rules")


# Mistakes. Each: the text, and what the message names (setting, expected, what came, fix).

MISTAKES: dict[str, tuple[str, list[str]]] = {
    "malformed": ("[data]\nclients = = 3", ["not valid TOML", "line 2"]),
    "malformed end": ("[data", ["not valid TOML", "Expected ']'"]),
    "key twice": ("[data]\nclients = 3\nclients = 4", ["not valid TOML", "overwrite"]),
    "a slash in the name": (
        "[experiment]\nname = 'a/b'",
        ["experiment.name", "text without slashes or control characters", "'a/b'", "name of the run folder"],
    ),
    "text for a number": (
        "[federation]\nrounds = 'many'",
        ["federation.rounds", "integer", "'many'", "number of rounds"],
    ),
    "fraction for a count": ("[federation]\nrounds = 1.5", ["federation.rounds", "integer", "1.5"]),
    "truth for a count": ("[federation]\nrounds = true", ["federation.rounds", "integer", "True"]),
    "text for truth": ("[data]\nstandardise = 'yes'", ["data.standardise", "boolean", "'yes'"]),
    "number for a table": ("data = 3", ["data", "table", "3"]),
    "text for a list": ("[model]\nmetrics = 'accuracy'", ["model.metrics", "list", "'accuracy'"]),
    "number for a list": ("[model]\nhidden = 128", ["model.hidden", "list", "128"]),
    "text for a list of choices": (
        "[aggregation]\nwrappers = 'nnm'",
        ["aggregation.wrappers", "list", "'nnm'"],
    ),
    "empty name": (
        "[experiment]\nname = ''",
        ["experiment.name", "expected at least 1 character", "''"],
    ),
    "number for a choice": ("[aggregation]\nrule = 3", ["aggregation.rule", "a name or a table with a name", "3"]),
    "number for a name": ("[training]\noptimizer = { name = 3 }", ["training.optimizer.name", "string", "3"]),
    "unknown table": ("[dta]\nclients = 3", ["dta", "unknown key", "did you mean 'data'"]),
    "unknown key": ("[data]\nclient = 3", ["data.client", "unknown key", "did you mean 'clients'"]),
    "unknown key far from all": ("[data]\nzzz = 3", ["data.zzz", "unknown key", "choose from clients, "]),
    "unknown key of a choice": (
        "[data]\npartition = { name = 'dirichlet', alfa = 3 }",
        ["data.partition.alfa", "unknown key", "did you mean 'alpha'"],
    ),
    "unknown key of a choice without any": (
        "[aggregation]\nrule = { name = 'mean', trim = 3 }",
        ["aggregation.rule.trim", "unknown key of mean", "there is none"],
    ),
    "unknown key of a model": (
        "[model]\nhiden = [3]",
        ["model.hiden", "unknown key of mlp", "did you mean 'hidden'"],
    ),
    "a key called params": (
        "[training]\noptimizer = { name = 'sgd', params = { lr = 1.0 } }",
        ["training.optimizer.params", "unknown key of sgd"],
    ),
    "a key called int": (
        "[data]\nint = 1",
        ["data.int", "unknown key"],
    ),
    "a key with brackets": (
        "[data]\n'a[b]' = 1",
        ["data.a[b]", "unknown key"],
    ),
    "unknown rule": (
        "[aggregation]\nrule = 'medain'",
        ["aggregation.rule", "rule 'medain' is not known", "did you mean 'median'"],
    ),
    "unknown attack": (
        "[byzantine]\nattack = 'xyz'",
        ["byzantine.attack", "choose from ", "sign_flip", "'module:Class'"],
    ),
    "unknown model": ("[model]\nname = 'mlpp'", ["model", "'mlpp' is not known", "did you mean 'mlp'"]),
    "unknown data set": ("[data]\ndataset = 'digit'", ["data.dataset", "did you mean 'digits'"]),
    "unknown engine": (
        "[training]\nengine = 'vmpa'",
        ["training", "engine 'vmpa' is not known", "did you mean 'vmap'"],
    ),
    "unknown loss": (
        "[model]\nloss = 'cross_entrpy'",
        ["model", "loss 'cross_entrpy'", "did you mean 'cross_entropy'"],
    ),
    "unknown metric": ("[model]\nmetrics = ['acuracy']", ["model", "metric 'acuracy'", "did you mean 'accuracy'"]),
    "unknown wrapper": ("[training]\nwrappers = ['clip']", ["training.wrappers.0", "wrapper 'clip' is not known"]),
    "unknown backend": ("[runtime]\nbackend = 'dask'", ["runtime.backend", "'auto', 'ray' or 'serial'", "'dask'"]),
    "unknown mode": ("[federation]\nmode = 'ring'", ["federation.mode", "'star'", "'ring'"]),
    "module missing": (
        "[model]\nname = 'no_such:Net'",
        ["model", "'no_such:Net' cannot be imported", "folder of the experiment file"],
    ),
    "class missing": ("[model]\nname = 'math:Net'", ["model", "module 'math' has no 'Net'"]),
    "no class": ("[model]\nname = 'math:pi'", ["model", "'math:pi' is no class"]),
    "a function for a class": (
        "[model]\nname = 'math:sqrt'",
        ["model", "'math:sqrt' is no class"],
    ),
    "no module": (
        "[model]\nname = ':Net'",
        ["model", "':Net'", "module:Class"],
    ),
    "relative module": (
        "[model]\nname = '.net:Net'",
        ["model", "'.net:Net'", "module:Class"],
    ),
    "below the range": (
        "[training]\nbatch_size = 0",
        ["training.batch_size", "greater than or equal to 1", "0", "samples a step"],
    ),
    "above the range": ("[data]\nvalidation = 1.0", ["data.validation", "less than 1", "1.0"]),
    "seed too large": (
        "[experiment]\nseed = 9223372036854775808",
        ["experiment.seed", "less than 9223372036854775808"],
    ),
    "no number": ("[aggregation]\nnorm_limit = nan", ["aggregation.norm_limit", "greater than 0", "nan"]),
    "range of a parameter": (
        "[training]\noptimizer = { name = 'sgd', lr = -1.0 }",
        ["training.optimizer.lr", "greater than 0", "-1.0", "learning rate"],
    ),
    "text for a parameter": (
        "[training]\noptimizer = { name = 'sgd', lr = 'big' }",
        ["training.optimizer.lr", "valid number", "'big'"],
    ),
    "a number as text for a parameter": (
        "[training]\noptimizer = { name = 'sgd', lr = '0.5' }",
        ["training.optimizer.lr", "number", "'0.5'"],
    ),
    "truth for a parameter": (
        "[training]\noptimizer = { name = 'sgd', lr = true }",
        ["training.optimizer.lr", "number", "True"],
    ),
    "range of a model's parameter": (
        "[model]\nhidden = [0]",
        ["model.hidden.0", "greater than or equal to 1", "0"],
    ),
    "text for a cohort": (
        "[federation]\ncohort = 'x'",
        ["federation.cohort:", "expected", "'x'", "clients of a round"],
    ),
    "an empty cohort": (
        "[federation]\ncohort = 0",
        ["federation.cohort:", "expected", "got 0", "clients of a round"],
    ),
    "a share above one": ("[federation]\ncohort = 1.5", ["federation.cohort:", "expected", "got 1.5", "share"]),
    "a block of nobody": ("[training]\nblock = 0", ["training.block:", "'auto'", "1", "got 0"]),
    "a slice of odd width": (
        "[aggregation]\nslice = 65",
        ["aggregation.slice:", "'auto'", "multiple of 64", "got 65"],
    ),
    "no workers": ("[runtime]\nworkers = 0", ["runtime.workers:", "'auto'", "1", "got 0"]),
    "text for attackers": ("[byzantine]\nclients = 'all'", ["byzantine.clients:", "'all'", "how many", "list"]),
    "a attacker below 0": (
        "[byzantine]\nclients = [-1]",
        ["byzantine.clients.0:", "greater than or equal to 0", "-1"],
    ),
    "cohort above clients": (
        "[federation]\ncohort = 101",
        ["federation.cohort = 101", "data.clients = 100", "at most 100"],
    ),
    "f of half the cohort": (
        "[aggregation]\nf = 5",
        ["aggregation.f = 5", "cohort of 10", "f >= n / 2", "at most 4", "raise federation.cohort"],
    ),
    "a attacker beyond the clients": (
        "[byzantine]\nclients = [3, 100]",
        ["byzantine.clients = [3, 100]", "data.clients = 100", "numbered from 0"],
    ),
    "a list of attackers that is redrawn": (
        "[byzantine]\nclients = [3, 4]\nredraw = true",
        ["byzantine.redraw = true", "byzantine.clients = [3, 4]", "byzantine.clients = 2"],
    ),
    "more attackers than clients": ("[byzantine]\nclients = 101", ["byzantine.clients = 101", "data.clients = 100"]),
    "nobody honest": (
        "[byzantine]\nclients = 100",
        ["byzantine.clients = 100", "every one of data.clients = 100", "at most 99"],
    ),
    "nobody honest in a list": (
        "[data]\nclients = 2\n[byzantine]\nclients = [1, 0]\n[federation]\ncohort = 1",
        ["byzantine.clients = [1, 0]", "every one of data.clients = 2", "at most 1"],
    ),
    "epochs and steps": (
        "[training]\nepochs = 1\nsteps = 2",
        ["training", "epochs and steps are both given", "keep one"],
    ),
}


@pytest.mark.parametrize(
    "mistake",
    [*MISTAKES],
)
def test_a_mistake_is_named_with_its_setting_and_what_was_expected(mistake: str) -> None:
    text, fragments = MISTAKES[mistake]
    with pytest.raises(SettingError) as caught:
        parse_experiment(text, "my.toml")
    message = str(caught.value)
    assert message.startswith("my.toml"), message
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert JARGON.search(message) is None, message
    assert len(message.splitlines()) == 1, message


def test_a_module_that_is_not_there_names_the_folders_of_ones_own_that_were_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.setattr(registry, "_SEARCHED", [])
    registry.search_in(["/home/me/experiments"])
    with pytest.raises(SettingError) as caught:
        registry.find("model", "no_such:Net")
    assert str(caught.value).endswith("; put it into the folder of the experiment file: /home/me/experiments")
    (tmp_path / "typo.py").write_text("import no_such")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingError) as caught:
        registry.find("model", "typo:Net")
    assert "ModuleNotFoundError: No module named 'no_such'" in str(caught.value)
    assert "/home/me" not in str(caught.value)


def test_two_mistakes_are_two_lines() -> None:
    with pytest.raises(SettingError) as caught:
        parse_experiment("[data]\nclients = 0\n[training]\nbatch_size = 0", "my.toml")
    first, second = str(caught.value).splitlines()
    assert "data.clients" in first
    assert "training.batch_size" in second


def test_a_rule_that_needs_more_than_the_cohort_is_refused(registered: Callable[..., Any]) -> None:
    """4 f + 3 = 11 rows for f = 2, of a cohort of 10; for f = 1 it needs 7."""
    registered("rule", "careful")(Careful)
    with pytest.raises(SettingError, match=r"aggregation\.rule = 'careful' needs at least 11 .*f = 2.*cohort gives 10"):
        checked(Experiment(aggregation={"rule": "careful", "f": 2}))
    assert checked(Experiment(aggregation={"rule": "careful", "f": 1})).rule.minimum(1) == 7


def test_f_just_below_half_passes() -> None:
    """2 * 4 < 9, but 2 * 4 = 8."""
    assert Experiment(aggregation={"f": 4}, federation={"cohort": 9}).aggregation.f == 4
    with pytest.raises(SettingError, match="at most 3"):
        Experiment(aggregation={"f": 4}, federation={"cohort": 8})


def test_python_arguments_are_checked_like_a_file() -> None:
    with pytest.raises(SettingError, match=r"data\.clients: expected a valid integer, got 'x'"):
        Experiment(data={"clients": "x"})
    with pytest.raises(SettingError, match="foo: unknown key"):
        Experiment(foo={})
