"""Churn: a peer that comes back pulls the model of a neighbour before it trains."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedgen.admission import judge
from fedgen.clients.attacked import view_of
from fedgen.clients.cohort import arrived
from fedgen.contracts import Context
from fedgen.federation import Federation
from fedgen.parameters import Array, Tensors
from fedgen.rows import LocalRows


def returning(federation: Federation, round: int) -> Array:
    """int64[k]: peers that were absent in the last round and are present in this one."""
    network = federation.network
    return np.flatnonzero(network.gone(round - 1) & ~network.gone(round))


def pulled(federation: Federation, state: Tensors, round: int) -> Tensors:
    """The state after every returning peer has replaced its model by the answer of a neighbour.

    A peer without a present neighbour, or whose answer is rejected, keeps its old model.
    """
    network = federation.network
    back = returning(federation, round)
    if not len(back):
        return state
    graph = network.graph(round)
    there = ~network.gone(round) & ~network.gone(round - 1)
    near = {peer: graph.inbox(peer)[there[graph.inbox(peer)]] for peer in back.tolist()}
    asking = torch.tensor([peer for peer in near if len(near[peer])], dtype=torch.int64)
    words = federation.streams.words("pull", round, asking, 1)[:, 0]
    asked = torch.tensor(
        [int(near[peer][word % len(near[peer])]) for peer, word in zip(asking.tolist(), words.tolist(), strict=True)],
        dtype=torch.int64,
    )
    answers, read = _answers(federation, state["model"], torch.from_numpy(np.flatnonzero(there)), asked, round)
    models = state["model"].clone()
    layout = federation.method.layout
    alike = torch.ones(len(asking), dtype=torch.float64)
    differences = LocalRows(answers - models[asking])
    admitted = read & judge(differences, alike, models[asking], layout, federation.limits("train")).mask
    models[asking[admitted]] = answers[admitted]
    return {**state, "model": models}


def _answers(federation: Federation, models: Tensor, there: Tensor, asked: Tensor, round: int) -> tuple[Tensor, Tensor]:
    """(answers[k, d] of the asked peers, bool[k]: whether they can be decoded).

    The attack sees the models[N, d] of all present peers.
    """
    byzantine = federation.byzantine_among(asked, round)
    readable = torch.ones(len(asked), dtype=torch.bool)
    if not byzantine.any():
        return models[asked], readable
    layout = federation.method.layout
    f = federation.experiment.aggregation.f
    equal = torch.ones(len(there), dtype=torch.float64)
    context = Context(torch.zeros(layout.size), layout, there, f, round=round, streams=federation.streams)
    view = view_of(federation, context, equal, start=models[there])
    attacked = federation.attack.corrupt(LocalRows(models[there], federation.slice_width), view)[0].collect()
    rows = attacked[torch.searchsorted(there, asked)].to(models.dtype)
    rows, _, unread = arrived(federation, layout, round, asked, rows, torch.ones(len(asked), dtype=torch.float64))
    readable[list(unread)] = False
    return rows, readable
