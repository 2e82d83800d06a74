"""Rules as strategies of Flower, on a grid in memory: an unmodified ClientApp, Byzantine clients of every kind."""

from __future__ import annotations

import logging
import runpy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.task_identity import TaskIdentity

from fedgen import registry
from fedgen.errors import SettingError
from fedgen.server.flower import RuleStrategy

NODES = 7
TARGET = torch.tensor([1.0, -2.0, 3.0])
app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Half of the way to the target, with a little of the node's own."""
    weight = message.content["arrays"].to_torch_state_dict()["w"]  # type: ignore[union-attr]
    own = 0.01 * torch.tensor([float(context.node_id), 1.0, -1.0])
    arrays = {"w": weight + 0.5 * (TARGET - weight) + own, "steps": torch.tensor(3)}
    metrics = MetricRecord({"num-examples": 10, "loss": float(context.node_id)})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 10, "accuracy": 0.5})}), reply_to=message)


def attacked(reply: Message, arrays: dict[str, Any], weight: float = 10) -> Message:
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
    content = {"arrays": record, "metrics": MetricRecord({"num-examples": weight, "loss": 0.0})}
    reply.content = RecordDict(content)  # type: ignore[arg-type]
    return reply


FORGED: dict[str, tuple[Callable[[Message], Message], str]] = {
    "NaN": (lambda reply: attacked(reply, {"w": np.array([0, np.nan, 0], np.float32), "steps": 3}), "not finite"),
    "Inf": (lambda reply: attacked(reply, {"w": np.array([0, np.inf, 0], np.float32), "steps": 3}), "not finite"),
    "shape": (lambda reply: attacked(reply, {"w": np.zeros(4, np.float32), "steps": 3}), "'w' is float32(4,)"),
    "dtype": (lambda reply: attacked(reply, {"w": np.zeros(3), "steps": 3}), "'w' is float64(3,)"),
    "names": (
        lambda reply: attacked(reply, {"v": np.zeros(3, np.float32), "steps": 3}),
        "other names than the model: v",
    ),
    "nothing": (lambda reply: attacked(reply, {}), "other names"),
}


class MemoryGrid(Grid):
    """Hands every message to the app at once; `lie` changes the replies of the first node."""

    def __init__(
        self,
        lie: Callable[[Message], Message] = lambda reply: reply,
        twice: bool = False,
        client_app: ClientApp = app,
        nodes: int = NODES,
    ) -> None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
        self.lie, self.twice, self.app = lie, twice, client_app
        self.contexts = {node: self.context(node) for node in range(1, nodes + 1)}

    @staticmethod
    def context(node: int) -> Context:
        config: Any = {"partition-id": node - 1}
        return Context(run_id=0, node_id=node, node_config=config, state=RecordDict(), run_config={})

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            reply = self.app(message, self.contexts[node])
            attacker = node == 1 and message.metadata.message_type == "train"
            replies += [self.lie(reply) if attacker else reply] * (2 if attacker and self.twice else 1)
        return replies

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def unused(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    run = property(unused)
    set_run = create_message = push_messages = pull_messages = unused


@pytest.mark.parametrize(("name", "words"), [("flower_app", ["accuracy"]), ("flower_ggeur", ["without", "after"])])
def test_an_example_learns(
    name: str, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The apps of examples/NAME.py, every message in memory; each line ends with an accuracy."""
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    monkeypatch.setattr("sys.argv", [str(path)])
    example = runpy.run_path(str(path))
    grid = MemoryGrid(client_app=example["client_app"], nodes=example["NODES"])
    example["server_app"](grid=grid, context=grid.context(1))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == words
    assert min(float(line.split()[-1]) for line in lines) > 0.8


@pytest.fixture(autouse=True)
def flower_logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Flower's logger does not hand on to the root, where pytest listens."""
    logger = logging.getLogger("flwr")
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)


def start() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(3, np.float32)), "steps": Array(np.asarray(0))})


def played(strategy: FedAvg, grid: Grid, rounds: int = 1) -> Any:
    return strategy.start(grid, start(), num_rounds=rounds)


def model(result: Any) -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = result.arrays["w"].numpy()
    return values


def test_the_mean_is_fedavg() -> None:
    ours, theirs = (played(strategy, MemoryGrid(), 3) for strategy in (RuleStrategy(weights="samples"), FedAvg()))
    np.testing.assert_allclose(model(ours), model(theirs), rtol=1e-6)
    assert ours.arrays["w"].dtype == "float32"
    assert int(ours.arrays["steps"].numpy()) == 0, "numbers that are no weights stay the server's"
    assert ours.evaluate_metrics_clientapp[3]["accuracy"] == 0.5
    assert ours.train_metrics_clientapp[1]["loss"] == pytest.approx(np.mean(range(1, NODES + 1)))


def halfway(arrays: ArrayRecord) -> ArrayRecord:
    """What the server makes of the model with data of its own."""
    weight = arrays.to_torch_state_dict()["w"]
    return ArrayRecord({"w": weight + 0.5 * (TARGET - weight), "steps": torch.tensor(3)})


def test_fewer_than_no_liars_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0; got -2"):
        RuleStrategy("median", f=-2)


def test_a_rule_that_trusts_the_server_asks_for_its_training() -> None:
    with pytest.raises(ValueError, match="give root, which trains the arrays"):
        RuleStrategy("fltrust")


