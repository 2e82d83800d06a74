"""The experiment file: every key with its unit and default, checked as a whole before anything runs."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from fedgen import registry
from fedgen.choice import Choice, Kind, Section
from fedgen.errors import SettingError
from fedgen.mistakes import explain
from fedgen.modes import HOW, OF_MODE

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class ExperimentSection(Section):
    """Who this experiment is."""

    name: str = Field(
        "experiment",
        min_length=1,
        pattern=r"^[^/\\\x00-\x1f]*$",
        description="name of the run folder and the report's title, without slashes",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random number of the experiment")


class DataSection(Section):
    """What the clients hold."""

    dataset: Annotated[Choice, Kind("dataset", "digits")] = Field(
        Choice(name="digits"), validate_default=True, description="data set"
    )
    clients: int = Field(100, ge=1, description="number of clients N that share the training samples")
    partition: Annotated[Choice, Kind("partition", "dirichlet")] = Field(
        Choice(name="dirichlet"), validate_default=True, description="how the samples are divided among the clients"
    )
    validation: float = Field(
        0.1, ge=0, lt=1, description="share of the training samples held back, at the server, for early decisions"
    )
    standardise: bool = Field(False, description="subtract the training mean and divide by the standard deviation")


class ModelSection(Choice):
    """The model every participant trains; further keys are the model's parameters."""

    name: str = Field("mlp", description="model, or a torch.nn.Module of your own as 'module:Class'")
    loss: str = Field("cross_entropy", description="loss that training minimises")
    metrics: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        ("accuracy",), description="metrics computed beside the loss"
    )
    init: Literal["module", "xavier"] = Field(
        "module", description="first parameters: as the module draws them, or Xavier's uniform law and biases of zero"
    )

    @model_validator(mode="after")
    def _registered(self) -> Self:
        for kind, names in {"loss": (self.loss,), "metric": self.metrics}.items():
            for name in names:
                try:
                    registry.find(kind, name)
                except SettingError as error:
                    raise PydanticCustomError("unknown_name", "{why}", {"why": str(error)}) from error
        return self


class TrainingSection(Section):
    """What a client does in a round."""

    method: Annotated[Choice, Kind("method", "sgd")] = Field(
        Choice(name="sgd"), validate_default=True, description="federated method"
    )
    wrappers: Annotated[tuple[Annotated[Choice, Kind("wrapper")], ...], Field(strict=False)] = Field(
        (), description="method wrappers, innermost first"
    )
    optimizer: Annotated[Choice, Kind("optimizer", "sgd")] = Field(
        Choice(name="sgd"), validate_default=True, description="the clients' optimiser"
    )
    keep_optimizer: bool | None = Field(
        None, description="the optimiser's state survives rounds as client state (star false, gossip true)"
    )
    schedule: Annotated[Choice, Kind("schedule", "constant")] = Field(
        Choice(name="constant"), validate_default=True, description="factor of the learning rate, round by round"
    )
    proximal: float = Field(0.0, ge=0, description="pull towards the round's start, FedProx's mu")
    clip_norm: float | None = Field(None, gt=0, description="longest gradient of a step, Euclidean length")
    epochs: Count | None = Field(None, description="local epochs a round (1 where neither epochs nor steps is given)")
    steps: Count | None = Field(None, description="local steps a round, instead of epochs")
    batch_size: int = Field(32, ge=1, description="samples a step")
    engine: str = Field("auto", description="how blocks of clients are trained; auto: by model and size")
    block: Literal["auto"] | Count = Field("auto", description="clients trained in lockstep by one worker")
    threads: int = Field(1, ge=1, description="torch threads of every process")
    device: Literal["cpu", "cuda"] = Field("cpu", description="device of the training; cuda: a GPU, in one process")

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs and self.steps:
            raise PydanticCustomError("length", "epochs and steps are both given; keep one of them")
        if self.engine != "auto":
            try:
                registry.find("engine", self.engine)
            except SettingError as error:
                raise PydanticCustomError("unknown_name", "engine: {why}", {"why": str(error)}) from error
        return self


