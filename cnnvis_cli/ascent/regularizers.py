"""What keeps an optimized image looking like something: the four regularizers of Yosinski et al.

Each maps a batch of images x, mean-subtracted in 0..255 units (B, 3, H, W), to a slightly more
regular one. `gradient` is that of the step just made, taken before it; `iteration` counts from 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from cnnvis_cli.registry import Registry


class Regularizer(Protocol):
    """The operator r_theta of the paper's equation (2)."""

    def __call__(self, x: Tensor, gradient: Tensor, iteration: int) -> Tensor: ...


REGULARIZERS: Registry[type[Regularizer]] = Registry("regularizer")


@REGULARIZERS.register("decay")
@dataclass(frozen=True)
class Decay:
    """L2 decay: x (1 - rate), against a few extreme pixels (section 3)."""

    rate: float

    def __call__(self, x: Tensor, gradient: Tensor, iteration: int) -> Tensor:
        return x * (1 - self.rate) if self.rate else x


@REGULARIZERS.register("blur")
@dataclass(frozen=True)
class Blur:
    """Gaussian blur of each channel, `width` pixels sigma, every so many iterations (section 3).

    As scipy's gaussian_filter: symmetric reflection at the edge, cut off at 4 sigma. It applies
    at iteration 0 too, as in the deep-visualization-toolbox.
    """

    width: float
    every: int

    def __call__(self, x: Tensor, gradient: Tensor, iteration: int) -> Tensor:
        if not (self.width and self.every) or iteration % self.every:
            return x
        rows, columns = (blur_matrix(size, self.width).to(x) for size in x.shape[2:])
        return rows @ x @ columns.T


@lru_cache(maxsize=64)
def blur_matrix(size: int, width: float) -> Tensor:
    """scipy's one-dimensional Gaussian filter, border and all, as a matrix: (size, size).

    It is linear, so filtering the unit vectors gives it exactly.
    """
    return torch.from_numpy(gaussian_filter1d(np.eye(size), width, axis=0))


@REGULARIZERS.register("norm")
@dataclass(frozen=True)
class ClipNorm:
    """Zero the pixels whose norm over the channels is below a percentile (section 3)."""

    percentile: float

    def __call__(self, x: Tensor, gradient: Tensor, iteration: int) -> Tensor:
        if not self.percentile:
            return x
        return x * ~below_percentile(x.norm(dim=1), self.percentile)[:, None]


@REGULARIZERS.register("contribution")
@dataclass(frozen=True)
class ClipContribution:
    """Zero the pixels that matter least: |sum over channels of x g| below a percentile (section 3).

    The sum estimates, to first order, what the activation loses without the pixel.
    """

    percentile: float

    def __call__(self, x: Tensor, gradient: Tensor, iteration: int) -> Tensor:
        if not self.percentile:
            return x
        contribution = (x * gradient).sum(dim=1).abs()
        return x * ~below_percentile(contribution, self.percentile)[:, None]


def below_percentile(values: Tensor, percentile: float) -> Tensor:
    """Which values of each image lie strictly below its percentile: (B, H, W) -> (B, H, W) bool.

    numpy's linear percentile lies between two neighbours in rank; it is compared with here
    without computing it, so no rounding can move a pixel over the threshold.
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
