"""Gossip with and without variance correction: digits over 64 peers, one batch a round, rounds to 80 and 90 %.

python -m benchmarks.gossip [--tiny] [SEED ...] [PART ...]

Parts: topologies, norms, delta, byzantine, events, loss, churn; speed, memory, beside (gossipy, in the environment of
`python -m benchmarks.engines --setup`); example (writes docs/images/gossip-variance.svg);
curves (MNIST, needs FEDGEN_DATA_DIR; writes docs/images/gossip.svg).

Standardised inputs, MLP 64-64-64-10, Xavier initialisation with a different seed at every peer, Dirichlet .5, SGD .01
with momentum .9 and weight decay 5e-4, batch 16, keep .5, evaluated every round (plain averaging every fifth). A cell
is the first round in which the mean accuracy over the honest peers is 80 or 90 %, median of the seeds. speed: CPU
seconds per round without evaluation, samples drawn with replacement. memory: 10,000 peers, 100 rounds, in a separate
process. beside: alternating processes with one thread pinned to one core, on the same samples, shards and 4-regular
graph, one step per merge, without evaluation; gossipy merges the message of one random neighbour (PUSH, MERGE_UPDATE),
fedgen those of all four.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks.gossip import rounds
from benchmarks.gossip.byzantine import byzantine
from benchmarks.gossip.curves import curves, example
from benchmarks.gossip.speed import beside, memory, speed
from benchmarks.harness import header

PARTS: dict[str, Callable[[list[int], bool], str]] = {
    **rounds.PARTS,
    "byzantine": byzantine,
    "speed": speed,
    "memory": memory,
    "beside": beside,
    "example": example,
    "curves": curves,
}
SEEDED = {*rounds.PARTS, "byzantine", "curves"}


def main(parts: list[str], seeds: list[int], tiny: bool) -> None:
    print(header(f"python -m benchmarks.gossip {' '.join(parts)}", ("torch", "numpy", "scipy")))
    for part in parts:
        of_seeds = f" Seeds {', '.join(map(str, seeds))}." if part in SEEDED else ""
        print(f"\n{PARTS[part].__doc__}{of_seeds}\n")
        print(PARTS[part](seeds, tiny), flush=True)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    numbers = [int(word) for word in words if word.isdigit()]
    small = "--tiny" in sys.argv
    main(
        [word for word in words if not word.isdigit()] or list(PARTS),
        numbers or ([0] if small else [0, 1, 2, 3, 4]),
        small,
    )
