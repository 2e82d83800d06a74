"""Client updates per CPU second in the whole round loop, of fedgen's engines and other simulators, on one core.

python -m benchmarks.engines [--tiny] [--setup] [--peers FOLDER] [--passes N] [--cases one five cnn]

Every system runs the same federated averaging with SGD, lr .1, in a separate process with one thread, pinned to one
core. Systems run one after another; passes repeat the whole table, so that a disturbance does not affect one system
only. The measured time is CPU time of the process for the choice of the cohort, training, aggregation and server update
(with fedgen also its logs), without evaluation and checkpoints. Other systems get shuffled batches as tensors. Flower
is measured twice: its simulation on Ray (CPU time of all processes, fewer rounds), and its ClientApp and strategy with
messages in memory, which is faster. --setup makes the environment of the other systems, benchmarks/.peers, with
fedgen's torch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from math import isnan, nan
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.utils import vector_to_parameters

from benchmarks.harness import PEERS, header, measured, python_of_peers, table
from benchmarks.peers.common import Work, load, measure, network
from fedgen.config import Experiment
from fedgen.data.dataset import Dataset
from fedgen.federation import Federation
from fedgen.registry import build
from fedgen.server.pools.pool import Interrupt, SerialPool
from fedgen.server.rounds.session import Session
from fedgen.server.rounds.star import Star
from fedgen.server.store.checkpoint import Standing
from fedgen.server.store.journal import Journal

COMMAND = "python -m benchmarks.engines"
DEPENDENCIES = [
    "numpy", "scipy", "scikit-learn", "pandas", "matplotlib", "seaborn", "pillow", "pynvml", "tqdm", "munch",
    "multiprocess", "dill", "networkx", "pyparsing", "rich", "packaging<26",
    "dp-accounting>=0.4,<0.6", "prv-accountant>=0.2,<0.3",
]  # fmt: skip
PEERS_OWN = ["pfl==0.6.0", "fedlab==1.3.0", "byzfl==0.0.11", "byzpy==0.1.4", "gossipy-dfl==0.0.1"]

ENGINES = ("stacked", "sequential", "vmap")
LR, WARMUP, REPEATS = 0.1, 5, 5


@dataclass(frozen=True)
class Images:
    """6,400 training images of 28 x 28, 64 per client: MNIST, or random images without a data directory."""

    def load(self, folder: Path) -> Dataset:
        mnist = build("dataset", "mnist", {}).load(folder) if os.environ.get("FEDGEN_DATA_DIR") else noisy_pictures()
        chosen = slice(0, None, len(mnist.y) // 6_400)
        return replace(mnist, x=mnist.x[chosen][:6_400], y=mnist.y[chosen][:6_400])


def noisy_pictures() -> Dataset:
    """Learnable data: a random image for each class, with noise."""
    generator = torch.Generator().manual_seed(0)
    pictures = (torch.rand(10, 1, 28, 28, generator=generator) > 0.8).float()
    y = torch.randint(10, (6_500,), generator=generator)
    x = (pictures[y] + 0.3 * torch.rand(len(y), 1, 28, 28, generator=generator)) / 1.3
    return Dataset("noisy pictures", x[:6_400], y[:6_400], x[6_400:], y[6_400:], tuple(map(str, range(10))))


@dataclass(frozen=True)
class Case:
    """One column of the table: model, data and local training; `rounds` are measured at a time."""

    title: str
    model: str
    batch: int
    steps: int
    cohort: int
    rounds: int

    def experiment(self, engine: str) -> Experiment:
        return Experiment(
            data={"clients": 100, "partition": "iid", "validation": 0.0, "dataset": DATASETS[self.model]},
            model={"name": self.model},
            training={
                "engine": engine,
                "batch_size": self.batch,
                "steps": self.steps,
                "optimizer": {"name": "sgd", "lr": LR},
            },
            federation={"cohort": self.cohort},
            runtime={"backend": "serial"},
        )


DATASETS = {"mlp": "digits", "cnn": "benchmarks.engines:Images"}
CASES = {
    "one": Case("MLP, 1 step of batch 32, cohort 50", "mlp", 32, 1, 50, 40),
    "five": Case("MLP, 5 steps of batch 4, cohort 50", "mlp", 4, 5, 50, 20),
    "cnn": Case("CNN, 2 steps of batch 32, cohort 10", "cnn", 32, 2, 10, 6),
}


def work_of(case: Case, warmup: int, repeats: int) -> Work:
    """The input of every system: fedgen's shards, shuffled and cut into batches, and its initial model."""
    federation = Federation(case.experiment("sequential"))
    x, y = federation.dataset.x, federation.dataset.y
    x = x.flatten(1) if case.model == "mlp" else x
    clients = []
    generator = torch.Generator().manual_seed(0)
    for shard in federation.shards:
        order = torch.randperm(len(shard), generator=generator)  # shards are sorted, and MNIST is so by class
        parts = (shard[order].split(case.batch) * case.steps)[: case.steps]
        clients.append([(x[part], y[part]) for part in parts])
    start = federation.method.initial_state(0)["model"]
    return Work(case.model, case.cohort, LR, warmup, case.rounds, repeats, start, clients)


