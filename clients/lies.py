"""Attacks on one inbox after another: every neighbour of a liar hears something else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedgen.admission import as_sent
from fedgen.clients.attacked import view_of
from fedgen.clients.mail import Mail
from fedgen.contracts import Context, View
from fedgen.federation import Federation
from fedgen.parameters import Array, Layout, Tensors
from fedgen.rows import LocalRows


@dataclass(frozen=True)
class Known:
    """What an attack may know of the k receivers besides their inboxes.

    own[k, d]: their models.  share float64[k]: what all others together are to each.  memory, rule_memory: of each,
    what the attack and the rule returned last.
    """

    receivers: Tensor
    own: Tensor
    share: Array
    round: int
    layout: Layout
    memory: list[Tensors]
    rule_memory: list[Tensors]


@dataclass(frozen=True)
class Lies:
    """places int64[j]: the messages that are lies, among the numbers of `heard`; sent[j, d], weights[j]; memory: of
    each receiver, for the attack's next call."""

    places: Array
    sent: Tensor
    weights: Array
    memory: list[Tensors]


def lies_to_each(federation: Federation, mail: Mail, known: Known) -> Lies:
    """What liars say to each receiver; an attack sees an inbox as the rule will, in differences from its model."""
    lying = federation.liars(torch.from_numpy(mail.messages.senders), known.round).numpy()
    places: list[Array] = [np.empty(0, np.int64)]
    sent, weights, memory = [mail.messages.models[:0]], [mail.messages.weights[:0]], list(known.memory)
    for receiver in range(len(known.own)):
        inside = mail.inbox(receiver)
        messages, mixing = mail.heard.indices[inside].astype(np.int64), mail.heard.data[inside]
        if not lying[messages].any():
            continue
        view = _view(federation, mail, known, receiver)
        rows = mail.messages.models[torch.from_numpy(messages)].sub_(known.own[receiver])
        told, theirs, memory[receiver] = federation.attack.corrupt(LocalRows(rows, federation.slice_width), view)
        lies = told.collect()[view.byzantine] + known.own[receiver]
        changed = (theirs != view.weights).numpy()
        places.append(inside.start + np.flatnonzero(lying[messages]))
        sent.append(as_sent(lies, mail.messages.models.dtype))
        weights.append(np.where(changed, theirs.numpy() / mixing, mail.messages.weights[messages])[lying[messages]])
    return Lies(np.concatenate(places), torch.cat(sent), np.concatenate(weights), memory)


def _view(federation: Federation, mail: Mail, known: Known, receiver: int) -> View:
    inside = mail.inbox(receiver)
    messages = mail.heard.indices[inside]
    context = Context(
        reference=known.own[receiver],
        layout=known.layout,
        clients=torch.from_numpy(mail.messages.senders[messages]),
        f=federation.experiment.aggregation.f,
        memory=known.rule_memory[receiver],
        round=known.round,
        streams=federation.streams,
        share=float(known.share[receiver]),
    )
    weights = torch.from_numpy(mail.heard.data[inside] * mail.messages.weights[messages])
    memory, place = known.memory[receiver], int(known.receivers[receiver])
    return view_of(federation, context, weights, memory=memory, receiver=place)
