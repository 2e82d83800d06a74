"""Twenty small modules: every engine agrees with the reference on each of them, or refuses it by name."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fedgen import registry
from fedgen.contracts import Block, Samples
from fedgen.errors import SettingError
from fedgen.evaluation.losses import cross_entropy
from fedgen.models.model import Model
from fedgen.streams import Streams
from fedgen.training.batches import draw_batches
from fedgen.training.choose import choose_engine
from fedgen.training.optimizers import Sgd
from fedgen.training.trainer import Task
from fedgen.training.trial import measured, smallest_batch

FEATURES, TOKENS, LENGTH, CLASSES = 6, 11, 5, 3


class Lambda(nn.Module):
    """A function of a module's parts and its input."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            if isinstance(part, nn.Parameter | nn.Module):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def head(width: int = 8) -> nn.Linear:
    return nn.Linear(width, CLASSES)


class Counting(nn.Module):
    """An integer buffer that training raises, and that changes what the module computes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return self.layer(x) / (1 + 0.1 * self.seen)


class Replacing(nn.Module):
    """A buffer that a new tensor takes the place of."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.register_buffer("scale", torch.ones(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.scale = self.scale * 0.9
        return self.layer(x) * self.scale


class Attention(nn.Module):
    """Attention over the tokens of a sample, with a causal mask of -inf and tied weights of two embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 8)
        self.query, self.key = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.again = nn.Embedding(TOKENS, 8)
        self.again.weight = self.embedding.weight
        self.out = head()
        self.register_buffer("mask", torch.full((LENGTH, LENGTH), -math.inf).triu(1))
        self.register_buffer("place", torch.arange(LENGTH), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.place[:, None] / LENGTH
        scores = self.query(h) @ self.key(h).mT / 8**0.5 + self.mask
        return self.out((scores.softmax(-1) @ self.again(x)).mean(1))


def counted(module: Lambda, x: Tensor) -> Tensor:
    if module.training:
        module.calls = getattr(module, "calls", 0) + 1
    return module.out(x) / (1 + 0.1 * getattr(module, "calls", 0))


def cached(module: Lambda, x: Tensor) -> Tensor:
    module.last = module.out(x)
    return module.last


class Drawing(nn.Module):
    """Noise from a generator that the module keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.out, self.generator = head(FEATURES), torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + torch.randn(x.shape, generator=self.generator))


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = head(FEATURES)
        self.out.weight.register_hook(lambda gradient: 3 * gradient)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x)


