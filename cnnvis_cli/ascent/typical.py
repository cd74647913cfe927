"""Pictures that keep the layers below a unit as photographs leave them.

An optimized picture can drive the channels below its unit further than any photograph does, and
then it is a picture for this one network. Yin et al. 2020, "Dreaming to Distill: Data-free
Knowledge Transfer via DeepInversion" (CVPR; section 3.2), keep the means and variances of each
layer at those that batch normalization has stored. Here they are measured on the run's own images,
image by image, so any network has them and a picture depends on no other in its batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnvis_cli.arrays import Floats
from cnnvis_cli.ascent.fourier import unit_rms
from cnnvis_cli.ascent.natural import SMALL, NaturalParameterization

LEAST_SPREAD = 1e-3  # of the layer's mean spread: channels that vary less between images are left
LEAST_VARIANCE = 1e-6  # added to variances over the places, where their root has no slope
FULL = 0.05  # penalty from which on it has its whole weight


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """Mean and deviation of channels over the places of a map, as images have them.

    Two are equal if all their numbers are.
    """

    layers: tuple[tuple[str, int], ...]  # alias and channels of each layer
    middle: Floats  # (2, n) mean over the images, of each channel's mean and of its deviation
    spread: Floats  # (2, n) standard deviation over the images

    @cached_property
    def digest(self) -> str:
        """Return the first 16 hexadecimal digits of the SHA-256 of all numbers."""
        content = hashlib.sha256(repr(self.layers).encode())
        for part in (self.middle, self.spread):
            content.update(np.ascontiguousarray(part, "<f4").tobytes())
        return content.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActivationStatistics) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def parts(self) -> dict[str, tuple[Floats, Floats]]:
        """Return each layer's middle and the inverse of its spread, 0 for what is left out."""
        found, first = {}, 0
        for alias, channels in self.layers:
            own = slice(first, first + channels)
            middle, spread = self.middle[:, own], self.spread[:, own]
            least = LEAST_SPREAD * spread.mean(axis=1, keepdims=True)
            counts = spread > np.maximum(least, np.finfo(np.float32).tiny)
            inverse = np.where(counts, 1 / np.where(counts, spread, 1), 0)
            found[alias] = middle, inverse.astype(np.float32)
            first += channels
        return found


@dataclass(frozen=True)
class TypicalParameterization(NaturalParameterization):
    """A natural picture, whose gradient also keeps the layers below the unit typical.

    gradient = u(dv / dx) - weight min(1, p / `FULL`) u(dp / dx), where v is the unit's value, p the
    `penalty`, and u divides by the root mean square. Where v has no gradient there is none. On
    canvases smaller than `SMALL` the weight is smaller in proportion: within a few pixels a unit's
    own pattern is most of what there is, and photographs seldom hold it whole.
    """

    statistics_below: ActivationStatistics | None = field(default=None)
    weight: float = 1.0
    slack: float = 1.5  # standard deviations between images, which cost nothing

    @property
    def record(self) -> dict[str, Any]:
        """Return the parameters as plain values, the statistics by their digest."""
        below = self.statistics_below
        plain = asdict(replace(self, statistics_below=None))
        return {**plain, "statistics_below": None if below is None else below.digest}

    @property
    def below(self) -> tuple[str, ...]:
        """Return the aliases of the layers that are kept typical."""
        found = self.statistics_below
        return () if found is None else tuple(alias for alias, _ in found.layers)

    @property
    def scaled(self) -> bool:
        return bool(self.below)


def map_statistics(found: Tensor) -> Tensor:
    """Return each channel's mean and deviation over its places: (B, C, ...) -> (B, 2, C)."""
    flat = found.float().flatten(2) if found.dim() > 2 else found.float()[:, :, None]
    mean = flat.mean(dim=2)
    variance = (flat - mean[:, :, None]).square().mean(dim=2)
    return torch.stack([mean, (variance + LEAST_VARIANCE).sqrt()], dim=1)


def penalty(maps: Mapping[str, Tensor], style: TypicalParameterization, like: Tensor) -> Tensor:
    """Return how far images are from typical, (B,), from maps of the layers below, (B, C, ...).

    For each layer this is the mean over channels, and over mean and deviation, of the square by
    which they are more than `slack` standard deviations from the images' mean; then the mean over
    the layers.
    """
    total, below = like.new_zeros(len(like)), style.statistics_below
    parts = below.parts() if below is not None else {}
    for alias, (middle, inverse) in parts.items():
        apart = map_statistics(maps[alias]) - torch.from_numpy(middle).to(like)
        over = (apart * torch.from_numpy(inverse).to(like)).abs() - style.slack
        total = total + over.clamp(min=0).square().mean(dim=(1, 2))
    return total / max(1, len(parts))


def kept_typical(gradient: Tensor, costs: Tensor, against: Tensor, weight: float) -> Tensor:
    """Return the gradient (B, 3, h, w) of `TypicalParameterization`.

    `costs` are the penalties (B,), and `against` their gradient.
    """
    share = min(1.0, max(gradient.shape[2:]) / SMALL)
    strength = weight * share * (costs / FULL).clamp(max=1)
    found = unit_rms(gradient) - strength[:, None, None, None] * unit_rms(against)
    lost = torch.linalg.vector_norm(gradient, float("inf"), dim=(1, 2, 3)) == 0
    return torch.where(lost[:, None, None, None], gradient, found)