class FederationSection(Section):
    """Who takes part in a round, and what the server does with the result."""

    mode: Literal["star", "gossip"] = Field(
        "star", description="star: a server and its clients; gossip: peers that merge their neighbours' models"
    )
    rounds: int = Field(100, ge=0, description="number of rounds; 0: only what a method exchanges before the first")
    cohort: Count | Share = Field(
        0.1,
        description="clients of a round in a star: a count (whole number) or a share of all (0 < share <= 1.0)",
    )
    server_optimizer: Annotated[Choice, Kind("server_optimizer", "sgd")] = Field(
        Choice(name="sgd"), validate_default=True, description="how the server applies the aggregated update"
    )
    evaluate_every: int = Field(1, ge=1, description="rounds between evaluations; the last round is always evaluated")


class GossipSection(Section):
    """Gossip: topology and mixing weights."""

    topology: Annotated[Choice, Kind("topology", "k_regular")] = Field(
        Choice(name="k_regular"), validate_default=True, description="communication graph of gossip"
    )
    mixing: Literal["uniform", "metropolis_hastings"] = Field(
        "uniform", description="weights of the neighbours' models: all alike, or by degrees so that the mean is kept"
    )
    keep: float | None = Field(
        None, ge=0, lt=1, description="share of a peer's own model under uniform mixing (0.5 where it is not given)"
    )
    protocol: Literal["push", "pull", "push_pull"] = Field(
        "push", description="on an edge i -> j: i sends to j, i asks j, or both; all the same without directions"
    )
    seed_agreement: bool = Field(False, description="all peers begin with the same model, as if agreed on a seed")
    clock: Literal["rounds", "events"] = Field(
        "rounds", description="gossip in rounds, or in virtual time, where a round is a tick (all keys in rounds are)"
    )

    @model_validator(mode="after")
    def _kept_share(self) -> Self:
        if self.keep is not None and self.mixing == "metropolis_hastings":
            raise _conflict(
                "gossip.keep is the own share under uniform mixing; metropolis_hastings gives each peer its own: leave "
                "keep out"
            )
        return self


class VirtualTimeSection(Section):
    """Gossip in virtual time, `gossip.clock = "events"`: how many ticks training and messages take."""

    training_ticks: tuple[Count, Count] = Field(
        (8, 12), strict=False, description="least and most ticks that a peer's training takes, drawn each time"
    )
    stragglers: float = Field(0.0, ge=0, lt=1, description="share of the peers whose training takes longer")
    slowdown: float = Field(4.0, ge=1, description="times as many ticks as the others that stragglers take")
    delay: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]] = Field(
        (0, 0), strict=False, description="least and most ticks that a message is on its way"
    )
    inbox: Share = Field(1.0, description="share of its neighbours that a peer waits for before it merges")
    age_decay: float = Field(
        0.0, ge=0, description="a message that was sent t ticks ago weighs (1 + t)^-age_decay; 0: all alike"
    )

    @model_validator(mode="after")
    def _spans(self) -> Self:
        _check_span("virtual_time.training_ticks", self.training_ticks)
        _check_span("virtual_time.delay", self.delay)
        return self


class FaultsSection(Section):
    """What goes wrong in gossip without anybody's intent: lost messages, and peers that leave for a while."""

    loss: float = Field(0.0, ge=0, lt=1, description="probability that a message of gossip is lost")
    churn: float = Field(0.0, ge=0, lt=1, description="probability that a peer of gossip leaves, each round")
    churn_rounds: tuple[int, int] | None = Field(
        None, strict=False, description="first and last round in which peers leave; none: all rounds"
    )
    away: int = Field(20, ge=1, description="rounds after which a peer that has left comes back")

    @model_validator(mode="after")
    def _span(self) -> Self:
        if self.churn_rounds is not None:
            _check_span("faults.churn_rounds", self.churn_rounds)
        return self


