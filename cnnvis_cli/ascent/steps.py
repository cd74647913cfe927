"""Step policies: how far to go along the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class StepPolicy(Protocol):
    """Rates for a batch: activations (B,) and gradients (B, 3, H, W) -> (B,)."""

    def __call__(self, activation: Tensor, gradient: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Constant:
    """The same rate in every iteration, in squared grey levels per unit of activation."""

    rate: float

    def __call__(self, activation: Tensor, gradient: Tensor) -> Tensor:
        return torch.full_like(activation, self.rate)


@dataclass(frozen=True)
class Progress:
    """The rate that would raise the activation by `desired` if the network were linear.

    rate = min(max_rate, desired / |g|^2): the deep-visualization-toolbox's "progress" policy.
    """

    max_rate: float
    desired: float

    def __call__(self, activation: Tensor, gradient: Tensor) -> Tensor:
        squared = gradient.flatten(1).pow(2).sum(dim=1)
        return (self.desired / squared).clamp(max=self.max_rate)
