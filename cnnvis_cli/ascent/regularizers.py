"""Regularizers that keep an optimized image recognizable: the four of Yosinski et al. and TV.

Each maps a batch of images x, mean-subtracted in 0..255 units (B, 3, H, W), to a slightly more
regular one. `gradient` was taken before the step just made; `iteration` counts from 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's own abbreviation
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from cnnvis_cli.registry import Registry
from cnnvis_cli.validation import STRICT, Number, Whole


class Regularizer(Protocol):
    """The operator r_theta of the paper's equation (2)."""

    def __call__(self, x: Tensor, gradient: Tensor, iteration: int) -> Tensor: ...

    def phase(self, iteration: int) -> Hashable:
        """Return all that it uses of the iteration's number: in equal phases it does the same."""


class Unvarying:
    """A regularizer that does the same in every iteration."""

    def phase(self, iteration: int) -> Hashable:
        return None


def phase_of(regularizers: Sequence[Regularizer], iteration: int) -> Hashable:
    """Return the phases of several regularizers."""
    return tuple(each.phase(iteration) for each in regularizers)


REGULARIZERS: Registry[type[Regularizer]] = Registry("regularizer")


@REGULARIZERS.register("decay")
@dataclass(frozen=True, config=STRICT)
class Decay(Unvarying):
    """L2 decay: x (1 - rate), against a few extreme pixels (section 3)."""

    rate: Number = Field(ge=0, le=1)

    def __call__(self, x: Tensor, gradient: Tensor, iteration: int) -> Tensor:
        return x * (1 - self.rate) if self.rate else x


@REGULARIZERS.register("blur")
@dataclass(frozen=True, config=STRICT)
class Blur:
    """Gaussian blur of each channel, sigma `width` pixels, each `every` iterations (section 3).

    As scipy's gaussian_filter: symmetric reflection at the edge, cut off at 4 sigma. It applies
    at iteration 0 too, as in the deep-visualization-toolbox.
    """

    width: Number = Field(ge=0, le=1000)
    every: Whole = Field(ge=0)

    def phase(self, iteration: int) -> Hashable:
        return bool(self.width and self.every) and iteration % self.every == 0

    def __call__(self, x: Tensor, gradient: Tensor, iteration: int) -> Tensor:
        if not self.phase(iteration):
            return x
        if x.device.type == "cuda":
            return _convolved(x, self.width)
        pixels = x.permute(0, 2, 3, 1).contiguous()  # (B, H, W, 3)
        for dim in (1, 2):
            pixels = _blurred_along(pixels, dim, self.width)
        return pixels.permute(0, 3, 1, 2)  # channels last


