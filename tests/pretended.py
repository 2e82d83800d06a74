"""A GPU that is not there: its tensors compute on the CPU, say they are elsewhere, and refuse to meet the host's.

Their device is torch's "meta", the one besides the CPU that autograd knows on every machine.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

aten = torch.ops.aten
GPU = torch.device("meta")
COPIES = {aten._to_copy, aten.copy_, aten.copy}
"""What may take tensors of both."""
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index}
"""What takes indices of the host for a tensor of the GPU, as CUDA does."""


class OnGpu(Tensor):
    """A tensor of the pretended GPU; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=GPU,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"OnGpu({self.held!r})"

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: OnGpu) -> None:
        """A parameter made a view of another tensor has that one's numbers."""
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.held = other.held

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> OnGpu:
        return OnGpu(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The call on what the tensors hold; what results is where the tensors were, or where the call asks for.

    Raises RuntimeError where tensors of GPU and host meet.
    """
    flat, _ = tree_flatten((args, kwargs))
    tensors = [each for each in flat if isinstance(each, Tensor)]
    gpu = any(isinstance(each, OnGpu) for each in tensors)
    wanted = kwargs.get("device")
    if gpu and func.overloadpacket not in COPIES:
        strays = [each for each in _must_agree(func, args, tensors) if not isinstance(each, OnGpu)]
        if any(each.dim() for each in strays):
            raise RuntimeError(f"{func}: expected all tensors on one device, found the pretended GPU and cpu")
    if wanted is not None:
        gpu = torch.device(wanted).type == "meta"
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if func.overloadpacket is aten.copy_:
        gpu = isinstance(args[0], OnGpu)
    result = func(
        *tree_map_only(OnGpu, lambda each: each.held, args), **tree_map_only(OnGpu, lambda each: each.held, kwargs)
    )
    if not gpu:
        return result
    known = {id(each.held): each for each in tensors if isinstance(each, OnGpu)}
    return tree_map_only(Tensor, lambda each: known[id(each)] if id(each) in known else OnGpu(each), result)


def _must_agree(func: Any, args: Any, tensors: list[Tensor]) -> list[Tensor]:
    if func.overloadpacket not in INDEXED:
        return tensors
    return [args[0], *(each for each in args[2:] if isinstance(each, Tensor))]


class PretendedGpu(TorchDispatchMode):
    """Has tensors made on, and copied to, `GPU` as `OnGpu`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})