class Branching(nn.Module):
    """A branch on a number, and a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(FEATURES, FEATURES), head(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.layer(x).tanh() if float(x.detach().sum()) > -1e9 else x
        return self.out(x)


class Recurrent(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=2 if dropout else 1, batch_first=True, dropout=dropout)
        self.out = head()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(self.embedding(x))[0][:, -1])


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fixed, self.out = nn.Linear(FEATURES, 8), head()
        self.fixed.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.fixed(x).relu())


def twice() -> nn.Module:
    layer = nn.Linear(FEATURES, FEATURES)
    return nn.Sequential(layer, nn.Tanh(), layer, head(FEATURES))


def batch_attention(module: Lambda, x: Tensor) -> Tensor:
    return module.out(torch.softmax(x @ x.mT, -1) @ x)


@dataclass(frozen=True)
class Specimen:
    """A module, the engine that "auto" chooses for it, and whether its samples are tokens."""

    make: Callable[[], nn.Module]
    engine: str
    tokens: bool = False
    pairs: bool = False


def sequence(*layers: nn.Module) -> Callable[[], nn.Module]:
    """Fresh copies of a sequence, drawn anew."""

    def make() -> nn.Module:
        module = nn.Sequential(*map(deepcopy, layers))
        for part in module.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
        return module

    return make


def linear(forward: Callable[..., Tensor], width: int = FEATURES) -> Callable[[], nn.Module]:
    return lambda: Lambda(forward, out=head(width))


ZOO = {
    "batch norm": Specimen(sequence(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), head()), "sequential", pairs=True),
    "batch norm of a cumulative mean": Specimen(
        sequence(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8, momentum=None), head()), "sequential", pairs=True
    ),
    "batch norm without statistics": Specimen(
        sequence(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8, track_running_stats=False), head()),
        "sequential",
        pairs=True,
    ),
    "group norm": Specimen(sequence(nn.Linear(FEATURES, 8), nn.GroupNorm(2, 8), head()), "vmap"),
    "centring": Specimen(linear(lambda m, x: m.out(x - x.mean(0))), "sequential"),
    "attention over the batch": Specimen(linear(batch_attention), "sequential"),
    "division by the sample's length": Specimen(
        linear(lambda m, x: m.out(x / x.norm(dim=1, keepdim=True))), "sequential"
    ),
    "lstm": Specimen(Recurrent, "sequential", tokens=True),
    "lstm with dropout": Specimen(lambda: Recurrent(dropout=0.5), "sequential", tokens=True),
    "attention with a mask and tied weights": Specimen(Attention, "vmap", tokens=True),
    "embedding": Specimen(
        lambda: Lambda(lambda m, x: m.out(m.table(x).mean(1)), table=nn.Embedding(TOKENS, 8), out=head()), "vmap", True
    ),
    "frozen layer": Specimen(Frozen, "vmap"),
    "functional dropout": Specimen(linear(lambda m, x: m.out(nn.functional.dropout(x, 0.5))), "sequential"),
    "noise": Specimen(linear(lambda m, x: m.out(x + 0.1 * torch.randn_like(x))), "sequential"),
    "rrelu": Specimen(sequence(nn.Linear(FEATURES, 8), nn.RReLU(), head()), "sequential"),
    "stochastic depth": Specimen(linear(lambda m, x: m.out(x * (torch.rand(len(x), 1) > 0.5))), "sequential"),
    "known dropout": Specimen(sequence(nn.Linear(FEATURES, 8), nn.Dropout(0.5), head()), "stacked"),
    "counter": Specimen(Counting, "sequential"),
    "buffer replaced": Specimen(Replacing, "sequential"),
    "spectral norm": Specimen(lambda: nn.Sequential(spectral_norm(nn.Linear(FEATURES, 8)), head()), "sequential"),
    "a counter that is no buffer": Specimen(linear(counted), "sequential"),
    "a cache": Specimen(linear(cached), "sequential"),
    "a generator of its own": Specimen(Drawing, "sequential"),
    "a longer batch is another function": Specimen(
        linear(lambda m, x: m.out(x) if len(x) > 3 else 2 * m.out(x)), "sequential"
    ),
    "seven samples are another function": Specimen(
        linear(lambda m, x: -m.out(x) if len(x) == 7 else m.out(x)), "sequential"
    ),
    "a hook on a gradient": Specimen(Hooked, "sequential"),
    "control flow": Specimen(Branching, "sequential"),
    "no bias": Specimen(
        sequence(nn.Linear(FEATURES, 8, bias=False), nn.ReLU(), nn.Linear(8, CLASSES, bias=False)), "stacked"
    ),
    "one parameter": Specimen(
        lambda: Lambda(lambda m, x: x[:, :CLASSES] * m.scale, scale=nn.Parameter(torch.ones(()))), "vmap"
    ),
    "a layer twice": Specimen(twice, "vmap"),
    "mlp": Specimen(sequence(nn.Linear(FEATURES, 8), nn.ReLU(), head()), "stacked"),
}


def samples_of(specimen: Specimen, n: int, m: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if specimen.tokens:
        x = torch.randint(TOKENS, (n, m, LENGTH), generator=generator)
    else:
        x = torch.randn(n, m, FEATURES, generator=generator)
    return x, torch.randint(CLASSES, (n, m), generator=generator)


def model_of(specimen: Specimen) -> Model:
    x, y = samples_of(specimen, 1, 8)
    return measured(Model(specimen.make, cross_entropy, {}, seed=5), x[0], y[0])


def task_of(specimen: Specimen, clients: tuple[int, ...] = (0, 1, 2)) -> Task:
    """Clients of 7, 4 and 2 samples, steps of 3: batches are short, and padded in lockstep."""
    chosen, model = torch.tensor(clients), model_of(specimen)
    x, y = samples_of(specimen, 3, 7)
    counts = torch.tensor([7, 4, 2])[chosen]
    start = model.initial(Streams(0), 0).expand(len(chosen), -1)
    block = Block(chosen, start, Samples.of(x[chosen], y[chosen]), counts, {}, 0, Streams(0))
    optimizer = Sgd(lr=0.2, momentum=0.5)
    state = optimizer.state(start[:, : model.parameters.size])
    batches = draw_batches(block, 3, 2, None, model.smallest_batch)
    buffers = {name: value.expand(len(chosen), *value.shape) for name, value in model.first_kept.items()}
    seeds = torch.tensor([7, 8, 9])[chosen]
    return Task(model, start, block.samples, batches, optimizer, state, seeds=seeds, buffers=buffers)


@pytest.mark.parametrize("engine", [name for name in registry.members("engine") if name != "reference"])
@pytest.mark.parametrize("name", ZOO)
def test_an_engine_agrees_with_the_reference_or_refuses(name: str, engine: str) -> None:
    specimen = ZOO[name]
    task = task_of(specimen)
    x, y = samples_of(specimen, 1, 8)
    try:
        choose_engine(engine, task.model, x[0], y[0])
    except SettingError as error:
        assert f"training.engine {engine!r} cannot train this model" in str(error)  # noqa: PT017
        assert engine != specimen.engine, "what auto chooses is not refused"
        return
    fast, slow = (registry.build("engine", each, {}).train(task) for each in (engine, "reference"))
    torch.testing.assert_close(fast.rows, slow.rows, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.losses, slow.losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fast.buffers, slow.buffers, rtol=1e-4, atol=1e-5)
    assert fast.rows.isfinite().all()
    assert not torch.equal(fast.rows, task.start)


@pytest.mark.parametrize("name", ZOO)
def test_auto_chooses_by_trial_and_says_why(name: str) -> None:
    specimen = ZOO[name]
    x, y = samples_of(specimen, 1, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the trial of vmap keeps torch's warnings to itself
        engine, reason = choose_engine("auto", model_of(specimen), x[0], y[0])
    assert engine == specimen.engine
    assert bool(reason) == (engine == "sequential")


@pytest.mark.parametrize("name", ZOO)
def test_a_client_does_not_depend_on_who_shares_its_block(name: str) -> None:
    """With the engine that is chosen, what a client draws included."""
    specimen = ZOO[name]
    engine = registry.build("engine", specimen.engine, {})
    together = engine.train(task_of(specimen))
    for client in range(3):
        alone = engine.train(task_of(specimen, (client,)))
        torch.testing.assert_close(alone.rows[0], together.rows[client], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_a_trial_leaves_no_trace(name: str) -> None:
    specimen = ZOO[name]
    x, y = samples_of(specimen, 1, 8)
    torch.manual_seed(3)
    model = model_of(specimen)
    before = {key: value.clone() for key, value in model.fresh().state_dict().items()}
    choose_engine("auto", model, x[0], y[0])
    model.evaluate(model.initial(Streams(0), 0), x[0], y[0])
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), drawn)
    for key, value in model.module.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ZOO)
def test_what_is_saved_is_what_the_module_loads(name: str) -> None:
    """With strict = True, and computes what was evaluated."""
    specimen = ZOO[name]
    model = model_of(specimen)
    row = registry.build("engine", "sequential", {}).train(task_of(specimen)).rows[0]
    module = specimen.make()
    assert not module.load_state_dict(model.state_dict(row), strict=True).missing_keys
    x, y = samples_of(specimen, 1, 8)
    module.eval()
    if not any(word in name for word in ("functional", "noise", "stochastic")):  # these draw in evaluation too
        expected = cross_entropy(module(x[0]), y[0]).double().mean()
        torch.testing.assert_close(model.evaluate(row, x[0], y[0])["loss"].float(), expected.float())


@pytest.mark.parametrize("name", ZOO)
def test_the_fewest_samples_of_a_step_are_measured(name: str) -> None:
    specimen = ZOO[name]
    x, y = samples_of(specimen, 1, 8)
    assert smallest_batch(model_of(specimen), x[0], y[0]) == 1 + specimen.pairs


SHARED_COUNTER = [0]


class Unseeded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out, self.generator = head(FEATURES), np.random.default_rng()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x) * float(self.generator.random())


class Outside(nn.Module):
    """A counter that all modules of the process share."""

    def __init__(self) -> None:
        super().__init__()
        self.out = head(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        SHARED_COUNTER[0] += 1
        return self.out(x) / SHARED_COUNTER[0]


@pytest.mark.parametrize("make", [Unseeded, Outside])
def test_a_module_that_cannot_be_repeated_is_refused(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(SettingError, match="two modules from the same seed compute different outputs"):
        model_of(Specimen(make, ""))