class AggregationSection(Section):
    """How the updates of a round become one."""

    rule: Annotated[Choice, Kind("rule", "mean")] = Field(
        Choice(name="mean"), validate_default=True, description="aggregation rule"
    )
    wrappers: Annotated[tuple[Annotated[Choice, Kind("rule_wrapper")], ...], Field(strict=False)] = Field(
        (), description="rule wrappers, innermost first"
    )
    f: int = Field(0, ge=0, description="Byzantine updates to withstand in each aggregated set (cohort or inbox)")
    weights: Literal["samples", "equal"] | None = Field(
        None, description="weight of an update: the client's number of samples (star), or the same for all (gossip)"
    )
    norm_limit: float = Field(1e6, gt=0, description="longest admitted update, Euclidean length")
    statistics_limit: float = Field(
        1e6, gt=0, description="largest admitted running mean, and root of a running variance, as BatchNorm has them"
    )
    slice: Literal["auto"] | Annotated[int, Field(ge=64, multiple_of=64)] = Field(
        "auto", description="columns of an update that are aggregated together"
    )


class ByzantineSection(Section):
    """Byzantine clients and their attack."""

    attack: Annotated[Choice, Kind("attack", "none")] = Field(
        Choice(name="none"), validate_default=True, description="what Byzantine clients do"
    )
    clients: Annotated[int, Field(ge=0)] | list[Annotated[int, Field(ge=0)]] = Field(
        0, description="Byzantine clients: how many (drawn from the seed) or a list of client numbers"
    )
    start: int = Field(0, ge=0, description="first round in which they attack; 0: exchanges before the first round too")
    redraw: bool = Field(False, description="draw the Byzantine clients anew every round; `clients` is a count")
    per_neighbour: bool = Field(
        False, description="gossip: attack every inbox by itself, so that each neighbour receives another model"
    )


class RuntimeSection(Section):
    """Where the experiment runs; nothing here changes its result."""

    backend: Literal["auto", "ray", "serial"] = Field(
        "auto",
        description="worker processes on Ray, or this process alone; auto: Ray where it saves time or is asked for",
    )
    workers: Literal["auto"] | Count = Field(
        "auto", description="Ray workers; auto: one a CPU core, of the cluster where one is joined"
    )
    address: str | None = Field(
        None, description="address of a running Ray cluster, or local; default: RAY_ADDRESS, else local"
    )
    data_dir: str | None = Field(
        None, description="folder of the data sets; default: environment variable FEDGEN_DATA_DIR, then ~/.cache/fedgen"
    )
    checkpoint_every: int = Field(10, ge=1, description="rounds between checkpoints; the last round always has one")
    keep_checkpoints: int = Field(3, ge=1, description="checkpoints kept, newest first")
    block_timeout_s: float = Field(600.0, gt=0, description="seconds after which a stuck block is given up")
    worker_timeout_s: float = Field(
        300.0, gt=0, description="seconds after which a run without a worker that answers fails"
    )


class TrackingSection(Section):
    """What is written about a run; nothing here changes its result."""

    report: bool = Field(True, description="write report.html and its pictures when the run ends")
    observers: Annotated[tuple[Annotated[Choice, Kind("observer")], ...], Field(strict=False)] = Field(
        (), description="classes of your own that observe every round, as 'module:Class'"
    )


