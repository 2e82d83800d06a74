"""What every process rebuilds from the experiment alone: data, shards, method, rule, attack, and who takes part."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedgen import registry
from fedgen.admission import Limits
from fedgen.aggregation.delta_sum import with_delta
from fedgen.choice import Choice
from fedgen.config import Experiment
from fedgen.contracts import Attack, Block, Facts, Method, Rule, Samples
from fedgen.data.dataset import Dataset, Source
from fedgen.data.divide import divide
from fedgen.data.folder import data_folder
from fedgen.data.holdings import Holdings
from fedgen.errors import SettingError
from fedgen.evaluation.held_out import Evaluation, held_out
from fedgen.models.fitted import fitted
from fedgen.own_code import explained
from fedgen.parameters import Layout, Tensors
from fedgen.process import prepare_process
from fedgen.resolve import BLOCK_BYTES_MOST, resolved
from fedgen.streams import Streams
from fedgen.takes import check_takes
from fedgen.topology.network import Network, network_of
from fedgen.training.choose import TRIED, choose_engine
from fedgen.training.trainer import Trainer
from fedgen.training.trial import measured

LONGEST_TRIED = 128
"""Samples up to which it is tried before the run whether a module minds the length of its batches."""


class Federation:
    """Everything a worker holds.

    Attributes: experiment (resolved: no "auto" is left that decides a result), method, rule, attack, streams, shards
    (sample numbers of each client), byzantine bool[N]: who lies in round 0, and in all others unless liars are redrawn;
    root: sample numbers that the server itself trains on for a rule that trusts it, as client N.

    Raises SettingError where data, model and experiment do not fit together; whether they fit the loop is `Loop.check`.
    """

    def __init__(self, experiment: Experiment) -> None:
        prepare_process(experiment.training.threads)
        self.streams = Streams(experiment.experiment.seed)
        source: Source = registry.build("dataset", **_call(experiment.data.dataset))
        source.check_partition(experiment.data.partition.name, experiment.data.partition.params)
        dataset = _loaded(source, experiment)
        self.dataset = dataset.standardised() if experiment.data.standardise else dataset
        _check_targets(experiment, dataset)
        self.training, self.validation = self._hold_back(experiment.data.validation)
        self.shards = self._divide(experiment)
        self._everyone = torch.arange(len(self.shards))
        self._x, self._y = _with_padding(self.dataset.x), _with_padding(self.dataset.y)
        self.dataset = replace(self.dataset, x=self._x[:-1], y=self._y[:-1])  # the same memory, not a second copy
        self.facts = self._facts(experiment)
        self.experiment = resolved(experiment, self.facts.model.layout.size, self.engine)
        self.method: Method = _wrapped(
            "method", "wrapper", experiment.training.method, experiment.training.wrappers, self
        )
        aggregation = experiment.aggregation
        self.rule: Rule = _wrapped("rule", "rule_wrapper", aggregation.rule, aggregation.wrappers, self)
        self.root, self.validation = self._root(experiment)
        held = self.shards if self.root is None else [*self.shards, self.root]
        self.counts = torch.tensor([len(samples) for samples in held])
        self._check_batches(experiment)
        self._index = pad_sequence(held, batch_first=True, padding_value=len(self.dataset.y))
        self.attack: Attack = registry.build("attack", **_call(experiment.byzantine.attack), facts=self.facts)
        self.byzantine = self._liars(0)
        self._redrawn = 0, self.byzantine

    def _hold_back(self, share: float) -> tuple[Tensor, Tensor]:
        """Sample numbers for training and for validation."""
        samples = torch.arange(len(self.dataset.y))
        keys = self.streams.words("validation", 0, samples, 1)[:, 0]
        held = int(share * len(samples) + 0.5)
        order = torch.from_numpy(keys.argsort(kind="stable"))
        return order[held:].sort().values, order[:held].sort().values

    def _divide(self, experiment: Experiment) -> list[Tensor]:
        clients, samples = experiment.data.clients, len(self.training)
        if clients > samples:
            raise SettingError(
                f"data.clients = {clients} is more than the {samples} training samples of {self.dataset.name!r}; lower "
                "data.clients or data.validation"
            )
        generator = np.random.default_rng(self.streams.seed_for("partition"))
        partition = registry.build("partition", **_call(experiment.data.partition))
        return divide(partition, experiment.data.partition.name, self.dataset, self.training, clients, generator)

    def _root(self, experiment: Experiment) -> tuple[Tensor | None, Tensor]:
        """Of the samples held back, those that the server trains on, None where the rule asks for none; the others."""
        wanted, held = self.rule.root_samples, self.validation
        if not wanted:
            return None, held
        if wanted > len(held):
            raise SettingError(
                f"aggregation.rule = {experiment.aggregation.rule.name!r} learns from root_samples = {wanted} samples "
                f"at the server, and data.validation = {experiment.data.validation} holds back {len(held)}; raise "
                "data.validation or lower root_samples"
            )
        keys = self.streams.words("root", 0, held, 1)[:, 0]
        order = torch.from_numpy(keys.argsort(kind="stable"))
        return held[order[:wanted]].sort().values, held[order[wanted:]].sort().values

    def _facts(self, experiment: Experiment) -> Facts:
        training = experiment.training
        tried = max(TRIED, min(training.batch_size + 1, LONGEST_TRIED))
        x, y = self.dataset.x[:tried], self.dataset.y[:tried]
        model = fitted(experiment.model, self.dataset, self.streams.seed_for("initial_model", 0))
        model = measured(model, x[:TRIED], y[:TRIED])
        optimizer = registry.build("optimizer", **_call(training.optimizer))
        self.engine, self.engine_reason = choose_engine(training.engine, model, x, y)
        return Facts(
            clients=experiment.data.clients,
            input_shape=self.dataset.input_shape,
            classes=len(self.dataset.classes),
            model=model,
            trainer=Trainer(
                model=model,
                engine=registry.build("engine", self.engine, {}),
                optimizer=optimizer,
                batch_size=training.batch_size,
                epochs=None if training.steps else training.epochs or 1,
                steps=training.steps,
                keep_optimizer=experiment.keeps_optimizer,
                schedule=registry.build("schedule", **_call(training.schedule)),
                proximal=training.proximal,
                clip_norm=training.clip_norm,
            ),
            server_optimizer=registry.build("server_optimizer", **_call(experiment.federation.server_optimizer)),
            streams=self.streams,
            weights=self._weights(experiment),
        )

    def _weights(self, experiment: Experiment) -> Tensor:
        """float64[N]: what each client counts in the mean of all; rules but the mean do not weigh by samples."""
        aggregation = experiment.aggregation
        rule = registry.find("rule", aggregation.rule.name)
        linear = not aggregation.wrappers and isinstance(rule, type) and issubclass(rule, Rule) and rule.linear
        samples = torch.tensor([float(len(shard)) for shard in self.shards], dtype=torch.float64)
        return samples if experiment.weighs_samples and linear else torch.ones_like(samples)

    def _check_batches(self, experiment: Experiment) -> None:
        """Raises SettingError where a module that normalises over its batch would get a single sample."""
        smallest = self.facts.model.smallest_batch
        name = type(self.facts.model.module).__name__
        if experiment.training.batch_size < smallest:
            raise SettingError(
                f"training.batch_size = {experiment.training.batch_size}: {name} cannot be trained on a single sample, "
                f"as it normalises over its batch; give at least {smallest}"
            )
        if self.root is not None and len(self.root) < smallest:
            raise SettingError(
                f"aggregation.rule.root_samples = {len(self.root)}: {name} cannot be trained on a single sample, as it "
                f"normalises over its batch; give at least {smallest}"
            )
        short = (self.counts < smallest).nonzero().flatten().tolist()
        if short:
            named = ", ".join(map(str, short[:10]))
            raise SettingError(
                f"model.name {name} cannot be trained on a single sample, as it normalises over its batch, and "
                f"{len(short)} of the clients hold no more: {named}{', ...' if len(short) > 10 else ''}; lower "
                "data.clients, choose another data.partition, or normalise with GroupNorm"
            )

    def _liars(self, round: int) -> Tensor:
        """bool[N]: those listed, or drawn in that round."""
        chosen = self.experiment.byzantine.clients
        mask = torch.zeros(self.experiment.data.clients, dtype=torch.bool)
        mask[chosen if isinstance(chosen, list) else self._drawn("byzantine", round, chosen)] = True
        return mask

    def _drawn(self, purpose: str, round: int, count: int) -> Tensor:
        """`count` different clients, in the order of their draw."""
        keys = self.streams.words(purpose, round, self._everyone, 1)[:, 0]
        return torch.from_numpy(keys.argsort(kind="stable")[:count])

    @cached_property
    def stragglers(self) -> Tensor:
        """bool[N]: whose training takes longer, in gossip in virtual time."""
        clients = self.experiment.data.clients
        slow = torch.zeros(clients, dtype=torch.bool)
        slow[self._drawn("straggler", 0, round(self.experiment.virtual_time.stragglers * clients))] = True
        return slow

    @cached_property
    def network(self) -> Network:
        """Who hears whom in gossip; only the coordinator asks."""
        return network_of(self.experiment)

    def cohort(self, round: int, everyone: bool, row_bytes: int = 0) -> list[Tensor]:
        """The round's clients in blocks, most samples first: alike in length, and heavy blocks start early.

        row_bytes: of a client's row where it is no model, to keep blocks of large ones small.
        """
        chosen, block = self._everyone.numpy(), self.experiment.training.block
        assert isinstance(block, int)
        if row_bytes:
            block = max(1, min(block, BLOCK_BYTES_MOST // row_bytes))
        if not everyone:
            chosen = np.sort(self._drawn("cohort", round, self.experiment.cohort_size).numpy())
        heaviest_first = np.argsort(-self.counts.numpy()[chosen], kind="stable")
        return list(torch.from_numpy(chosen[heaviest_first]).split(block))

    @property
    def server(self) -> Tensor:
        """[N]: the number under which the server itself trains, on its root samples."""
        return torch.tensor([len(self.shards)])

    @property
    def common_state(self) -> frozenset[str]:
        """Names of state tensors that are the same at every peer of a gossip, which keeps one of each."""
        return self.method.common

    @property
    def mixes(self) -> bool:
        """Whether the rule merges the inboxes of many peers at once."""
        return self.rule.batched() is not None

    def sent_layout(self, expects: Layout) -> Layout:
        """Of what peers of a gossip send: what the method expects and, for some rules, what training has changed."""
        return with_delta(expects) if self.rule.sends_change else expects

    def exported(self, row: Tensor) -> Tensors:
        """{name: tensor} of a model's row[d], as `load_state_dict` of its module takes it."""
        model, layout = self.facts.model, self.method.layout
        return model.state_dict(row) if layout == model.layout else layout.view(row)

    @property
    def slice_width(self) -> int:
        """Columns of an update that are aggregated together."""
        width = self.experiment.aggregation.slice
        assert isinstance(width, int)
        return width

    def limits(self, phase: str) -> Limits:
        """Of admitted rows: only differences of models, in phase "train", are limited."""
        aggregation = self.experiment.aggregation
        return Limits(aggregation.norm_limit if phase == "train" else inf, aggregation.statistics_limit)

    def lies_to_each(self, phase: str) -> bool:
        """Whether every neighbour of a liar is told something else: of models, as what is flooded is one for all."""
        return self.experiment.byzantine.per_neighbour and phase == "train"

    def liars(self, clients: Tensor, round: int) -> Tensor:
        """bool[n]: which of these clients lie in this round."""
        section = self.experiment.byzantine
        if section.start > 0 and round < section.start:
            return torch.zeros(len(clients), dtype=torch.bool)
        if section.redraw and round != self._redrawn[0]:
            self._redrawn = round, self._liars(round)
        return (self._redrawn[1] if section.redraw else self.byzantine).index_select(0, clients)

    def block(self, clients: Tensor, start: Tensor, client_state: Tensors, round: int) -> Block:
        """The data of these clients, zero padded; start is [d] for all or [n, d]."""
        counts = self.counts.index_select(0, clients)
        index = self._index.index_select(0, clients)[:, : int(counts.max())]
        samples = Samples(self._x, self._y, index)
        return Block(clients, start.expand(len(clients), -1), samples, counts, client_state, round, self.streams)

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """The sets of samples on which a state is evaluated; see `held_out`."""
        return held_out(self.dataset, self.validation, self.facts.model.metrics, self.attack)

    @property
    def holdings(self) -> Holdings:
        """Who holds what."""
        return Holdings.of(self.dataset, self.shards)