def play_fedgen(case: Case, engine: str, work: Work) -> None:
    """Measure one of fedgen's engines in this process."""
    federation = Federation(case.experiment(engine))
    module = network(work)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        standing = Standing(0, federation.method.initial_state(0))
        session = Session(federation, SerialPool(federation, Interrupt()), standing, journal)

        def play(rounds: int) -> None:
            for _ in range(rounds):
                journal.commit(Star().play_round(session, evaluate=False))

        def outputs(x: torch.Tensor) -> torch.Tensor:
            vector_to_parameters(session.standing.state["model"].clone(), module.parameters())
            return module(x)  # type: ignore[no-any-return]

        measure(work, ("fedgen",), play, outputs)
        journal.close()


@dataclass(frozen=True)
class System:
    """One row of the table: a command and its Python."""

    title: str
    python: Path
    words: tuple[str, ...]
    engine: str = ""
    slow: bool = False

    def measure(self, case: str, work: Path) -> dict[str, Any]:
        """The result that its process prints."""
        words = [*self.words, "--measure", case, self.engine, str(work)] if self.engine else [*self.words, str(work)]
        return measured(self.python, *words)


FEDGEN = [
    System(f"fedgen, {engine}", Path(sys.executable), ("benchmarks.engines",), engine=engine) for engine in ENGINES
]


def peers(folder: Path) -> list[System]:
    """The other simulators, with the Python of their environment."""
    python, home = python_of_peers(folder), "benchmarks.peers."
    return [
        System("pfl-research", python, (f"{home}pfl",)),
        System("FedLab", python, (f"{home}fedlab",)),
        System("ByzFL", python, (f"{home}byzfl",)),
        System("Flower, in memory", python, (f"{home}flower",)),
        System("Flower, simulation on Ray", python, (f"{home}flower", "ray"), slow=True),
    ]


def setup(folder: Path) -> None:
    """Make an environment with fedgen's torch and the other systems; their torchvision is replaced by a stub."""
    venv.create(folder, with_pip=True, clear=True)
    (folder / ".gitignore").write_text("*\n")
    torch_version = version("torch").partition("+")[0]
    for words in ([f"torch=={torch_version}"], DEPENDENCIES, ["--no-deps", *PEERS_OWN], ["flwr[simulation]==1.41.*"]):
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *words], check=True)


Results = dict[tuple[str, str], list[dict[str, Any]]]