class Experiment(Section):
    """One experiment: what is trained, by whom, how it is aggregated, who is Byzantine, and where it runs.

    >>> Experiment(data={"clients": 20}).data.partition.name
    'dirichlet'
    """

    experiment: ExperimentSection = Field(ExperimentSection(), validate_default=True)
    data: DataSection = Field(default_factory=DataSection)
    model: Annotated[ModelSection, Kind("model")] = Field(
        default_factory=lambda: ModelSection(name="mlp"), validate_default=True
    )
    training: TrainingSection = Field(default_factory=TrainingSection)
    federation: FederationSection = Field(default_factory=FederationSection)
    gossip: GossipSection = Field(default_factory=GossipSection)
    virtual_time: VirtualTimeSection = Field(default_factory=VirtualTimeSection)
    faults: FaultsSection = Field(default_factory=FaultsSection)
    aggregation: AggregationSection = Field(default_factory=AggregationSection)
    byzantine: ByzantineSection = Field(default_factory=ByzantineSection)
    runtime: RuntimeSection = Field(default_factory=RuntimeSection)
    tracking: TrackingSection = Field(default_factory=TrackingSection)

    def __init__(self, **tables: Any) -> None:
        try:
            super().__init__(**tables)
        except ValidationError as error:
            raise SettingError("\n".join(explain(error, Experiment))) from error

    @model_validator(mode="after")
    def _of_its_mode(self) -> Self:
        wrong = []
        for mode, paths in OF_MODE.items():
            given = [f"{path} = {_written(value)}" for path, value in self._changed(paths)]
            if given and mode not in self.modes:
                verb, them = ("is", "it") if len(given) == 1 else ("are", "them")
                wrong.append(f"{', '.join(given)} {verb} of {mode}; set {HOW[mode]} or leave {them} out")
        if wrong:
            raise _conflict("\n".join(wrong))
        return self

    def _changed(self, paths: Iterable[str]) -> Iterator[tuple[str, Any]]:
        """Those settings, with their values, that differ from their defaults."""
        for path in paths:
            table, key = path.split(".")
            section = getattr(self, table)
            value = getattr(section, key)
            if value != getattr(type(section)(), key):
                yield path, value

    @model_validator(mode="after")
    def _on_one_gpu(self) -> Self:
        if self.training.device == "cpu":
            return self
        told = f'training.device = "{self.training.device}"'
        if self.federation.mode != "star":
            raise _conflict(
                f'{told}: expected federation.mode = "star", got "{self.federation.mode}", whose peers merge on the '
                'host; set training.device = "cpu"'
            )
        asked = {"backend": self.runtime.backend == "ray", "workers": self.runtime.workers != "auto"}
        asked["address"] = self.runtime.address is not None
        for key in [key for key, given in asked.items() if given]:
            raise _conflict(
                f'{told}: expected one process, got runtime.{key} = "{getattr(self.runtime, key)}"; set '
                'runtime.backend = "serial", or training.device = "cpu" for workers on Ray'
            )
        return self

    @model_validator(mode="after")
    def _possible(self) -> Self:
        cohort = self.cohort_size
        f = self.aggregation.f
        star = self.federation.mode == "star"
        if cohort > self.data.clients:
            raise _conflict(
                f"federation.cohort = {cohort} is more than data.clients = {self.data.clients}; ask for at most "
                f"{self.data.clients}"
            )
        trusts_itself = "root_samples" in self.aggregation.rule.params
        if star and 2 * f >= cohort and not trusts_itself:
            raise _conflict(
                f"aggregation.f = {f} of a cohort of {cohort}: no rule without root samples tolerates f >= n / 2 "
                f"Byzantine clients; lower aggregation.f to at most {(cohort - 1) // 2} or raise federation.cohort"
            )
        named = self.byzantine.clients
        worst = max([*named, len(named) - 1], default=-1) if isinstance(named, list) else named - 1
        if worst >= self.data.clients:
            raise _conflict(
                f"byzantine.clients = {named} does not fit data.clients = {self.data.clients} (numbered from 0)"
            )
        if isinstance(named, list) and self.byzantine.redraw:
            raise _conflict(
                f"byzantine.redraw = true draws Byzantine clients every round, but byzantine.clients = {named} names "
                f"them; give their number, byzantine.clients = {len(named)}, or leave redraw out"
            )
        if (len(set(named)) if isinstance(named, list) else named) == self.data.clients:
            raise _conflict(
                f"byzantine.clients = {named} is every one of data.clients = {self.data.clients}: no honest client is "
                f"left to learn from; name at most {self.data.clients - 1}"
            )
        return self

    @property
    def modes(self) -> frozenset[str]:
        """What this experiment is, of the modes of `OF_MODE`."""
        if self.federation.mode == "star":
            return frozenset({"a star"})
        return frozenset({"gossip", "gossip in virtual time"} if self.gossip.clock == "events" else {"gossip"})

    @property
    def cohort_size(self) -> int:
        """Clients of a round; a share is rounded half up, to at least one; in gossip, all."""
        cohort = self.federation.cohort
        if self.federation.mode == "gossip":
            return self.data.clients
        return cohort if isinstance(cohort, int) else max(1, int(cohort * self.data.clients + 0.5))

    @property
    def identity(self) -> str:
        """SHA-256 of everything that decides the result; runs of one identity and one data set have one state hash."""
        decisive = self.model_dump(exclude={"runtime": True, "tracking": True, "experiment": {"name"}})
        decisive["federation"].pop("rounds")
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()

    @property
    def keeps_optimizer(self) -> bool:
        """training.keep_optimizer, with its default of the mode."""
        keep = self.training.keep_optimizer
        return self.federation.mode == "gossip" if keep is None else keep

    @property
    def weighs_samples(self) -> bool:
        """Whether an update weighs as many samples as its client has, with the default of the mode."""
        weights = self.aggregation.weights
        return self.federation.mode == "star" if weights is None else weights == "samples"

    def replace(self, **tables: Mapping[str, Any]) -> Experiment:
        """The experiment with some keys of some tables changed, checked again; a new model begins at its own defaults.

        A table that stays is not checked again: workers need no module that only an observer comes from.

        >>> Experiment().replace(federation={"rounds": 5}).federation.rounds
        5
        """
        merged: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        kept = {name: merged[name].model_dump() for name in merged.keys() & tables.keys()}
        if tables.get("model", {}).get("name", self.model.name) != self.model.name:
            kept["model"] = {key: getattr(self.model, key) for key in ("loss", "metrics", "init")}
        return Experiment(**merged | {table: {**kept.get(table, {}), **keys} for table, keys in tables.items()})