def _check_targets(experiment: Experiment, dataset: Dataset) -> None:
    """Raises SettingError where a part is not made for the kind of targets that the data have."""
    chosen = [
        ("data.partition", "partition", experiment.data.partition),
        ("training.method", "method", experiment.training.method),
        *(("training.wrappers", "wrapper", wrapper) for wrapper in experiment.training.wrappers),
        ("byzantine.attack", "attack", experiment.byzantine.attack),
    ]
    for setting, kind, choice in chosen:
        check_takes(setting, kind, choice.name, registry.find(kind, choice.name), dataset.targets)


def _loaded(source: Source, experiment: Experiment) -> Dataset:
    try:
        dataset = source.load(data_folder(experiment.runtime.data_dir))
    except SettingError:
        raise
    except Exception as error:
        name = experiment.data.dataset.name
        if ":" not in name:
            raise
        raise SettingError(f"data.dataset {name!r} could not be loaded ({explained(error)})") from error
    if not isinstance(dataset, Dataset):
        raise SettingError(
            f"data.dataset {experiment.data.dataset.name!r}: load must return a fedgen.data.dataset.Dataset; it "
            f"returned {type(dataset).__name__}"
        )
    return dataset


def _with_padding(samples: Tensor) -> Tensor:
    """The samples and one of zeros, which the padding of a block points to."""
    return torch.cat([samples, samples.new_zeros(1, *samples.shape[1:])])


def _call(choice: Choice) -> dict[str, Any]:
    return {"name": choice.name, "params": choice.params}


def _wrapped(kind: str, wrapper_kind: str, choice: Choice, wrappers: tuple[Choice, ...], of: Federation) -> Any:
    """The chosen part inside its wrappers, the first of them innermost."""
    part = registry.build(kind, **_call(choice), facts=of.facts)
    for wrapper in wrappers:
        part = registry.build(wrapper_kind, **_call(wrapper), facts=of.facts, inner=part)
    return part
