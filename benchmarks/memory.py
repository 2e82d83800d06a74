"""Memory of a robust rule at the driver, with updates at the workers: 50 updates of 10 million parameters.

python -m benchmarks.memory [--tiny]

One exchange on two Ray workers, digits, an MLP of 10 million parameters, a cohort of 50; then every rule on the same
updates. Peak: growth of the driver's private memory while the rule runs, sampled every 5 ms; Ray's shared memory is not
private. An aggregate has d numbers of 4 bytes, the updates n d.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import header, table
from benchmarks.scale import private_kib
from fedgen.aggregation.call import rule_of
from fedgen.config import Experiment
from fedgen.contracts import Context, Inbox
from fedgen.federation import Federation
from fedgen.server.pools.pool import Interrupt
from fedgen.server.pools.ray_pool import RayPool
from fedgen.server.rounds.exchange import exchange
from fedgen.server.rounds.session import Session
from fedgen.server.store.checkpoint import Standing
from fedgen.server.store.journal import Journal

RULES: dict[str, tuple[str, list[str]]] = {
    "flag": ("flag", []),
    "geometric median": ("geometric_median", []),
    "Krum": ("krum", []),
    "NNM, CAF": ("caf", ["nnm"]),
    "median": ("median", []),
    "NNM, trimmed mean": ("trimmed_mean", ["nnm"]),
}


def experiment(n: int, hidden: int) -> Experiment:
    return Experiment(
        data={"clients": n, "partition": "iid"},
        model={"hidden": [hidden, hidden]},
        training={"steps": 1, "batch_size": 8, "block": 5},
        federation={"rounds": 1, "cohort": 1.0},
        aggregation={"rule": "median"},
        runtime={"workers": 2},
    )


def peak_mib(call: Callable[[], Any]) -> float:
    """Peak growth of this process's private memory while `call` runs."""
    before, done, highest = private_kib("self"), threading.Event(), [0]

    def watch() -> None:
        while not done.is_set():
            highest[0] = max(highest[0], private_kib("self"))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    done.set()
    watcher.join()
    return max(highest[0] - before, 0) / 1024


def costs(inbox: Inbox, reference: Any, layout: Any) -> list[list[str]]:
    """One row per rule: MiB and seconds."""
    assert inbox.rows is not None
    rows, f, table_rows = inbox.rows, len(inbox.clients) // 5, []
    for name, (rule, wrappers) in RULES.items():
        part = rule_of(rule, wrappers, {})
        context = Context(reference, layout, inbox.clients, f)
        began = time.monotonic()
        peak = peak_mib(lambda part=part, context=context: part.aggregate(rows, inbox.weights, context))
        table_rows.append([name, f"{peak:.0f}", f"{time.monotonic() - began:.1f}"])
    return table_rows


def main(tiny: bool) -> None:
    federation = Federation(experiment(10 if tiny else 50, 100 if tiny else 3_125))
    pool = RayPool(federation, 2, Interrupt())
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        session = Session(federation, pool, Standing(0, federation.method.initial_state(0)), journal)
        broadcast = federation.method.broadcast(session.standing.state, 0)
        inbox = exchange(session, broadcast, federation.cohort(0, everyone=False)).inbox
        rows = costs(inbox, broadcast.start, broadcast.expects)
        pool.close()
        journal.close()
    n, d = len(inbox.clients), broadcast.expects.size
    print(header("python -m benchmarks.memory"))
    print(
        f"\nn = {n}, d = {d:,}: an aggregate is {4 * d / 2**20:.0f} MiB, the updates are {4 * n * d / 2**20:.0f} MiB.\n"
    )
    print(table(("rule", "driver's extra private memory, MiB", "s"), rows))


if __name__ == "__main__":
    main("--tiny" in sys.argv)
