"""Encoders that learn from samples without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from fedgen.errors import SettingError
from fedgen.registry import register


class Encoder(Protocol):
    """What is registered as an "encoder": parameters that make a frozen module of embeddings."""

    def module(self, x: Tensor) -> nn.Module:
        """Samples[b, ...] -> embeddings[b, d]; x[s, ...] are training samples it may learn from, without labels."""
        ...


class PatchFeatures(nn.Module):
    """Images[b, c, h, w] -> [b, filters * pools^2]: how much patches resemble a filter, averaged over regions."""

    filters: Tensor
    offset: Tensor

    def __init__(self, filters: Tensor, offset: Tensor, size: int, pools: int, threshold: float) -> None:
        super().__init__()
        self.register_buffer("filters", filters)
        self.register_buffer("offset", offset)
        self.size, self.pools, self.threshold = size, pools, threshold

    def forward(self, x: Tensor) -> Tensor:
        patches = standardised(nn.functional.unfold(x, self.size).mT)  # [b, places, c * size^2]
        responses = (patches @ self.filters - self.offset - self.threshold).relu()
        height, width = (side - self.size + 1 for side in x.shape[-2:])
        map_ = responses.mT.reshape(len(x), -1, height, width)
        return nn.functional.adaptive_avg_pool2d(map_, self.pools).flatten(1)


def standardised(patches: Tensor) -> Tensor:
    """Every patch[..., p] minus its mean, over its deviation; flat ones stay near zero."""
    centred = patches - patches.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 0.01).sqrt()


@register("encoder", "patches")
@dataclass(frozen=True, kw_only=True)
class Patches:
    """Features of image patches, learned without labels: whitening, spherical k-means, thresholds, pooling.

    Filters are the centroids of whitened patches; feature (f, region) is the mean over the region of
    max(0, <filter_f, patch> - threshold).  The default has 512 features.

    Raises SettingError for samples that are no images, or smaller than a patch.
    Source: A. Coates, A. Ng, Learning feature representations with k-means, 2012.
    """

    filters: Annotated[int, Field(ge=1, description="centroids")] = 128
    size: Annotated[int, Field(ge=1, description="side of a patch, pixels")] = 6
    pools: Annotated[int, Field(ge=1, description="regions a side that features are pooled over")] = 2
    patches: Annotated[int, Field(ge=1, description="patches that are learned from")] = 50_000
    iterations: Annotated[int, Field(ge=1, description="steps of k-means")] = 10
    threshold: Annotated[float, Field(ge=0, description="weakest resemblance that counts")] = 0.5

    def module(self, x: Tensor) -> nn.Module:
        if x.dim() != 4 or min(x.shape[-2:]) < self.size:
            raise SettingError(
                f"encoder 'patches' needs images [channels, height, width] of at least {self.size} pixels a side, the "
                f"data has {tuple(x.shape[1:])}"
            )
        generator = torch.Generator().manual_seed(0)
        patches = standardised(self._drawn(x, generator))
        mean = patches.mean(0)
        whitening = self._whitening(patches - mean)
        white = (patches - mean) @ whitening
        centroids = self._centroids(white, generator)
        filters = whitening @ centroids.mT
        return PatchFeatures(filters, mean @ filters, self.size, self.pools, self.threshold)

    def _drawn(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """[patches, c * size^2], from random places of random images."""
        image = torch.randint(len(x), (self.patches,), generator=generator)
        row, column = (
            torch.randint(side - self.size + 1, (self.patches,), generator=generator)[:, None] for side in x.shape[-2:]
        )
        inside = torch.arange(self.size)
        rows, columns = (row + inside)[:, :, None], (column + inside)[:, None, :]
        return x[image[:, None, None], :, rows, columns].movedim(-1, 1).flatten(1)

    @staticmethod
    def _whitening(centred: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(centred.double().mT @ centred.double() / len(centred))
        whitening: Tensor = (vectors / (values + 0.1).sqrt()) @ vectors.mT
        return whitening.float()

    def _centroids(self, white: Tensor, generator: torch.Generator) -> Tensor:
        """[filters, p] of length one: each the direction of the patches that it fits best, up to their sign."""
        centroids = torch.randn(self.filters, white.shape[1], generator=generator)
        for _ in range(self.iterations):
            centroids = nn.functional.normalize(centroids, dim=1)
            fits = white @ centroids.mT
            best = fits.abs().argmax(1)
            weights = torch.zeros_like(fits).scatter_(1, best[:, None], fits.gather(1, best[:, None]))
            centroids = weights.mT @ white + centroids
        return nn.functional.normalize(centroids, dim=1)
