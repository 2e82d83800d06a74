"""GGEUR: participants add samples drawn from the geometry of all embeddings to their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedgen.contracts import Block, Broadcast, Facts, Inbox, Occasion, Samples, Update
from fedgen.data.targets import TargetKind
from fedgen.device import on_host
from fedgen.errors import SettingError
from fedgen.exhibits import Exhibit
from fedgen.geometry.changes import changes_of
from fedgen.geometry.heads import Head, lda, linear_names, nearest_mean, ridge, row_of
from fedgen.geometry.sampler import Augmented, Centre, augment
from fedgen.geometry.shapes import Geometry, Scale, geometry_of
from fedgen.geometry.statistics import Statistics
from fedgen.geometry.uploads import Sums, Upload, dense_bytes, size_bytes, upload_of
from fedgen.lazy import lazy_property
from fedgen.methods.ggeur_exhibits import MOST_CLIENTS, Uploads, exhibits_of
from fedgen.methods.ggeur_statistics import PHASE, StatisticsExchange, places_of, taken
from fedgen.methods.recall import Recall
from fedgen.methods.wrapper import MethodWrapper
from fedgen.parameters import Tensors
from fedgen.privacy.noisy_sums import NoisySums
from fedgen.registry import register

COUNTS, MEANS, ROOTS = "ggeur.counts", "ggeur.means", "ggeur.roots"
REMAINDERS, PROTOTYPES, TRUSTED = "ggeur.remainders", "ggeur.prototypes", "ggeur.trusted"

Number = Annotated[int, Field(ge=0)]

MODES: dict[str, tuple[Centre, Scale]] = {
    "centred": ("mean", "standard_deviation"),
    "code": ("sample", "standard_deviation"),
    "paper": ("sample", "eigenvalue"),
}
"""Centre of new samples, and their spread by the eigenvalues of a covariance."""


@register("wrapper", "ggeur")
@dataclass(frozen=True, kw_only=True)
class Ggeur(MethodWrapper):
    """Pools the statistics of all embeddings once, then trains on real and generated ones (GGEUR).

    Before round 0 every participant sends count, mean and covariance of each class of which it holds `minimum_count`
    samples.  With the pooled mean_i and Sigma_i = sum_m lambda_m xi_m xi_m^T every class is brought to `target`:

    centred: mean_i + sum_m eps_m sqrt(lambda_m) xi_m, also of classes that the participant lacks, eps_m ~ N(0, 1)
    code: X + sum_m eps_m sqrt(lambda_m) xi_m, X its own samples in turn;  paper: X + sum_m eps_m lambda_m xi_m

    With `prototypes` so many samples more lie around the mean of the class at every other participant, each taken for a
    domain of its own.  The inner method trains on what results, under any rule, server optimiser and attack; an attack
    acts on the row of statistics too.  Inputs are flattened: give it embeddings.

    With `epsilon` participants add Gaussian noise to their sums, so that the pool is (epsilon, delta)-differentially
    private for every sample; classes that few hold are then sent too.

    Raises SettingError where `start` needs a linear model and it is none, or `target` fits no classes.
    Source: Y. Ma, W. Dai, W. Huang, J. Chen, arXiv 2503.06457 (2025), equations 1, 4, 5 and algorithms 1 and 2.
    "code" follows the standard deviations of its implementation; centred samples as in M. Luo et al., CCVR, arXiv
    2106.05001 (2021), but drawn by the participants.
    """

    facts: Facts
    mode: Annotated[
        Literal["centred", "code", "paper"],
        Field(description="around pooled means; around own samples; the same by eigenvalues"),
    ] = "centred"
    target: Annotated[
        Number | Annotated[tuple[Number, ...], Field(strict=False)],
        Field(description="samples that every class is brought to, or a list of one number a class"),
    ] = 100
    prototypes: Annotated[int, Field(ge=0, description="samples around each other participant's mean of a class")] = 0
    minimum_count: Annotated[
        int,
        Field(
            ge=1,
            description="fewest samples of a class whose statistics a participant sends; 1 and 2 reveal embeddings",
        ),
    ] = 8
    upload: Annotated[
        Literal["packed", "low_rank", "second_moment"],
        Field(description="covariances whole, by their first axes, or one for all classes"),
    ] = "packed"
    precision: Annotated[
        Literal["float64", "float32", "float16"], Field(description="numbers of the uploaded statistics")
    ] = "float64"
    rank: Annotated[int, Field(ge=1, description="axes of a class that low_rank keeps")] = 32
    pooling: Annotated[
        Literal["plain", "bounded"],
        Field(description="bounded: weight and length of each participant's embeddings are limited"),
    ] = "plain"
    bound: Annotated[
        float,
        Field(gt=1, description="bounded: longest means and most samples, in multiples of the participants' median"),
    ] = 3.0
    start: Annotated[
        Literal["none", "ridge", "lda", "nearest_mean"],
        Field(description="head in closed form that training begins from; any but none needs a linear model"),
    ] = "ridge"
    penalty: Annotated[float, Field(gt=0, description="ridge: in units of the mean second moment")] = 0.03
    balanced: Annotated[bool, Field(description="ridge: classes weigh the same, whatever their numbers")] = True
    sharpness: Annotated[float, Field(gt=0, description="ridge: factor of its scores where training begins")] = 30.0
    shrinkage: Annotated[float, Field(ge=0, description="lda: in units of the mean variance")] = 0.3
    normalise: Annotated[bool, Field(description="real, generated and test embeddings have length one")] = False
    epsilon: Annotated[
        float | None, Field(gt=0, description="privacy of every sample in the pooled statistics, by Gaussian noise")
    ] = None
    delta: Annotated[float, Field(gt=0, lt=1, description="chance that epsilon does not hold")] = 1e-5
    clip: Annotated[
        float | None,
        Field(gt=0, description="with epsilon: longest embedding in the statistics, others are shortened"),
    ] = None
    takes: ClassVar[tuple[TargetKind, ...]] = ("classes",)
    recall: Recall = field(default_factory=Recall, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        classes = self.facts.targets.classes
        if not isinstance(self.target, int) and len(self.target) != classes:
            raise SettingError(
                f"training.wrappers 'ggeur': target has {len(self.target)} numbers for {classes} classes; "
                "give one number, or one for every class"
            )
        self._check_privacy()
        if self.start != "none" and linear_names(self.layout, classes, self.features) is None:
            raise SettingError(
                f"training.wrappers 'ggeur': start = {self.start!r} is a linear head of {self.features} features, and "
                'the model is none; set model.name = "logistic" or start = "none"'
            )

    def _check_privacy(self) -> None:
        if self.epsilon is None:
            return
        whole = self.precision == "float64" and self.upload != "low_rank"
        if self.clip is None or not whole or self.pooling != "plain" or self.prototypes:
            raise SettingError(
                f"training.wrappers 'ggeur': epsilon = {self.epsilon} is of sums of samples no longer than clip; set "
                'clip, and leave upload "packed" or "second_moment", precision "float64", pooling "plain", prototypes 0'
            )

    # What is exchanged.

    @property
    def modes(self) -> frozenset[str]:
        """Noise protects only the sum, and in gossip peers see single rows."""
        return self.inner.modes if self.epsilon is None else self.inner.modes - {"gossip"}

    @property
    def setup_rounds(self) -> int:
        return self.inner.setup_rounds + 1

    @property
    def features(self) -> int:
        return prod(self.facts.input_shape)

    @lazy_property
    def encoding(self) -> Upload:
        """How statistics become a row."""
        rank = min(self.rank, self.features)
        return upload_of(self.upload, self.facts.targets.classes, self.features, getattr(torch, self.precision), rank)

    @lazy_property
    def exchange(self) -> StatisticsExchange:
        """The exchange before round 0."""
        noise = None
        if self.epsilon is not None and self.clip is not None and isinstance(self.encoding, Sums):
            noise = NoisySums(self.encoding, self.epsilon, self.delta, self.clip, self.facts.clients)
        return StatisticsExchange(
            encoding=self.encoding,
            classes=self.facts.targets.classes,
            minimum_count=self.minimum_count,
            bound=self.bound if self.pooling == "bounded" else None,
            apart=self.prototypes > 0,
            noise=noise,
        )

    @property
    def _geometry(self) -> tuple[str, ...]:
        """Names of what participants need of the state."""
        return (COUNTS, MEANS, ROOTS, REMAINDERS, *([PROTOTYPES] if self.prototypes else []))

    @property
    def common(self) -> frozenset[str]:
        return super().common | {*self._geometry, TRUSTED}

    def initial_state(self, replica: int) -> Tensors:
        classes = self.facts.targets.classes
        features = self.features
        blocks = 1 if self.upload == "second_moment" else classes
        rows = min(self.rank, features) if self.upload == "low_rank" else features
        state = {
            COUNTS: torch.zeros(classes),
            MEANS: torch.zeros(classes, features),
            ROOTS: torch.zeros(blocks, rows, features),
            REMAINDERS: torch.zeros(blocks),
            TRUSTED: torch.zeros(self.facts.clients),
        }
        if self.prototypes:
            state[PROTOTYPES] = torch.full((self.facts.clients, classes, features), torch.nan)
        inner = self.inner.initial_state(replica)
        return {**inner, **{name: value.to(inner["model"].device) for name, value in state.items()}}

    def broadcast(self, state: Tensors, round: int) -> Broadcast:
        if round == -self.setup_rounds:
            return self.exchange.broadcast(state["model"])
        inner = self.inner.broadcast(state, round)
        if round < 0:
            return inner
        held = {name: state[name] for name in self._geometry}
        return replace(inner, tensors={**inner.tensors, **held}, lasting=inner.lasting | held.keys())

    # The participant's half.

    def client_update(self, broadcast: Broadcast, block: Block) -> Update:
        if broadcast.phase == PHASE:
            held = [taken(block.samples, places) for places in places_of(block)]
            rows = self.exchange.rows([(self._prepared(x), y) for x, y in held], block)
            return Update(rows.to(block.start.device), torch.ones(len(rows), dtype=torch.float64))
        if broadcast.phase != "train":
            return self.inner.client_update(broadcast, block)
        return self.inner.client_update(broadcast, self.augmented(broadcast.tensors, block))

    def augmented(self, tensors: Tensors, block: Block) -> Block:
        """The block with generated samples behind the real ones."""
        parts = self.augmentations(tensors, block)
        x = pad_sequence([part.x.view(-1, *self.facts.input_shape) for part in parts], batch_first=True)
        y = pad_sequence([part.y for part in parts], batch_first=True)
        samples = Samples.of(x.to(block.start.device), y.to(block.start.device))
        return replace(block, samples=samples, counts=torch.tensor([len(part.y) for part in parts]))

    def augmentations(self, tensors: Tensors, block: Block) -> list[Augmented]:
        """The real and generated samples of every participant of the block, on the host, where they are drawn."""
        samples = block.samples
        given = [value for name, value in tensors.items() if name.startswith("ggeur.")]
        tensors = {name: on_host(tensors[name]) for name in self._geometry}
        made = []
        for client, places in zip(block.clients.tolist(), places_of(block), strict=True):
            make = partial(self._augment, client, samples, places, tensors)
            made.append(self.recall.get(client, (samples.pool_x, samples.pool_y, *given), places, make))
        return made

    def _augment(self, client: int, samples: Samples, places: Tensor, tensors: Tensors) -> Augmented:
        x, y = taken(samples, places)
        others = None
        if self.prototypes:
            others = tensors[PROTOTYPES][torch.arange(self.facts.clients) != client]
        made = augment(
            self._prepared(x),
            y,
            Geometry(tensors[COUNTS], tensors[MEANS], tensors[ROOTS], tensors[REMAINDERS]),
            target=self.target,
            centre=MODES[self.mode][0],
            prototypes=others,
            per_prototype=self.prototypes,
            seed=self.facts.streams.seed_for("ggeur", client),
        )
        self._shorten(made.x[made.real :])
        return made

    def _prepared(self, x: Tensor) -> Tensor:
        """[s, d]: flat embeddings of their own memory, of length one where that is asked for."""
        return self._shorten(x.flatten(1).clone())

    def _shorten(self, x: Tensor) -> Tensor:
        return x.div_(x.norm(dim=1, keepdim=True).clamp_min(1e-12)) if self.normalise else x

    # The server's half.

    def server_update(self, state: Tensors, inbox: Inbox, round: int) -> Tensors:
        if round != -self.setup_rounds:
            return self.inner.server_update(state, inbox, round)
        pool = self.exchange.pool(inbox)
        _, scale = MODES[self.mode]
        rows = state[ROOTS].shape[-2]
        geometry = geometry_of(
            pool.statistics,
            scale,
            rank=rows if self.upload == "low_rank" else None,
            size=rows,
            definite=self.precision == "float64" and self.exchange.noise is None,
        )
        made = {
            COUNTS: geometry.counts,
            MEANS: geometry.means,
            ROOTS: geometry.roots,
            REMAINDERS: geometry.remainders,
            TRUSTED: torch.zeros(self.facts.clients).index_fill(0, pool.clients, 1.0),
        }
        if self.prototypes:
            made[PROTOTYPES] = torch.full(state[PROTOTYPES].shape, torch.nan).index_copy(0, pool.clients, pool.means)
        if self.start != "none":
            made["model"] = row_of(self.head(pool.statistics), self.layout)
        device = state["model"].device
        return {**state, **{name: value.to(device).expand_as(state[name]).contiguous() for name, value in made.items()}}

    def head(self, statistics: Statistics) -> Head:
        """The head in closed form that `start` names; noise is outweighed by as much scatter in every direction."""
        if self.exchange.noise is not None:
            statistics = statistics.with_ridge(2 * self.exchange.noise.spectral_norm)
        if self.start == "lda":
            return lda(statistics, self.shrinkage)
        if self.start == "nearest_mean":
            return nearest_mean(statistics)
        # Scores of ridge lie around 0 .. 1; as logarithms of odds those of one sample would say next to nothing.
        return ridge(statistics, self.penalty, self.balanced).scaled(self.sharpness)

    def exhibits(self, state: Tensors, occasion: Occasion) -> Sequence[Exhibit]:
        """Once, when the statistics are pooled: nothing of it changes later."""
        inner = super().exhibits(state, occasion)
        if occasion.round != -1:
            return inner
        uploads = Uploads(
            clients=self.facts.clients,
            size_bytes=size_bytes(self.encoding),
            dense_bytes=dense_bytes(self.facts.targets.classes, self.features),
            left_out=(state[TRUSTED] == 0).nonzero().flatten().tolist(),
            privacy=None if self.epsilon is None else (self.epsilon, self.delta),
        )
        changes = changes_of(self._before_and_after(state, occasion), self.facts.targets.classes)
        return [*inner, *exhibits_of(changes, uploads, occasion)]

    def _before_and_after(self, state: Tensors, occasion: Occasion) -> Iterator[tuple[Augmented, Tensor | None]]:
        """The samples of the first clients, one client after another, with the domains of the real ones."""
        tensors = self.broadcast(state, 0).tensors
        domain = occasion.dataset.domain
        for client in range(min(self.facts.clients, MOST_CLIENTS)):
            block = occasion.block(torch.tensor([client]))
            (places,) = places_of(block)
            (augmented,) = self.augmentations(tensors, block)
            yield augmented, None if domain is None else domain[on_host(places)]

    def evaluate(self, state: Tensors, x: Tensor, y: Tensor) -> Tensors:
        if self.normalise:
            x = self._prepared(x).view_as(x)
        return self.inner.evaluate(state, x, y)
