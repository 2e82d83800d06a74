"""Topologies: each mixes as fast as its second eigenvalue says; errors name what is wrong with a graph."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedgen import registry
from fedgen.config import Experiment
from fedgen.errors import SettingError
from fedgen.parameters import Array
from fedgen.server.cli import main
from fedgen.topology.graph import Graph
from fedgen.topology.mixing import Uniform, matrix
from fedgen.topology.network import Network, network_of
from fedgen.topology.spectrum import effective_neighbours, second_eigenvalue

PEERS = 16
TOPOLOGIES = list(registry.members("topology"))
MIXINGS = ["uniform", "metropolis_hastings"]
DIRECTED = {"exponential", "one_peer_exponential", "epidemic"}


@pytest.fixture
def network(tmp_path: Path) -> Callable[..., Network]:
    """network(topology, **keys of [gossip]) -> the network of 16 peers; a file holds a ring with two chords."""

    def make(topology: str, peers: int = PEERS, **keys: object) -> Network:
        choice: dict[str, object] = {"name": topology}
        if topology == "file":
            edges = [(peer, (peer + 1) % peers) for peer in range(peers)] + [(0, peers // 2), (1, peers // 3)]
            (tmp_path / "graph.txt").write_text("\n".join(f"{i} {j}" for i, j in edges))
            choice["path"] = str(tmp_path / "graph.txt")
        gossip = {"topology": choice, **keys}
        return network_of(Experiment(data={"clients": peers}, federation={"mode": "gossip"}, gossip=gossip))

    return make


def distances(network: Network, rounds: int) -> Array:
    """float64[rounds + 1]: how far the peers' numbers are from their mean, mixing alone."""
    x = np.random.default_rng(1).normal(size=(network.peers, 50))
    measured = [np.linalg.norm(x - x.mean(0))]
    first = network.matrix(0)
    for round in range(rounds):
        x = (first if network.static else network.matrix(round)) @ x
        measured.append(np.linalg.norm(x - x.mean(0)))
    return np.array(measured)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_peers_agree_as_fast_as_the_second_eigenvalue_says(
    network: Callable[..., Network], topology: str, mixing: str
) -> None:
    protocol = "push_pull" if topology in DIRECTED and mixing == "metropolis_hastings" else "push"
    mixed = network(topology, mixing=mixing, protocol=protocol)
    if not mixed.static:
        assert distances(mixed, 400)[-1] < 1e-6
        return
    second = second_eigenvalue(mixed.matrix(0))
    if second < 1e-9:  # all agree at once
        assert distances(mixed, 1)[-1] < 1e-9
        return
    rounds = np.arange(int(log(1e-3) / log(second)), int(log(1e-9) / log(second)))
    slope, _ = np.polyfit(rounds, np.log(distances(mixed, int(rounds[-1]))[rounds]), 1)
    assert slope == pytest.approx(log(second), rel=0.05)


@pytest.mark.parametrize("redraw", [1, 3])
@pytest.mark.parametrize("topology", ["k_regular", "small_world", "scale_free", "erdos_renyi"])
def test_redrawn_graphs_agree_too(topology: str, redraw: int) -> None:
    choice = {"name": topology, "redraw": redraw}
    network = network_of(
        Experiment(data={"clients": PEERS}, federation={"mode": "gossip"}, gossip={"topology": choice})
    )
    assert distances(network, 400)[-1] < 1e-6
    drawn = [network.graph(round).hears.toarray() for round in range(2 * redraw)]
    assert (drawn[0] == drawn[redraw - 1]).all()
    assert (drawn[0] != drawn[redraw]).any()


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_matrix_is_stochastic_and_has_the_pattern_of_the_graph(
    network: Callable[..., Network], topology: str
) -> None:
    mixed = network(topology, keep=0.3)
    graph, dense = mixed.graph(0), mixed.matrix(0).toarray()
    assert dense.sum(1) == pytest.approx(np.ones(PEERS))
    np.fill_diagonal(dense, 0)
    assert ((dense > 0) == (graph.hears.toarray() > 0)).all()
    hearing = graph.degrees > 0
    assert dense.sum(1)[hearing] == pytest.approx(0.7)
    assert all(graph.inbox(peer).tolist() == np.flatnonzero(dense[peer]).tolist() for peer in range(PEERS))


def test_metropolis_hastings_keeps_the_mean(network: Callable[..., Network]) -> None:
    assert network("scale_free", mixing="metropolis_hastings").matrix(0).sum(0) == pytest.approx(np.ones(PEERS))


def test_metropolis_hastings_refuses_directions(network: Callable[..., Network]) -> None:
    with pytest.raises(SettingError, match="push_pull"):
        network("exponential", mixing="metropolis_hastings").matrix(0)


def test_keep_is_of_uniform_mixing() -> None:
    with pytest.raises(SettingError, match="leave keep out"):
        Experiment(federation={"mode": "gossip"}, gossip={"mixing": "metropolis_hastings", "keep": 0.3})


def test_protocols_are_directions(network: Callable[..., Network]) -> None:
    push, pull, both = (
        network("epidemic", protocol=protocol).graph(5).hears.toarray() for protocol in ("push", "pull", "push_pull")
    )
    assert (pull == push.T).all()
    assert (both == np.maximum(push, pull)).all()
    assert (pull.sum(1) == 4).all()


