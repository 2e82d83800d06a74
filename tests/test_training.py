"""Local training: batches against a plain list, fast engines against the reference engine, optimisers against torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedgen import registry
from fedgen.contracts import Block, Samples
from fedgen.errors import SettingError
from fedgen.evaluation.losses import cross_entropy
from fedgen.models.model import Model, takes_channels_last
from fedgen.models.networks import Cnn
from fedgen.streams import Streams
from fedgen.training.batches import draw_batches
from fedgen.training.choose import choose_engine
from fedgen.training.gradients import Adjustment
from fedgen.training.optimizers import Adam, Optimizer, Sgd
from fedgen.training.server_optimizers import ServerSgd
from fedgen.training.trainer import Engine, Task, Trained, Trainer

TOLERANCE = 1e-4
"""Most that an engine's rows may be off the reference engine's, relative to how far the client has moved (float32)."""

CLASSES = 3
FAST = [name for name in registry.members("engine") if name != "reference"]
MODELS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "logistic": ({}, (5,)),
    "mlp": ({"hidden": (6, 4)}, (2, 3)),
    "cnn": ({"channels": (3,), "hidden": 5}, (2, 6, 6)),
    "mlp with dropout": ({"hidden": (6, 4), "dropout": 0.4}, (2, 3)),
}
"""Model -> its parameters, and the shape of the inputs it is tried on."""


def model_of(name: str) -> Model:
    parameters, shape = MODELS[name]
    network = registry.build("model", name.split()[0], parameters)
    return Model(lambda: network.module(shape, CLASSES), cross_entropy, {}, channels_last=name == "cnn")


def block_of(
    counts: list[int], shape: tuple[int, ...] = (1,), clients: list[int] | None = None, seed: int = 0
) -> Block:
    """Clients that hold `counts` random samples, padded with zeros; each client's data depends on its number only."""
    numbers = clients if clients is not None else list(range(len(counts)))
    x, y = torch.zeros(len(counts), max(counts), *shape), torch.zeros(len(counts), max(counts), dtype=torch.int64)
    for row, (client, count) in enumerate(zip(numbers, counts, strict=True)):
        generator = torch.Generator().manual_seed(1000 * seed + client)
        x[row, :count] = torch.randn(count, *shape, generator=generator)
        y[row, :count] = torch.randint(0, CLASSES, (count,), generator=generator)
    held = Samples.of(x, y)
    return Block(torch.tensor(numbers), torch.zeros(len(counts), 1), held, torch.tensor(counts), {}, 4, Streams(seed))


def listed_batches(
    block: Block, row: int, batch_size: int, epochs: int | None, steps: int | None, smallest: int = 1
) -> list[list[int]]:
    """The sample numbers of every step of one client, as one would write it without arrays."""
    client, count = block.clients[row : row + 1], int(block.counts[row])
    taken: list[list[int]] = []
    epoch = 0
    while epoch < epochs if epochs is not None else len(taken) < (steps or 1):
        keys = block.streams.uniform(f"shuffle.{epoch}", block.round, client, count)[0].tolist()
        order = list(range(count)) if count <= batch_size else sorted(range(count), key=lambda sample: keys[sample])
        cut = [order[first : first + batch_size] for first in range(0, count, batch_size)]
        if len(cut) > 1 and len(cut[-1]) < smallest:
            cut[-2:] = [cut[-2] + cut[-1]]
        taken += cut
        epoch += 1
    return taken if epochs is not None else taken[:steps]


COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=5)
LENGTH = st.one_of(st.tuples(st.integers(1, 3), st.none()), st.tuples(st.none(), st.integers(1, 9)))


@given(COUNTS, st.integers(1, 10), LENGTH, st.integers(0, 99), st.integers(1, 3))
def test_batches_are_those_of_the_plain_list(
    counts: list[int], batch_size: int, length: tuple[int | None, int | None], seed: int, smallest: int
) -> None:
    """A last batch of fewer than `smallest` samples joins the one before it."""
    block = block_of(counts, seed=seed)
    batches = draw_batches(block, batch_size, *length, smallest := min(smallest, batch_size))
    assert batches.index.shape[:2] == batches.sizes.shape
    assert ((batches.index >= 0) & (batches.index < max(counts))).all()
    for row in range(len(counts)):
        expected = listed_batches(block, row, batch_size, *length, smallest)
        steps = zip(batches.index[row], batches.sizes[row], strict=True)
        drawn = [index[:size].tolist() for index, size in steps]
        assert drawn == expected + [[]] * (len(drawn) - len(expected))
        assert int(batches.steps[row]) == len(expected)


