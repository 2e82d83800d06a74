"""GGEUR in a Flower app: digits over 8 nodes with skewed labels.

Round 1: every node sends statistics of its samples; the server pools them and computes a head without training.
Round 2: every node receives head and geometry, adds generated samples, and trains; the server averages the heads.

python examples/flower_ggeur.py
"""

from time import sleep

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from sklearn.datasets import load_digits

from fedgen.data.skewed import LabelSkew
from fedgen.geometry.heads import Head, ridge
from fedgen.geometry.sampler import augment
from fedgen.geometry.shapes import Geometry, geometry_of
from fedgen.geometry.statistics import pooled, statistics_of
from fedgen.geometry.uploads import LowRank

NODES, CLASSES, FEATURES, MINIMUM_COUNT, SHARPNESS = 8, 10, 64, 8, 30.0
pixels, labels = load_digits(return_X_y=True)
x, y = (pixels / 16).astype(np.float32), labels.astype(np.int64)
shards = LabelSkew(beta=0.1, seed=0).split(y[300:], NODES, np.random.default_rng(0))
upload = LowRank(CLASSES, FEATURES, rank=16)
client_app, server_app = ClientApp(), ServerApp()


def own_samples(context: Context) -> tuple[np.ndarray, np.ndarray]:
    mine = 300 + shards[int(context.node_config["partition-id"])]
    return x[mine], y[mine]


def reply(message: Message, count: int, **arrays: object) -> Message:
    record = ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()})
    content = RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": count})})
    return Message(content, reply_to=message)


@client_app.query()
def send_statistics(message: Message, context: Context) -> Message:
    own_x, own_y = own_samples(context)
    statistics = statistics_of(own_x, own_y, CLASSES)
    row = upload.encode(statistics.only(statistics.counts >= MINIMUM_COUNT))
    return reply(message, len(own_y), row=row.numpy())


@client_app.train()
def train(message: Message, context: Context) -> Message:
    own_x, own_y = own_samples(context)
    got = message.content["arrays"].to_torch_state_dict()
    geometry = Geometry(got["counts"], got["means"], got["roots"], got["remainders"])
    augmented = augment(own_x, own_y, geometry, target=50, seed=int(context.node_config["partition-id"]))
    module = torch.nn.Linear(FEATURES, CLASSES)
    module.load_state_dict({name: got[name] for name in ("weight", "bias")})
    optimizer = torch.optim.Adam(module.parameters(), lr=0.001)
    for batch in torch.randperm(len(augmented.y), generator=torch.Generator().manual_seed(0)).split(64):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(augmented.x[batch]), augmented.y[batch]).backward()
        optimizer.step()
    return reply(message, len(own_y), **{name: value.numpy() for name, value in module.state_dict().items()})


def accuracy(head: Head) -> float:
    return round(float((head(x[:300]).argmax(1).numpy() == y[:300]).mean()), 3)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    while len(list(grid.get_node_ids())) < NODES:
        sleep(0.1)

    def asked(kind: str, **arrays: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        content = RecordDict({"arrays": ArrayRecord(arrays)})
        messages = [Message(content, dst_node_id=node, message_type=kind) for node in sorted(grid.get_node_ids())]
        replies = sorted(grid.send_and_receive(messages), key=lambda each: each.metadata.src_node_id)
        return [each.content["arrays"].to_torch_state_dict() for each in replies]

    statistics = pooled(upload.decode(sent["row"]) for sent in asked("query"))
    head, geometry = ridge(statistics).scaled(SHARPNESS), geometry_of(statistics)
    print("without training", accuracy(head))
    sent = asked("train", weight=head.weight.float(), bias=head.bias.float(), **vars(geometry))
    trained = {name: torch.stack([each[name] for each in sent]).mean(0).double() for name in ("weight", "bias")}
    print("after a round", accuracy(Head(**trained)))


if __name__ == "__main__":
    run_simulation(server_app, client_app, num_supernodes=NODES)
