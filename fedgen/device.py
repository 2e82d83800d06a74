"""Where tensors live: the one device of an experiment, chosen here, and the host beside it.

Samples, rows and models are on the device.  Client numbers, counts, weights[n] and numbers of n x n rows are on the
host; so is what is saved, hashed, sent to another process, or given to numpy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedgen.errors import SettingError
from fedgen.parameters import Array

HOST = torch.device("cpu")


def device_of(name: str) -> torch.device:
    """The device of that name: "cpu", or "cuda" for the first GPU that this process sees.

    Raises SettingError where torch sees no such device in this process.
    """
    if name == "cuda" and not torch.cuda.is_available():
        built = "" if torch.version.cuda or torch.version.hip else f", and torch {torch.__version__} is built for CPUs"
        raise SettingError(
            f'training.device = "cuda": expected a GPU, torch sees none here{built}; set training.device = "cpu", or '
            "install torch and a driver for the GPU (https://pytorch.org/get-started/locally)"
        )
    return torch.device("cuda", 0) if name == "cuda" else HOST


def on_host(tensor: Tensor) -> Tensor:
    """The same numbers on the host: the tensor itself where it is there, else one copy."""
    return tensor if tensor.device == HOST else tensor.detach().cpu()


def beside(values: Array, tensor: Tensor) -> Tensor:
    """An array of the host as a tensor where `tensor` is."""
    return torch.from_numpy(values).to(tensor.device)
