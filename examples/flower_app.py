"""A Flower app whose server aggregates with fedgen's rules: digits over 10 nodes, three of them Byzantine.

python examples/flower_app.py [RULE]
"""

import sys

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from sklearn.datasets import load_digits

from fedgen.server.flower import RuleStrategy

NODES, BYZANTINE = 10, 3
pixels, labels = (torch.from_numpy(part) for part in load_digits(return_X_y=True))
x, y = pixels.float() / 16, labels.long()
client_app, server_app = ClientApp(), ServerApp()


def network() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


@client_app.train()
def train(message: Message, context: Context) -> Message:
    node, module = int(context.node_config["partition-id"]), network()
    start = message.content["arrays"].to_torch_state_dict()
    module.load_state_dict(start)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    mine = slice(300 + node, None, NODES)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x[mine]), y[mine]).backward()
        optimizer.step()
    sent = module.state_dict()
    if node < BYZANTINE:
        sent = {name: start[name] - 10 * (value - start[name]) for name, value in sent.items()}
    metrics = MetricRecord({"num-examples": len(y[mine])})
    return Message(RecordDict({"arrays": ArrayRecord(sent), "metrics": metrics}), reply_to=message)


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        module = network()
        module.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": float((module(x[:300]).argmax(1) == y[:300]).float().mean())})

    strategy = RuleStrategy(sys.argv[1] if sys.argv[1:] else "geometric_median", f=BYZANTINE, fraction_evaluate=0.0)
    torch.manual_seed(0)
    result = strategy.start(grid, ArrayRecord(network().state_dict()), num_rounds=15, evaluate_fn=evaluate)
    print("accuracy", round(float(result.evaluate_metrics_serverapp[15]["accuracy"]), 3))


if __name__ == "__main__":
    run_simulation(server_app, client_app, num_supernodes=NODES)