@pytest.mark.parametrize("rule", [name for name in registry.members("rule") if name != "bulyan"])
def test_every_rule_learns_through_flower(rule: str) -> None:
    result = played(RuleStrategy(rule, f=1, root=halfway), MemoryGrid(), 12)
    assert np.abs(model(result) - TARGET.numpy()).max() < 0.5


@pytest.mark.parametrize("lie", FORGED)
def test_a_malformed_reply_leaves_out_that_node_and_not_the_round(lie: str, caplog: pytest.LogCaptureFixture) -> None:
    """In Flower itself, NaN owns the model, and other names or shapes end the run."""
    change, reason = FORGED[lie]
    result = played(RuleStrategy("median", f=1), MemoryGrid(change))
    assert np.isfinite(model(result)).all()
    assert result.train_metrics_clientapp[1]["rejected"] == 1
    assert f"Left out node 1: {reason}" in caplog.text or reason in caplog.text


def test_a_second_reply_of_a_node_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    result = played(RuleStrategy("median", f=1), MemoryGrid(twice=True))
    assert result.train_metrics_clientapp[1]["rejected"] == 1
    assert "a second reply in one round" in caplog.text


def test_a_reported_number_of_samples_does_not_buy_the_model() -> None:
    grid = MemoryGrid(lambda reply: attacked(reply, {"w": np.array([9, 9, 9], np.float32), "steps": 3}, weight=1e12))
    owned, ours = (model(played(strategy, grid)) for strategy in (FedAvg(), RuleStrategy("multi_krum", f=1)))
    assert np.abs(owned - 9).max() < 1e-3, "Flower believes it, so this test can fail"
    assert np.abs(ours - 0.5 * TARGET.numpy()).max() < 0.1
    counted = model(played(RuleStrategy("mean", weights="samples"), grid))
    assert np.abs(counted - 0.5 * TARGET.numpy()).max() < 0.1, "no client holds 1e12 samples"


def test_too_few_replies_skip_the_round_and_keep_the_model(caplog: pytest.LogCaptureFixture) -> None:
    result = played(RuleStrategy("krum", f=3), MemoryGrid())
    assert "Round skipped: 7 replies, the rule needs 9 for f = 3" in caplog.text
    assert not result.arrays, "no round has changed the model"


def test_long_updates_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    far = MemoryGrid(lambda reply: attacked(reply, {"w": np.array([900, 0, 0], np.float32), "steps": 3}))
    assert np.abs(model(played(RuleStrategy("mean", f=1, norm_limit=10.0), far))).max() < 2
    assert "norm" in caplog.text


def test_rules_go_on_with_their_memory() -> None:
    strategy = RuleStrategy("centred_clipping", parameters={"centre": "last", "radius": 0.5})
    played(strategy, MemoryGrid(), 2)
    assert set(strategy.memory) == {"last"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "krumm"}, "krum"),
        ({"rule": "flag", "parameters": {"forms": 1}}, "form"),
        ({"weights": "all"}, "equal"),
    ],
)
def test_unknown_words_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((SettingError, ValueError), match=message):
        RuleStrategy(**arguments)


normalised_app = ClientApp()


@normalised_app.train()
def measure(message: Message, context: Context) -> Message:
    """A step for the parameter, and statistics of the node's own."""
    held = message.content["arrays"].to_torch_state_dict()  # type: ignore[union-attr]
    moved = {**held, "w": held["w"] + 1}
    moved["norm.running_mean"] = torch.full((2,), float(context.node_id))
    moved["norm.running_var"] = torch.full((2,), float(context.node_id))
    metrics = MetricRecord({"num-examples": 10})
    return Message(RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics}), reply_to=message)


def masked_start() -> ArrayRecord:
    return ArrayRecord(
        {
            "norm.running_mean": Array(np.zeros(2, np.float32)),
            "norm.running_var": Array(np.ones(2, np.float32)),
            "w": Array(np.zeros(3, np.float32)),
            "mask": Array(np.full((2, 2), -np.inf, np.float32)),
        }
    )


@pytest.mark.parametrize(("rule", "statistic"), [("mean", 4.0), ("krum", None), ("median", 4.0), ("multi_krum", None)])
def test_statistics_follow_the_rule_and_a_mask_is_no_update(rule: str, statistic: float | None) -> None:
    strategy = RuleStrategy(rule, f=1 if rule != "mean" else 0, fraction_evaluate=0.0)
    grid = MemoryGrid(client_app=normalised_app)
    result = strategy.start(grid, masked_start(), num_rounds=1)
    np.testing.assert_allclose(result.arrays["w"].numpy(), 1.0)
    assert result.arrays["mask"].numpy().tolist() == [[-np.inf] * 2] * 2
    mean = float(result.arrays["norm.running_mean"].numpy()[0])
    assert mean == pytest.approx(statistic) if statistic else 1 <= mean <= NODES


@pytest.mark.parametrize("variance", [-1.0, np.nan, np.inf])
def test_false_statistics_are_left_out(variance: float, caplog: pytest.LogCaptureFixture) -> None:
    def lie(reply: Message) -> Message:
        held = {name: array.numpy() for name, array in reply.content["arrays"].items()}  # type: ignore[union-attr]
        return attacked(reply, {**held, "norm.running_var": np.full(2, variance, np.float32)})

    strategy = RuleStrategy("mean", fraction_evaluate=0.0)
    result = strategy.start(MemoryGrid(lie, client_app=normalised_app), masked_start(), num_rounds=1)
    assert "Left out node 1: statistic norm.running_var" in caplog.text
    assert float(result.arrays["norm.running_mean"].numpy()[0]) == pytest.approx(4.5)