def measure_all(plan: Sequence[tuple[System, str]], works: dict[str, Work], passes: int) -> Results:
    """{(system, case): one result a pass}, one process after another."""
    results: Results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, work in works.items():
            work.save(folder / case)
            replace(work, rounds=-(-work.rounds // 10), repeats=2).save(folder / f"{case}-slow")
        for number in range(passes):
            for system, case in plan:
                if number and system.slow:
                    continue
                result = system.measure(case, folder / (f"{case}-slow" if system.slow else case))
                results.setdefault((system.title, case), []).append(result)
                print(f"{number + 1}/{passes} {case}: {system.title} {max(result['rates']):,.0f}/s", file=sys.stderr)
    return results


def rate(results: Results, system: str, case: str, pick: Callable[[list[float]], float] = max) -> float:
    """Client updates per CPU second: `pick` (the best by default) of all repeats of all passes."""
    return pick([rate for result in results.get((system, case), []) for rate in result["rates"]] or [nan])


def loss(results: Results, system: str, case: str) -> str:
    """Mean training loss before and after; every pass repeats the same training."""
    found = results.get((system, case))
    return f"{found[0]['loss_before']:.3f} → {found[0]['loss_after']:.3f}" if found else "–"


def report(results: Results, cases: list[str], chosen: dict[str, str]) -> str:
    """Both tables; chosen: case -> engine that fedgen chooses."""
    names = list(dict.fromkeys(name for name, _ in results))
    titles = [CASES[case].title for case in cases]

    def cell(name: str, case: str) -> str:
        best, middle = rate(results, name, case), rate(results, name, case, median)
        return "–" if isnan(best) else f"{best:,.0f} ({middle:,.0f})"

    rates = [[name, *(cell(name, case) for case in cases)] for name in names]
    for engine in ENGINES:
        shares = [share(results, engine, case, chosen[case]) for case in cases]
        rates.append([f"fedgen, {engine}, over the fastest peer", *shares])
    losses = [[name, *(loss(results, name, case) for case in cases)] for name in names]
    return "\n\n".join(
        (
            "Client updates per CPU second, the best of all repeats (median); **bold**: the engine fedgen chooses.",
            table(("system", *titles), rates),
            "Mean training loss before and after all rounds (the simulation on Ray plays fewer).",
            table(("system", *titles), losses),
        )
    )


def share(results: Results, engine: str, case: str, chosen: str) -> str:
    """Rate of an engine divided by that of the fastest other system."""
    rivals = [rate(results, name, each) for name, each in results if each == case and not name.startswith("fedgen")]
    own = rate(results, f"fedgen, {engine}", case)
    if isnan(own) or not rivals:
        return "–"
    return f"**{own / max(rivals):.1f}**" if engine == chosen else f"{own / max(rivals):.1f}"


def versions(results: Results) -> str:
    """Versions of the packages that the measured processes imported."""
    found = {name: number for each in results.values() for name, number in each[0]["versions"].items()}
    return ", ".join(f"{name} {number}" for name, number in found.items())


def main(tiny: bool, folder: Path, passes: int, names: list[str]) -> None:
    cases = {name: replace(CASES[name], rounds=2) if tiny else CASES[name] for name in names}
    works = {name: work_of(case, *((1, 2) if tiny else (WARMUP, REPEATS))) for name, case in cases.items()}
    if tiny:
        plan = [each for each in zip(FEDGEN, ("one", "cnn", "five"), strict=True) if each[1] in names]
    else:
        plan = [(system, name) for name in cases for system in (*FEDGEN, *peers(folder))]
    load_before = os.getloadavg()[0]
    results = measure_all(plan, works, 1 if tiny else passes)
    chosen = {name: Federation(case.experiment("auto")).experiment.training.engine for name, case in cases.items()}
    words = " --tiny" if tiny else ""
    images = "MNIST" if os.environ.get("FEDGEN_DATA_DIR") else "noisy pictures"
    print(header(COMMAND + words, ("torch", "numpy")))
    print(f"\nMeasured: {versions(results)}; CNN on {images}; ", end="")
    print(f"load average {load_before:.1f} before, {os.getloadavg()[0]:.1f} after.\n")
    print(report(results, list(cases), chosen))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=COMMAND)
    parser.add_argument("--tiny", action="store_true", help="a few rounds of fedgen alone")
    parser.add_argument("--setup", action="store_true", help="make the peers' environment first")
    parser.add_argument("--peers", type=Path, default=PEERS, help="the peers' environment")
    parser.add_argument("--passes", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, help="columns of the table")
    parser.add_argument("--measure", nargs=3, metavar=("CASE", "ENGINE", "WORK"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    if given.measure:
        name, engine, path = given.measure
        play_fedgen(CASES[name], engine, load(path))
    else:
        if given.setup:
            setup(given.peers)
        main(given.tiny, given.peers, given.passes, given.cases)