@given(COUNTS, st.integers(1, 10), st.integers(1, 3))
def test_every_epoch_visits_each_sample_once(counts: list[int], batch_size: int, epochs: int) -> None:
    batches = draw_batches(block_of(counts), batch_size, epochs, None)
    for row, count in enumerate(counts):
        sizes = batches.sizes[row].tolist()
        per_epoch = -(-count // batch_size)
        assert (
            sizes[: per_epoch * epochs]
            == ([batch_size] * (per_epoch - 1) + [count - (per_epoch - 1) * batch_size]) * epochs
        )
        for epoch in range(epochs):
            part = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
            steps = zip(batches.index[row, part], batches.sizes[row, part], strict=True)
            seen = [sample for index, size in steps for sample in index[:size].tolist()]
            assert sorted(seen) == list(range(count))


class Viewing(nn.Module):
    """Asks for the memory of an image in its own order, which it then has not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Linear(72, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x).view(-1, 72))  # type: ignore[no-any-return]


def test_images_come_channels_last_to_modules_that_take_them_so() -> None:
    images = torch.rand(2, 2, 6, 4)
    convolution = Model(lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(72, 3)), cross_entropy, {})
    assert takes_channels_last(convolution, images)
    assert not takes_channels_last(Model(Viewing, cross_entropy, {}), images)
    assert not takes_channels_last(model_of("mlp"), torch.rand(2, 1, 2, 3))
    arranged = replace(convolution, channels_last=True).arranged(images)
    assert arranged.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(arranged, images)


def test_steps_go_on_into_the_next_epoch() -> None:
    """Three samples in batches of two: sizes 2, 1 | 2, 1 | 2 in five steps; one sample: five steps of it."""
    batches = draw_batches(block_of([3, 1]), 2, None, 5)
    assert batches.sizes.tolist() == [[2, 1, 2, 1, 2], [1, 1, 1, 1, 1]]


def test_epochs_are_shuffled_differently_and_so_are_rounds() -> None:
    block = block_of([9])
    drawn = draw_batches(block, 5, 2, None).index[0, :, :5].tolist()
    assert drawn[0] != drawn[2]
    assert draw_batches(replace(block, round=5), 5, 1, None).index[0, 0].tolist() != drawn[0]


@given(COUNTS, COUNTS, st.integers(1, 4), LENGTH)
def test_a_clients_batches_do_not_depend_on_block_mates(
    counts: list[int], others: list[int], batch_size: int, length: tuple[int | None, int | None]
) -> None:
    clients, mates = list(range(len(counts))), list(range(50, 50 + len(others)))
    alone = draw_batches(block_of(counts, clients=clients), batch_size, *length)
    among = draw_batches(block_of(others + counts, clients=mates + clients), batch_size, *length)
    for row in range(len(counts)):
        there = len(others) + row
        steps = int(alone.steps[row])
        assert int(among.steps[there]) == steps
        for step in range(steps):
            here = alone.index[row, step, : alone.sizes[row, step]]
            assert among.index[there, step, : among.sizes[there, step]].tolist() == here.tolist()


def task_of(
    name: str,
    counts: list[int],
    optimizer: Optimizer,
    batch_size: int,
    length: tuple[Any, Any],
    seed: int,
    adjusted: bool = False,
) -> Task:
    """A block of clients with random start rows and, where the optimiser keeps any, random optimiser state.

    Weights and state are small enough that nothing diverges: rounding would then grow without bound in every engine.
    """
    model = model_of(name)
    generator = torch.Generator().manual_seed(seed)
    block = block_of(counts, MODELS[name][1], seed=seed)
    start = 0.2 * torch.randn(len(counts), model.layout.size, generator=generator)
    state = {key: torch.rand(value.shape, generator=generator) / 10 for key, value in optimizer.state(start).items()}
    if "steps" in state:
        state["steps"] = torch.arange(1.0, len(counts) + 1)[:, None]
    control = 0.1 * torch.randn(start.shape, generator=generator)
    adjustment = Adjustment(proximal=0.1, clip_norm=1.0, control=control) if adjusted else Adjustment()
    batches = draw_batches(block, batch_size, *length)
    seeds = 100 * seed + torch.arange(len(counts))
    return Task(model, start, block.samples, batches, optimizer, state, adjustment, seeds)


def assert_close(fast: Trained, slow: Trained, start: Tensor) -> None:
    """Rows within TOLERANCE of how far each client moved, losses and optimiser state within TOLERANCE of their size."""
    moved = (slow.rows - start).norm(dim=1)
    assert (moved > 0).all()
    assert ((fast.rows - slow.rows).norm(dim=1) <= TOLERANCE * moved).all()
    torch.testing.assert_close(fast.losses, slow.losses, rtol=TOLERANCE, atol=TOLERANCE)
    assert fast.optimizer_state.keys() == slow.optimizer_state.keys()
    for name, value in slow.optimizer_state.items():
        assert ((fast.optimizer_state[name] - value).norm(dim=1) <= TOLERANCE * value.norm(dim=1)).all()


SETTINGS = st.builds(
    Sgd,
    lr=st.sampled_from([0.01, 0.03]),
    momentum=st.sampled_from([0.0, 0.9]),
    nesterov=st.booleans(),
    weight_decay=st.sampled_from([0.0, 0.1]),
) | st.builds(Adam, lr=st.just(0.01), epsilon=st.just(1e-3), weight_decay=st.sampled_from([0.0, 0.1]))


@pytest.mark.parametrize("engine", FAST)
@pytest.mark.parametrize("name", MODELS)
@given(COUNTS, SETTINGS, st.integers(1, 5), LENGTH, st.integers(0, 9), st.booleans())
@settings(max_examples=20)
def test_engines_agree_with_the_reference(
    name: str,
    engine: str,
    counts: list[int],
    optimizer: Optimizer,
    batch_size: int,
    length: tuple[int | None, int | None],
    seed: int,
    adjusted: bool,
) -> None:
    if "dropout" in name and engine == "vmap":
        pytest.skip("torch.func draws for the whole block: modules that draw are never given to vmap")
    task = task_of(name, counts, optimizer, batch_size, length, seed, adjusted)
    fast: Engine = registry.build("engine", engine, {})
    slow: Engine = registry.build("engine", "reference", {})
    assert_close(fast.train(task), slow.train(task), task.start)


def test_every_registered_model_is_compared() -> None:
    assert {name.split()[0] for name in MODELS} == set(registry.members("model"))
    assert FAST


@pytest.mark.parametrize("engine", registry.members("engine"))
@pytest.mark.parametrize("name", MODELS)
def test_engines_change_nothing_in_their_task(name: str, engine: str, fingerprint: Callable[[Any], str]) -> None:
    task = task_of(name, [4, 1, 7], Sgd(momentum=0.9, weight_decay=0.1), 3, (2, None), 0)
    before = fingerprint(task)
    trained = registry.build("engine", engine, {}).train(task)
    assert fingerprint(task) == before
    trained.rows.fill_(7)
    for value in (trained.losses, *trained.optimizer_state.values()):
        value.fill_(7)
    assert fingerprint(task) == before


@pytest.mark.parametrize(
    "engine",
    [*registry.members("engine")],
)
def test_engines_leave_the_models_own_module_as_it_was(engine: str, fingerprint: Callable[[Any], str]) -> None:
    task = task_of("mlp", [4, 2], Sgd(), 3, (1, None), 0)
    before = fingerprint(dict(task.model.module.state_dict()))
    registry.build("engine", engine, {}).train(task)
    assert fingerprint(dict(task.model.module.state_dict())) == before


@pytest.mark.parametrize("engine", registry.members("engine"))
def test_engines_repeat_their_bits(engine: str, fingerprint: Callable[[Any], str]) -> None:
    task = task_of("cnn", [4, 1, 7], Sgd(momentum=0.9), 3, (2, None), 0)
    train = registry.build("engine", engine, {}).train
    assert fingerprint(train(task)) == fingerprint(train(task))


@pytest.mark.parametrize("engine", registry.members("engine"))
def test_one_step_of_logistic_regression_by_hand(engine: str) -> None:
    """From w = 0 every class has probability 1/3: the loss is log 3, the gradient of class c's logit 1/3 - [c = y].

    Samples x = 1 with y = 0 and x = 3 with y = 1, each mean of two: d/dw_0 = (1 (1/3 - 1) + 3 (1/3)) / 2 = 1/6,
    d/dw_1 = (1 (1/3) + 3 (1/3 - 1)) / 2 = -5/6, d/dw_2 = (1/3 + 1) / 2 = 2/3; the biases' are -1/6, -1/6, 1/3.
    """
    network = registry.build("model", "logistic", {})
    model = Model(lambda: network.module((1,), 3), cross_entropy, {})
    held = Samples.of(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[0, 1]]))
    block = Block(torch.tensor([0]), torch.zeros(1, 6), held, torch.tensor([2]), {}, 0, Streams(0))
    trained = Trainer(model, registry.build("engine", engine, {}), Sgd(lr=0.6), batch_size=2, epochs=1).train(block)
    torch.testing.assert_close(trained.rows, torch.tensor([[-0.1, 0.5, -0.4, 0.1, 0.1, -0.2]]))
    torch.testing.assert_close(trained.losses, torch.tensor([3.0]).log())


@pytest.mark.parametrize("engine", ["reference", "vmap"])
def test_a_module_with_a_scalar_parameter_trains(engine: str) -> None:
    class Tempered(nn.Linear):
        def __init__(self) -> None:
            super().__init__(1, CLASSES)
            self.temperature = nn.Parameter(torch.tensor(1.0))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.temperature

    model = Model(Tempered, cross_entropy, {})
    block = replace(block_of([3, 2]), start=torch.ones(2, model.layout.size))
    trained = Trainer(model, registry.build("engine", engine, {}), Sgd(), batch_size=2, epochs=1).train(block)
    assert trained.rows.shape == (2, 7)


@pytest.mark.parametrize("engine", registry.members("engine"))
def test_a_kept_optimizer_goes_on_where_it_stopped(engine: str) -> None:
    """Two rounds of one step with the state handed on are two steps of heavy ball; without, the momentum is lost."""
    model = model_of("mlp")
    start = model.initial(Streams(0), 0).expand(2, -1)
    block = replace(block_of([1, 1], MODELS["mlp"][1]), start=start)
    trainer = Trainer(model, registry.build("engine", engine, {}), Sgd(momentum=0.5), 1, steps=1, keep_optimizer=True)
    train = trainer.train
    first = train(block)
    assert list(first.client_state) == ["optimizer.momentum"]
    second = train(replace(block, start=first.rows, client_state=first.client_state))
    both = replace(trainer, steps=2, keep_optimizer=False).train(block)
    torch.testing.assert_close(second.rows, both.rows)
    forgotten = train(replace(block, start=first.rows))
    assert not torch.allclose(forgotten.rows, both.rows)
    assert both.client_state == {}


@pytest.mark.parametrize("engine", registry.members("engine"))
def test_training_leaves_client_state_alone(engine: str, fingerprint: Callable[[Any], str]) -> None:
    model = model_of("logistic")
    held = {"optimizer.momentum": torch.ones(2, model.layout.size)}
    block = replace(block_of([3, 2], (5,)), start=torch.zeros(2, model.layout.size), client_state=held)
    before = fingerprint(block)
    trainer = Trainer(model, registry.build("engine", engine, {}), Sgd(momentum=0.9), 2, epochs=2, keep_optimizer=True)
    trainer.train(block)
    assert fingerprint(block) == before


def test_sgd_by_hand() -> None:
    """lr .1, momentum .9, weight decay .5, w = 1.

    Gradient 2: u = 2 + .5 = 2.5, w = 1 - .25 = .75.  Gradient 1: u = .9 * 2.5 + 1 + .375 = 3.625, w = .75 - .3625.
    """
    optimizer = Sgd(lr=0.1, momentum=0.9, weight_decay=0.5)
    rows = torch.tensor([[1.0]])
    state = optimizer.state(rows)
    seen = []
    for gradient in (2.0, 1.0):
        optimizer.step(rows, torch.tensor([[gradient]]), state)
        seen += [state["momentum"].item(), rows.item()]
    assert seen == pytest.approx([2.5, 0.75, 3.625, 0.3875])


def test_torchs_sgd_takes_the_same_steps_by_hand() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = Sgd(lr=0.1, momentum=0.9, weight_decay=0.5).reference([parameter])
    seen = []
    for gradient in (2.0, 1.0):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
        seen += [optimizer.state[parameter]["momentum_buffer"].item(), parameter.item()]
    assert seen == pytest.approx([2.5, 0.75, 3.625, 0.3875])


def test_server_sgd_by_hand() -> None:
    """lr 2, momentum .5, model 1.  Update 1: u = 1, model 3.  Update 0: u = .5, model 4.  Update -1: u = -.75, 2.5."""
    optimizer = ServerSgd(lr=2.0, momentum=0.5)
    model = torch.tensor([1.0])
    state = optimizer.state(model)
    seen = []
    for update in (1.0, 0.0, -1.0):
        model, state = optimizer.step(model, torch.tensor([update]), state)
        seen.append(model.item())
    assert seen == [3, 4, 2.5]


def test_server_sgd_of_lr_1_is_federated_averaging() -> None:
    model, update = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
    changed, state = ServerSgd().step(model, update, ServerSgd().state(model))
    assert changed.tolist() == [1.5, 1.0]
    assert state == {}


@given(st.integers(1, 4), st.integers(1, 9), st.sampled_from([0.0, 0.5]), st.integers(0, 99))
@settings(max_examples=25)
def test_server_sgd_gives_one_holder_and_many_the_same_bits(
    holders: int, size: int, momentum: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = ServerSgd(lr=0.3, momentum=momentum)
    models = torch.randn(holders, size, generator=generator)
    states, alone = optimizer.state(models), [(model, optimizer.state(model)) for model in models]
    for _ in range(3):
        updates = torch.randn(holders, size, generator=generator)
        models, states = optimizer.step(models, updates, states)
        alone = [optimizer.step(model, update, state) for (model, state), update in zip(alone, updates, strict=True)]
    assert torch.equal(models, torch.stack([model for model, _ in alone]))
    for name, value in states.items():
        assert torch.equal(value, torch.stack([state[name] for _, state in alone]))


class Normalised(torch.nn.Module):
    """Running statistics, floating-point and integer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def test_running_statistics_travel_in_the_row() -> None:
    """Mean and variance of BatchNorm are columns behind the parameters; gradients and weight decay leave them alone."""
    model = Model(Normalised, registry.find("loss", "cross_entropy"), {})
    assert model.layout.size == model.parameters.size + 8
    assert choose_engine("auto", model, torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))[0] == "sequential"
    block = block_of([8, 6], (5,))
    start = model.initial(Streams(0), 0).expand(2, -1)
    optimizer = Sgd(momentum=0.9, weight_decay=0.5)
    state = optimizer.state(start[:, : model.parameters.size])
    batches = draw_batches(block, 4, 2, None)
    task = Task(model, start, block.samples, batches, optimizer, state, Adjustment(proximal=0.1, clip_norm=1.0))
    slow = registry.build("engine", "reference", {}).train(task)
    fast = registry.build("engine", "sequential", {}).train(task)
    assert_close(fast, slow, start)
    statistics = model.layout.view(fast.rows)["layers.1.running_mean"]
    assert (statistics != 0).all()
    for engine in ("vmap", "stacked"):
        with pytest.raises(SettingError):
            registry.build("engine", engine, {}).train(task)


def test_pooling_before_relu_changes_no_number_of_the_cnn() -> None:
    """Outputs and gradients are those of the usual order, convolution, ReLU, pooling."""
    ours = Cnn(channels=(3, 4), hidden=5).module((1, 14, 14), 3)
    layers = list(ours)
    usual = nn.Sequential(*(layers[place] for place in (0, 2, 1, 3, 5, 4, *range(6, len(layers)))))
    assert [type(layer) for layer in usual[:3]] == [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    x, y = torch.randn(9, 1, 14, 14, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    losses = [nn.functional.cross_entropy(module(x), y) for module in (ours, usual)]
    here, there = (torch.autograd.grad(loss, list(ours.parameters())) for loss in losses)
    assert torch.equal(*losses)
    assert all(torch.equal(first, second) for first, second in zip(here, there, strict=True))