def _written(value: Any) -> str:
    return json.dumps(value.model_dump() if isinstance(value, Choice) else value)


def _conflict(message: str) -> PydanticCustomError:
    return PydanticCustomError("conflict", "{why}", {"why": message})


def _check_span(key: str, span: tuple[int, int]) -> None:
    if span[0] > span[1]:
        raise _conflict(f"{key} = {list(span)}: the first number must not be above the second")


def parse_experiment(text: str, source: str = "experiment", overrides: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment of a TOML text, with dotted keys replaced by `overrides`.

    Raises SettingError that names source, line, key, what was expected and what came.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{source} is not valid TOML: {error}") from error
    for path, value in (overrides or {}).items():
        _set(tables, path, value)
    try:
        return Experiment(**tables)
    except SettingError as error:
        raise SettingError(f"{source}: {error}") from error


def parse_override(text: str) -> tuple[str, Any]:
    """'a.b=c' -> ('a.b', c); the value is read as TOML, else as a string.

    >>> parse_override("training.epochs=2"), parse_override("model.name=cnn")
    (('training.epochs', 2), ('model.name', 'cnn'))
    """
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise SettingError(f"--set {text!r}: expected KEY=VALUE, such as training.epochs=2")
    try:
        return path.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return path.strip(), value


def _set(tables: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for name in parents:
        inner = tables.setdefault(name, {})
        if isinstance(inner, str):
            inner = tables[name] = {"name": inner}
        if not isinstance(inner, dict):
            raise SettingError(f"--set {path}: {name} is no table but {inner!r}")
        tables = inner
    tables[last] = value
