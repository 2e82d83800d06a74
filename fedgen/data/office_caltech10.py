"""Office-Caltech-10: embeddings of pictures of ten things in four domains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from fedgen.data.archive import read_embeddings, scaled
from fedgen.data.dataset import Dataset, Source
from fedgen.errors import SettingError
from fedgen.parameters import Array
from fedgen.registry import register

FILE = Path("office_caltech10") / "mobilenetv1_pw12.npz"
RAW_FEATURES = 1024


@register("dataset", "office_caltech10")
@dataclass(frozen=True, kw_only=True)
class OfficeCaltech10(Source):
    """Office-Caltech-10: embeddings of ten things in four domains (office_caltech10/mobilenetv1_pw12.npz).

    x = z Q[:, :features] sqrt(1024 / features), then scaled to the mean length `norm`; z[s, 1024] are MobileNetV1's,
    Q that of the QR decomposition of a normal matrix drawn with seed 0.

    Every domain is shuffled and cut 70 / 30 into training and test by default_rng(seed).  With `beta` that generator
    draws the shares of the partition "domains" of the same beta and seed first, as the published split does.

    Raises SettingError where the file is not there or damaged, or the partition has another beta or seed.
    Source: B. Gong, Y. Shi, F. Sha, K. Grauman, Geodesic flow kernel for unsupervised domain adaptation, CVPR 2012.
    """

    features: Annotated[int, Field(ge=1, le=RAW_FEATURES, description="columns kept of a random rotation")] = 512
    norm: Annotated[float, Field(gt=0, description="mean Euclidean length of a training embedding")] = 10.0
    seed: Annotated[int, Field(ge=0, description="seed of the cut into training and test samples")] = 0
    beta: Annotated[float | None, Field(gt=0, description="label skew that the cut's generator draws first")] = None

    def check_partition(self, name: str, parameters: Mapping[str, object]) -> None:
        """Raises SettingError where `beta` reproduces the draws of another partition than is asked for."""
        given = parameters.get("beta"), parameters.get("seed")
        if self.beta is not None and (name, *given) != ("domains", self.beta, self.seed):
            raise SettingError(
                f"data.dataset 'office_caltech10': beta = {self.beta} with seed = {self.seed} is for the partition of "
                f"the same beta and seed, and data.partition is {name!r} with beta = {given[0]} and seed = {given[1]}; "
                f'set data.partition = {{ name = "domains", beta = {self.beta}, seed = {self.seed} }}, or leave out '
                "data.dataset.beta"
            )

    def load(self, folder: Path) -> Dataset:
        names = ("x", "y", "domain", "domains", "classes")
        arrays = read_embeddings(folder, FILE, names, "the embeddings of Office-Caltech-10")
        y = arrays["y"].astype(np.int64)
        domain = arrays["domain"].astype(np.int64)
        domains, classes = (tuple(map(str, arrays[name])) for name in ("domains", "classes"))
        training, test = self._cut(domain, len(domains), len(classes))
        rotated = self._rotated(arrays["x"].astype(np.float64))
        x = torch.from_numpy(scaled(rotated, self.norm, like=rotated[training]).astype(np.float32))
        return Dataset(
            name="office_caltech10",
            x=x[training],
            y=torch.from_numpy(y[training]),
            test_x=x[test],
            test_y=torch.from_numpy(y[test]),
            classes=classes,
            domain=torch.from_numpy(domain[training]),
            test_domain=torch.from_numpy(domain[test]),
            domains=domains,
        )

    def _cut(self, domain: Array, domains: int, classes: int) -> tuple[Array, Array]:
        """Sample numbers of the training and of the test part, domain by domain, shuffled."""
        generator = np.random.default_rng(self.seed)
        if self.beta is not None:
            generator.dirichlet([self.beta] * domains, classes)
        shuffled = [generator.permutation(np.flatnonzero(domain == each)) for each in range(domains)]
        cuts = [int(0.7 * len(each)) for each in shuffled]
        pairs = list(zip(shuffled, cuts, strict=True))
        return np.concatenate([s[:cut] for s, cut in pairs]), np.concatenate([s[cut:] for s, cut in pairs])

    def _rotated(self, z: Array) -> Array:
        rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((RAW_FEATURES, RAW_FEATURES)))
        turned: Array = z @ rotation[:, : self.features] * np.sqrt(RAW_FEATURES / self.features)
        return turned
