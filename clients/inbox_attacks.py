"""Attacks on single inboxes: Byzantine peers send each neighbour a different model."""

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
class AttackKnowledge:
    """What an attack knows of the k receivers besides their inboxes.

    own[k, d]: models of the receivers. share float64[k]: total mixing weight of the neighbours (1 - self-weight).
    memory, rule_memory: per receiver, the memory that the attack and the rule last returned.
    """

    receivers: Tensor
    own: Tensor
    share: Array
    round: int
    layout: Layout
    memory: list[Tensors]
    rule_memory: list[Tensors]


@dataclass(frozen=True)
class AttackedMessages:
    """Messages after the attack.

    places int64[j]: positions of the replaced messages among the entries of `heard`. sent[j, d], weights[j]: their new
    contents. memory: per receiver, for the next call of the attack.
    """

    places: Array
    sent: Tensor
    weights: Array
    memory: list[Tensors]


def attack_inboxes(federation: Federation, mail: Mail, known: AttackKnowledge) -> AttackedMessages:
    """Attack the inbox of every receiver. As for the rule, rows are differences from the receiver's model."""
    byzantine = federation.byzantine_among(torch.from_numpy(mail.messages.senders), known.round).numpy()
    places: list[Array] = [np.empty(0, np.int64)]
    sent = [mail.messages.models[:0]]
    weights = [mail.messages.weights[:0]]
    memory = list(known.memory)
    for receiver in range(len(known.own)):
        inside = mail.inbox(receiver)
        messages = mail.heard.indices[inside].astype(np.int64)
        mixing = mail.heard.data[inside]
        if not byzantine[messages].any():
            continue
        view = _view(federation, mail, known, receiver)
        rows = mail.messages.models[torch.from_numpy(messages)].sub_(known.own[receiver])
        attacked, scaled, memory[receiver] = federation.attack.corrupt(LocalRows(rows, federation.slice_width), view)
        rows_sent = attacked.collect()[view.byzantine] + known.own[receiver]
        changed = (scaled != view.weights).numpy()
        places.append(inside.start + np.flatnonzero(byzantine[messages]))
        sent.append(as_sent(rows_sent, mail.messages.models.dtype))
        weights.append(np.where(changed, scaled.numpy() / mixing, mail.messages.weights[messages])[byzantine[messages]])
    return AttackedMessages(np.concatenate(places), torch.cat(sent), np.concatenate(weights), memory)


def _view(federation: Federation, mail: Mail, known: AttackKnowledge, receiver: int) -> View:
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
    memory = known.memory[receiver]
    place = int(known.receivers[receiver])
    return view_of(federation, context, weights, memory=memory, receiver=place)
