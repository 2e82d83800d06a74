"""Speed and memory of simulated peers, also compared with gossipy."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.gossip.setting import CORRECTED, experiment
from benchmarks.harness import PEERS, measured, python_of_peers, table
from benchmarks.peers.common import rates_of
from fedgen import Experiment, run
from fedgen.federation import Federation
from fedgen.process import prepare_process
from fedgen.server.pools.pool import Interrupt, SerialPool
from fedgen.server.rounds.gossip import Gossip
from fedgen.server.rounds.session import Session
from fedgen.server.store.checkpoint import Standing
from fedgen.server.store.journal import Journal


def many(peers: int, rounds: int) -> Experiment:
    """Peers with 22 samples on average, drawn with replacement; evaluated at the end only."""
    drawn = {"name": "benchmarks.gossip.setting:DrawnDigits", "samples": 22 * peers}
    return experiment(
        {
            "data": {"dataset": drawn, "clients": peers},
            "federation": {"rounds": rounds, "evaluate_every": 10_000},
            "aggregation": CORRECTED,
        }
    )


def speed(seeds: list[int], tiny: bool) -> str:
    """Node updates per CPU second, including correction."""
    rows = []
    for peers in (64,) if tiny else (64, 256, 1_024):
        seconds: list[float] = []
        with timed_rounds(seconds), tempfile.TemporaryDirectory() as folder:
            run(many(peers, 10 if tiny else max(40, 25_600 // peers)), Path(folder) / "run")
        rates = peers / np.array(seconds[2:])
        rows.append((peers, f"{np.median(rates):,.0f}", f"{np.quantile(rates, 0.9):,.0f}"))
    return table(("peers", "node-updates a CPU second, median round", "best tenth"), rows)


class timed_rounds:  # noqa: N801
    """Collects the CPU seconds of every gossip round inside the context."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds, self.before = seconds, Gossip.play_round

    def __enter__(self) -> None:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.process_time()
            record = self.before(*arguments, **named)
            self.seconds.append(time.process_time() - began)
            return record

        Gossip.play_round = timed  # type: ignore[method-assign]

    def __exit__(self, *exception: object) -> None:
        Gossip.play_round = self.before  # type: ignore[method-assign]


def memory(seeds: list[int], tiny: bool) -> str:
    """10,000 peers x 100 rounds in a separate process."""
    peers, rounds = (100, 3) if tiny else (10_000, 100)
    script = f"from benchmarks.gossip.speed import alone; alone({peers}, {rounds})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, peak = done.stdout.split()
    return table(("peers", "rounds", "CPU seconds", "peak memory, GB"), [(peers, rounds, seconds, peak)])


def alone(peers: int, rounds: int) -> None:
    """The run of `memory`."""
    with tempfile.TemporaryDirectory() as folder:
        run(many(peers, rounds), Path(folder) / "run")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{time.process_time():.0f} {peak / 1e9:.2f}")


def beside(seeds: list[int], tiny: bool) -> str:
    """256 peers, fedgen with correction and gossipy: node updates per CPU second, best of 15 repeats (median)."""
    peers, passes, theirs = (32, 1, None) if tiny else (256, 3, python_of_peers(PEERS))
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        torch.save(work_of(peers, tiny), work)
        for _ in range(passes):
            found = {"fedgen": measured(Path(sys.executable), "benchmarks.gossip.speed", str(work))}
            if theirs is not None:
                found["gossipy-dfl"] = measured(theirs, "benchmarks.peers.gossipy", str(work))
            for system, result in found.items():
                name = f"{system} {result['versions'].get(system, '')}".strip()
                rates.setdefault(name, []).extend(result["rates"])
                print(name, [round(rate) for rate in result["rates"]], file=sys.stderr, flush=True)
    best, middle = ([pick(each) for each in rates.values()] for pick in (max, median))
    rows = [[name, f"{max(each):,.0f} ({median(each):,.0f})"] for name, each in rates.items()]
    if len(rates) == 2:
        rows.append(["ratio", f"{best[0] / best[1]:.1f} ({middle[0] / middle[1]:.1f})"])
    return table(("system", f"{peers} peers"), rows)


def work_of(peers: int, tiny: bool) -> dict[str, Any]:
    """The input of every system: shards[N] of (x[s, 64], y[s]), adjacency bool[N, N], rounds and repeats."""
    federation = Federation(many(peers, 1))
    x, y = federation.dataset.x.flatten(1), federation.dataset.y
    return {
        "shards": [(x[shard], y[shard]) for shard in federation.shards],
        "hears": torch.from_numpy(federation.network.graph(0).hears.toarray() > 0),
        "warmup": 2,
        "rounds": 2 if tiny else 5,
        "repeats": 2 if tiny else 5,
    }


def play_fedgen(work: dict[str, Any]) -> dict[str, Any]:
    """fedgen's rates, in this process."""
    prepare_process(threads=1)
    peers = len(work["shards"])
    federation = Federation(many(peers, 10_000))
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        session = Session(
            federation,
            SerialPool(federation, Interrupt()),
            Standing(0, Gossip().initial_state(federation)),
            journal,
        )

        def play(rounds: int) -> None:
            for _ in range(rounds):
                journal.commit(Gossip().play_round(session, evaluate=False))

        play(work["warmup"])
        # Many rounds fit into the time that gossipy takes for one.
        rates = rates_of(play, peers, 10 * work["rounds"], work["repeats"])
        journal.close()
    return {"rates": rates, "versions": {}}


if __name__ == "__main__":
    print(json.dumps(play_fedgen(torch.load(sys.argv[1]))))
