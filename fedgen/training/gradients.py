"""What happens to a gradient between the backward pass and the optimiser."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Adjustment:
    """g <- g + control + proximal * (w - w_start), shortened to Euclidean length clip_norm at most.

    proximal: 0 .. infinity (FedProx's mu).  clip_norm: None for no limit.  control[n, d]: a constant added to every
    gradient (SCAFFOLD's c - c_i), None for none.

    Source: T. Li et al., FedProx, arXiv 1812.06127 (2020), equation 2; the proximal term is part of what is clipped.
    """

    proximal: float = 0.0
    clip_norm: float | None = None
    control: Tensor | None = None

    def apply(self, gradients: Tensor, rows: Tensor, start: Tensor, control: Tensor | None) -> None:
        """In place on gradients[k, d] of rows[k, d]; control[k, d] are the rows of `control` that belong to them."""
        if control is not None:
            gradients.add_(control)
        if self.proximal:
            gradients.add_(rows, alpha=self.proximal).sub_(start, alpha=self.proximal)
        if self.clip_norm is not None:
            lengths = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
            gradients.mul_((self.clip_norm / lengths.clamp_min(1e-30)).clamp_max(1.0))
