"""Atomic checkpoints of a run: named tensors and JSON metadata; random generators have no state to save."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedgen.clients.merging import Memories
from fedgen.device import on_host
from fedgen.errors import FedgenError
from fedgen.parameters import Tensors, canonical
from fedgen.server.store.client_store import ClientStore
from fedgen.server.store.disk import writing
from fedgen.server.store.parts import CHECKPOINTS


@dataclass
class Standing:
    """The complete state of a run between two rounds; `round` is the next one to play.

    rule_memory, attack_memory: of the server, or {name: [N, ...]} of all peers. memories: of single inboxes.
    """

    round: int
    state: Tensors
    clients: ClientStore = field(default_factory=ClientStore)
    rule_memory: Tensors = field(default_factory=dict)
    attack_memory: Tensors = field(default_factory=dict)
    memories: Memories = field(default_factory=Memories)
    post: Tensors = field(default_factory=dict)

    def groups(self) -> dict[str, Tensors]:
        """All tensors by kind."""
        return {
            "state": self.state,
            "client": self.clients.tensors(),
            "rule": self.rule_memory,
            "attack": self.attack_memory,
            "inbox_rule": flat(self.memories.rule),
            "inbox_attack": flat(self.memories.attack),
            "post": self.post,
        }

    def tensors(self) -> Tensors:
        """All tensors under "<group>/<name>"; memories of inboxes under "<group>/<receiver>/<name>"."""
        groups = self.groups().items()
        return {f"{group}/{name}": tensor for group, tensors in groups for name, tensor in tensors.items()}

    def on(self, device: torch.device) -> Standing:
        """A copy with state and memories on that device; client state stays on the host."""
        state, rule, attack = (
            {name: canonical(value.to(device)) for name, value in held.items()}
            for held in (self.state, self.rule_memory, self.attack_memory)
        )
        return replace(self, state=state, rule_memory=rule, attack_memory=attack)

    @classmethod
    def restore(cls, round: int, tensors: Tensors) -> Standing:
        """The inverse of `tensors`."""
        groups: dict[str, Tensors] = {group: {} for group in cls(0, {}).groups()}
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = canonical(tensor)
        return cls(
            round=round,
            state=groups["state"],
            clients=ClientStore.restore(groups["client"]),
            rule_memory=groups["rule"],
            attack_memory=groups["attack"],
            memories=Memories(_nested(groups["inbox_rule"]), _nested(groups["inbox_attack"])),
            post=groups["post"],
        )


def flat(memories: Mapping[int, Tensors]) -> Tensors:
    """{"<receiver>/<name>": tensor}."""
    return {f"{receiver}/{name}": value for receiver, memory in memories.items() for name, value in memory.items()}


def _nested(flat: Tensors) -> dict[int, Tensors]:
    """The inverse of `flat`."""
    memories: dict[int, Tensors] = {}
    for key, value in flat.items():
        receiver, _, name = key.partition("/")
        memories.setdefault(int(receiver), {})[name] = value
    return memories


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of sorted names, shapes, dtypes and little-endian bytes."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = on_host(tensors[name]).contiguous()
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        if tensor.numel() == 0:  # torch cannot view an empty tensor as bytes
            continue
        flat = tensor.reshape(-1).view(torch.uint8).numpy()
        if sys.byteorder == "big":
            flat = np.ascontiguousarray(flat.reshape(-1, tensor.element_size())[:, ::-1])
        sha.update(flat.data)
    return sha.hexdigest()


def save_tensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically: temporary name, fsync, rename, fsync of the folder.

    Raises Unwritable.
    """
    scratch = path.with_suffix(".tmp")
    with writing(path, scratch):
        save_file(_apart(tensors), scratch, metadata)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        scratch.chmod(0o666 & ~umask)  # safetensors creates private files
        scratch.replace(path)
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _apart(tensors: Tensors) -> Tensors:
    """The tensors on the host, copied where they share memory, which safetensors does not allow."""
    apart = {}
    taken = set()
    for name, given in tensors.items():
        tensor = on_host(given)
        memory = tensor.untyped_storage()
        alone = tensor.is_contiguous() and memory.nbytes() == tensor.nbytes and memory.data_ptr() not in taken
        taken.add(memory.data_ptr())
        apart[name] = tensor if alone else tensor.clone(memory_format=torch.contiguous_format)
    return apart


@dataclass(frozen=True)
class Facts:
    """Metadata of a checkpoint: byte offsets of the logs, identity of the experiment, wall-clock seconds so far."""

    offsets: dict[str, int]
    identity: str
    seconds: float


def save(folder: Path, standing: Standing, facts: Facts, keep: int) -> None:
    """Write RUN/checkpoints/round-NNNNNN.safetensors and drop all but the newest `keep`."""
    home = folder / CHECKPOINTS
    with writing(home):
        home.mkdir(exist_ok=True)
    tensors = standing.tensors()
    metadata = {"round": standing.round, "sha256": digest(tensors), **asdict(facts)}
    save_tensors(home / f"round-{standing.round:06d}.safetensors", tensors, {"fedgen": json.dumps(metadata)})
    with writing(home):
        for old in sorted(home.glob("round-*.safetensors"))[:-keep]:
            old.unlink()


def load_newest(folder: Path) -> tuple[Standing, Facts, list[str]] | None:
    """(standing, facts, problems of newer files) of the newest valid checkpoint; None without checkpoints.

    Raises FedgenError if checkpoints exist and none of them is valid.
    """
    troubles: list[str] = []
    paths = sorted((folder / CHECKPOINTS).glob("round-*.safetensors"), reverse=True)
    for path in paths:
        try:
            standing, facts = _load(path)
            return standing, facts, troubles
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            troubles.append(f"{path.name} is damaged ({error})")
    if paths:
        raise FedgenError(
            f"no checkpoint in {folder / CHECKPOINTS} can be read: {'; '.join(troubles)}; start the run again"
        )
    return None


def _load(path: Path) -> tuple[Standing, Facts]:
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["fedgen"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if digest(tensors) != metadata["sha256"]:
        raise ValueError("its contents do not match its checksum")
    facts = Facts(offsets=metadata["offsets"], identity=metadata["identity"], seconds=metadata["seconds"])
    return Standing.restore(metadata["round"], tensors), facts
