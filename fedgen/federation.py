"""What every process rebuilds from the experiment alone: data, shards, method, rule, attack, and who takes part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedgen import registry
from fedgen.admission import Limits
from fedgen.aggregation.delta_sum import with_delta
from fedgen.checks import check_batches, check_targets
from fedgen.choice import Choice
from fedgen.config import Experiment
from fedgen.contracts import Attack, Block, Facts, Method, Rule, Samples
from fedgen.data.holdings import Holdings
from fedgen.data.load import loaded
from fedgen.data.shards import hold_back, root_of, shards_of
from fedgen.evaluation.held_out import Evaluation, held_out
from fedgen.lazy import lazy_property
from fedgen.parameters import Layout, Tensors
from fedgen.participants import Participants
from fedgen.process import prepare_process
from fedgen.resolve import resolved
from fedgen.streams import Streams
from fedgen.topology.network import Network, network_of
from fedgen.training.learner import engine_of, learner_of, tried_model


class Federation:
    """Everything a worker holds.

    Attributes: experiment (resolved: no "auto" is left that decides a result), facts, learner, method, rule, attack,
    streams, participants; dataset and shards (sample numbers of each client), on the host; root: sample numbers that
    the server itself trains on for a rule that trusts it, as client N.

    Raises SettingError where data, model and experiment do not fit together; whether they fit the loop is `Loop.check`.
    """

    def __init__(self, experiment: Experiment) -> None:
        prepare_process(experiment.training.threads)
        self.streams = Streams(experiment.experiment.seed)
        # 1. Data, and whose they are.
        dataset = loaded(experiment)
        self.dataset = dataset.standardised() if experiment.data.standardise else dataset
        check_targets(experiment, dataset.targets)
        self.training, held_back = hold_back(experiment.data.validation, len(self.dataset.y), self.streams)
        self.shards = shards_of(experiment, self.dataset, self.training, self.streams)
        x, y = _with_padding(self.dataset.x), _with_padding(self.dataset.y)
        self.dataset = replace(self.dataset, x=x[:-1], y=y[:-1])  # the same memory, not a second copy
        # 2. The model, and how it is trained.
        model = tried_model(experiment, self.dataset, self.streams)
        self.engine, self.engine_reason = engine_of(experiment, model, self.dataset)
        self.learner = learner_of(experiment, model, self.engine)
        self._x = x.to(self.learner.device)
        self._y = y.to(self.learner.device)
        self.experiment = resolved(experiment, model.layout.size, self.engine)
        # 3. The parts, and whether they fit.
        self.facts = self._facts(experiment)
        self.method = self._method(experiment)
        self.rule = self._rule(experiment)
        self.root, self.validation = root_of(experiment, self.rule.root_samples, held_back, self.streams)
        held = self.shards if self.root is None else [*self.shards, self.root]
        self.counts = torch.tensor([len(samples) for samples in held])
        check_batches(experiment, model, self.counts.tolist(), self.root)
        self._index = pad_sequence(held, batch_first=True, padding_value=len(self.dataset.y))
        attack = experiment.byzantine.attack
        self.attack: Attack = registry.build("attack", attack.name, attack.params, facts=self.facts)
        # 4. Who takes part.
        self.participants = Participants(self.experiment, self.counts[: len(self.shards)], self.streams)

    def _facts(self, experiment: Experiment) -> Facts:
        samples = torch.tensor([float(len(shard)) for shard in self.shards], dtype=torch.float64)
        return Facts(
            clients=experiment.data.clients,
            input_shape=self.dataset.input_shape,
            targets=self.dataset.targets,
            streams=self.streams,
            weights=samples if _weighs_samples(experiment) else torch.ones_like(samples),
        )

    def _method(self, experiment: Experiment) -> Method:
        training = experiment.training
        supplied = {"facts": self.facts, "learner": self.learner}
        method: Method = _wrapped("method", "wrapper", training.method, training.wrappers, supplied)
        return method

    def _rule(self, experiment: Experiment) -> Rule:
        aggregation = experiment.aggregation
        supplied = {"facts": self.facts}
        rule: Rule = _wrapped("rule", "rule_wrapper", aggregation.rule, aggregation.wrappers, supplied)
        return rule

    @lazy_property
    def network(self) -> Network:
        """Communication graph of gossip; used by the coordinator only."""
        return network_of(self.experiment)

    @property
    def byzantine(self) -> Tensor:
        """bool[N]: see `Participants`."""
        return self.participants.byzantine

    @property
    def stragglers(self) -> Tensor:
        """bool[N]: see `Participants`."""
        return self.participants.stragglers

    def cohort(self, round: int, everyone: bool, row_bytes: int = 0) -> list[Tensor]:
        """The round's clients in blocks; see `Participants`."""
        return self.participants.cohort(round, everyone, row_bytes)

    def byzantine_among(self, clients: Tensor, round: int) -> Tensor:
        """bool[n]: which of these clients are Byzantine in this round."""
        return self.participants.byzantine_among(clients, round)

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
        model = self.learner.model
        layout = self.method.layout
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

    def attacks_inboxes(self, phase: str) -> bool:
        """Whether Byzantine peers send each neighbour another model; setup exchanges are flooded and never differ."""
        return self.experiment.byzantine.per_neighbour and phase == "train"

    def block(self, clients: Tensor, start: Tensor, client_state: Tensors, round: int) -> Block:
        """The data of these clients on the device, zero padded; start is [d] for all or [n, d]."""
        counts = self.counts.index_select(0, clients)
        device = self.learner.device
        index = self._index.index_select(0, clients)[:, : int(counts.max())].to(device)
        state = {name: value.to(device) for name, value in client_state.items()}
        start = start.to(device).expand(len(clients), -1)
        return Block(clients, start, Samples(self._x, self._y, index), counts, state, round, self.streams)

    @lazy_property
    def evaluations(self) -> list[Evaluation]:
        """The sets of samples on which a state is evaluated, on the device; see `held_out`."""
        sets = held_out(self.dataset, self.validation, self.learner.model.metrics, self.attack)
        return [each.on(self.learner.device) for each in sets]

    @property
    def holdings(self) -> Holdings:
        """Who holds what."""
        return Holdings.of(self.dataset, self.shards)


def _weighs_samples(experiment: Experiment) -> bool:
    """Whether clients count by their samples in the mean of all; rules but the mean do not weigh by samples."""
    aggregation = experiment.aggregation
    rule = registry.find("rule", aggregation.rule.name)
    linear = not aggregation.wrappers and isinstance(rule, type) and issubclass(rule, Rule) and rule.linear
    return experiment.weighs_samples and linear


def _with_padding(samples: Tensor) -> Tensor:
    """The samples and one of zeros, which the padding of a block points to."""
    return torch.cat([samples, samples.new_zeros(1, *samples.shape[1:])])


def _wrapped(
    kind: str, wrapper_kind: str, choice: Choice, wrappers: tuple[Choice, ...], supplied: Mapping[str, object]
) -> Any:
    """The chosen part inside its wrappers, the first of them innermost."""
    part = registry.build(kind, choice.name, choice.params, **supplied)
    for wrapper in wrappers:
        part = registry.build(wrapper_kind, wrapper.name, wrapper.params, **supplied, inner=part)
    return part