@given(st.integers(2, 40), st.integers(0, 10_000))
def test_effective_neighbours_of_any_graph_are_those_of_its_eigenvalues(peers: int, seed: int) -> None:
    """1 / (1 - g) / mean_i l_i^2 / (1 - g l_i^2), for symmetric W."""
    graph = Graph.of(nx.gnp_random_graph(peers, 0.3, seed=seed), peers)
    degrees = np.maximum(graph.degrees, 1)
    mixing = graph.hears.toarray() / degrees.max()
    np.fill_diagonal(mixing, 1 - mixing.sum(1))
    squares = np.linalg.eigvalsh(mixing) ** 2
    expected = 10 / np.mean(squares / (1 - 0.9 * squares))
    assert effective_neighbours(mixing) == pytest.approx(expected, rel=1e-3)


def test_large_graphs_are_estimated(monkeypatch: pytest.MonkeyPatch, network: Callable[..., Network]) -> None:
    mixing = network("scale_free", peers=300).matrix(0)
    monkeypatch.setattr("fedgen.topology.spectrum.EXACT", 300)
    exact = second_eigenvalue(mixing), effective_neighbours(mixing)
    monkeypatch.setattr("fedgen.topology.spectrum.DENSE", 10)
    monkeypatch.setattr("fedgen.topology.spectrum.EXACT", 10)
    assert second_eigenvalue(mixing) == pytest.approx(exact[0], rel=1e-4)
    assert effective_neighbours(mixing) == pytest.approx(exact[1], rel=0.05)


def test_one_direction_is_enough_to_hear() -> None:
    mixing = matrix(Uniform(0.0), Graph.of(nx.DiGraph([(0, 1)]), 2)).toarray()
    assert mixing.tolist() == [[1.0, 0.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("peers", "topology", "words"),
    [
        (
            64,
            {"name": "erdos_renyi", "degree": 1.0},
            "parts that cannot reach one another: .* peers .*; .*give it more",
        ),
        (5, {"name": "k_regular", "degree": 3}, "an edge has two ends"),
        (4, {"name": "k_regular", "degree": 4}, "at most 3"),
        (4, {"name": "epidemic", "fanout": 4}, "only 3 others"),
        (13, "torus", "try 4 \\* 4 = 16"),
        (4, {"name": "file", "path": "nowhere.txt"}, "no graph can be read from 'nowhere.txt'"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_impossible_graphs_are_refused(peers: int, topology: object, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        network_of(
            Experiment(data={"clients": peers}, federation={"mode": "gossip"}, gossip={"topology": topology})
        ).graph(0)


def test_files(tmp_path: Path) -> None:
    def graph(name: str, text: str, peers: int) -> Graph:
        (tmp_path / name).write_text(text)
        choice = {"name": "file", "path": str(tmp_path / name)}
        experiment = Experiment(data={"clients": peers}, federation={"mode": "gossip"}, gossip={"topology": choice})
        return network_of(experiment).graph(0)

    edges = graph("graph.txt", "# a triangle and a tail\n10 2\n2 1\n1 10\n10 11\n", 4)
    assert [edges.inbox(peer).tolist() for peer in range(4)] == [[1, 2], [0, 2], [0, 1, 3], [2]]
    nx.write_graphml(nx.DiGraph([("a", "b"), ("b", "c"), ("c", "a")]), tmp_path / "ring.graphml")
    directed = graph("ring.graphml", (tmp_path / "ring.graphml").read_text(), 3)
    assert [directed.inbox(peer).tolist() for peer in range(3)] == [[2], [0], [1]]
    with pytest.raises(SettingError, match=r"set data\.clients = 4"):
        graph("graph.txt", "0 1\n1 2\n2 3\n", 5)
    with pytest.raises(SettingError, match="2 parts that cannot reach one another: 2 peers 0, 1; 2 peers 2, 3"):
        graph("graph.txt", "0 1\n2 3\n", 4)
    with pytest.raises(SettingError, match="holds no edge"):
        graph("graph.txt", "", 4)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_command_draws_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str) -> None:
    file = tmp_path / "experiment.toml"
    file.write_text('[data]\nclients = 16\n[federation]\nmode = "gossip"\n[gossip]\ntopology = "ring"\n')
    picture = tmp_path / f"ring.{ending}"
    assert main(["topology", str(file), "--out", str(picture)]) == 0
    told = dict(line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines())
    told = {name.strip(): value.strip() for name, value in told.items()}
    expected = 0.5 + 0.5 * np.cos(2 * np.pi / 16)
    assert told["degree"] == "2"
    assert float(told["|lambda_2|"]) == pytest.approx(expected, rel=1e-3)
    assert float(told["spectral gap"]) == pytest.approx(1 - expected, rel=1e-3)
    assert float(told["effective neighbours"]) > 1
    assert picture.read_bytes()[:5] in (b"<?xml", b"\x89PNG\r")
    assert main(["topology", str(file), "--out", str(tmp_path / "ring.jpg")]) == 2