def _convolved(x: Tensor, width: float) -> Tensor:
    """Blur by two depthwise convolutions, which move a fifth of the bytes on a GPU."""
    kernel = _kernel(width, x.device, x.dtype)
    for dim in (2, 3):
        padded = x.index_select(dim, _reflected(x.shape[dim], kernel.shape[2] // 2, x.device))
        x = F.conv2d(padded, kernel if dim == 2 else kernel.mT, groups=3)
    return x.contiguous(memory_format=torch.channels_last)


@lru_cache(maxsize=256)
def _kernel(width: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the Gaussian filter along the rows of each colour: (3, 1, 2 radius + 1, 1)."""
    weights = torch.tensor(gaussian(width), dtype=dtype).to(device)
    return weights.view(1, 1, -1, 1).repeat(3, 1, 1, 1)


def _blurred_along(x: Tensor, dim: int, width: float) -> Tensor:
    """Apply scipy's one-dimensional Gaussian filter along a dimension, as a sum of shifted images.

    A product with a matrix would give other last bits in other batches.
    """
    size, weights = x.shape[dim], gaussian(width)
    radius = len(weights) // 2
    if radius <= size:
        ends = x.narrow(dim, 0, radius).flip(dim), x.narrow(dim, size - radius, radius).flip(dim)
        padded = torch.cat([ends[0], x, ends[1]], dim)
    else:
        padded = x.index_select(dim, _reflected(size, radius, x.device))
    found = padded.narrow(dim, 0, size) * weights[0]
    for k, weight in enumerate(weights[1:], start=1):
        found.add_(padded.narrow(dim, k, size), alpha=weight)
    return found


@lru_cache(maxsize=256)
def gaussian(width: float) -> tuple[float, ...]:
    """Return the weights of scipy's Gaussian filter, sigma `width` pixels, cut off at 4 sigma."""
    radius = int(4 * width + 0.5)
    impulse = np.zeros(2 * radius + 1)
    impulse[radius] = 1
    return tuple(gaussian_filter1d(impulse, width, mode="constant").tolist())


@lru_cache(maxsize=256)
def _reflected(size: int, radius: int, device: torch.device) -> Tensor:
    """Return the pixels' numbers in a row that both ends extend by symmetric reflection."""
    return torch.from_numpy(np.pad(np.arange(size), radius, mode="symmetric")).to(device)


@REGULARIZERS.register("norm")
@dataclass(frozen=True, config=STRICT)
class ClipNorm(Unvarying):
    """Zero the pixels whose norm over the channels is below a percentile (section 3)."""

    percentile: Number = Field(ge=0, le=100)

    def __call__(self, x: Tensor, gradient: Tensor, iteration: int) -> Tensor:
        if not self.percentile:
            return x
        return x * ~below_percentile(x.norm(dim=1), self.percentile)[:, None]


@REGULARIZERS.register("contribution")
@dataclass(frozen=True, config=STRICT)
class ClipContribution(Unvarying):
    """Zero the pixels that matter least: |sum over channels of x g| below a percentile (section 3).

    The sum estimates, to first order, what the activation loses without the pixel.
    """

    percentile: Number = Field(ge=0, le=100)

    def __call__(self, x: Tensor, gradient: Tensor, iteration: int) -> Tensor:
        if not self.percentile:
            return x
        contribution = (x * gradient).sum(dim=1).abs()
        return x * ~below_percentile(contribution, self.percentile)[:, None]


@REGULARIZERS.register("tv")
@dataclass(frozen=True, config=STRICT)
class TotalVariation(Unvarying):
    """A step down the total variation: noise goes, edges stay (Mahendran & Vedaldi 2015, beta 1).

    x - rate dTV/dx, with TV the sum over places of |difference to the neighbours below and right|,
    the three channels together, rounded off below one grey level.
    """

    rate: Number = Field(ge=0, le=1000)

    def __call__(self, x: Tensor, gradient: Tensor, iteration: int) -> Tensor:
        return x - self.rate * total_variation_gradient(x) if self.rate else x


def total_variation_gradient(x: Tensor) -> Tensor:
    """Return dTV/dx of images (B, 3, H, W); see `TotalVariation`."""
    down, right = torch.zeros_like(x), torch.zeros_like(x)
    down[:, :, :-1] = x[:, :, 1:] - x[:, :, :-1]
    right[:, :, :, :-1] = x[:, :, :, 1:] - x[:, :, :, :-1]
    length = (down.square() + right.square()).sum(dim=1, keepdim=True).add(1).sqrt()
    down, right = down / length, right / length
    found = -down - right
    found[:, :, 1:] += down[:, :, :-1]
    found[:, :, :, 1:] += right[:, :, :, :-1]
    return found


def below_percentile(values: Tensor, percentile: float) -> Tensor:
    """Return which values of each image are below its percentile: (B, H, W) -> (B, H, W) bool.

    numpy's linear percentile lies between two neighbours in rank. Values are compared with these,
    not with the percentile, so no rounding can move a pixel over the threshold.
    """
    flat = values.flatten(1)
    count = flat.shape[1]
    rank = (count - 1) * percentile / 100
    lower = int(rank)
    low = flat.kthvalue(lower + 1, dim=1).values[:, None]
    below = flat < low
    if rank > lower:  # the percentile lies above `low` unless both neighbours are equal
        high = flat.kthvalue(lower + 2, dim=1).values[:, None]
        below |= (flat == low) & (low < high)
    return below.view_as(values)
