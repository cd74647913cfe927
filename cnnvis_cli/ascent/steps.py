"""Step policies: how far to go along the gradient."""

from __future__ import annotations

from typing import Annotated, Protocol

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from cnnvis_cli.registry import Registry
from cnnvis_cli.validation import STRICT, Number

Upward = Annotated[Number, Field(ge=0, le=1e30)]


class StepPolicy(Protocol):
    """Images x, gradients (N, 3, h, w) and values (N,) -> the images one step further, in place."""

    def along(self, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor: ...


STEPS: Registry[type[StepPolicy]] = Registry("step policy")


@STEPS.register("constant")
@dataclass(frozen=True, config=STRICT)
class Constant:
    """The same rate in every iteration, in squared grey levels per unit of activation."""

    rate: Upward

    def along(self, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        return x.add_(gradient, alpha=self.rate)


@STEPS.register("progress")
@dataclass(frozen=True, config=STRICT)
class Progress:
    """The rate that would raise the activation by `desired` if the network were linear.

    rate = min(max_rate, desired / |g|^2): the deep-visualization-toolbox's "progress" policy.
    """

    max_rate: Upward
    desired: Upward

    def along(self, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        rate = (self.desired / _squared(gradient)).clamp(max=self.max_rate)
        return x.addcmul_(rate[:, None, None, None], gradient)


@STEPS.register("progress01")
@dataclass(frozen=True, config=STRICT)
class Progress01:
    """Progress for values that end at 1, as those of softmax units do.

    rate = min(max_rate, min(early, late (1 - value)) / |g|^2): the toolbox's "progress01" policy.
    """

    max_rate: Upward
    early: Upward
    late: Upward

    def along(self, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        desired = (self.late * (1 - value)).clamp(max=self.early)
        rate = (desired / _squared(gradient)).clamp(max=self.max_rate)
        return x.addcmul_(rate[:, None, None, None], gradient)


@STEPS.register("normalized")
@dataclass(frozen=True, config=STRICT)
class Normalized:
    """Steps of one length, in grey levels: the root mean square change of a pixel's value.

    rate = size / rms(g). A zero gradient makes no step. It suits any network and layer, since it
    does not depend on the scale of the activations (Mordvintsev et al. 2015, "Inceptionism",
    divide by the mean of |g|).
    """

    size: Upward

    def along(self, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        mean = _squared(gradient) / gradient[0].numel()
        rate = torch.where(mean > 0, self.size / mean.sqrt(), 0)
        return x.addcmul_(rate[:, None, None, None], gradient)


CALIBRATED = Normalized(2.0)
"""The default step, 2 grey levels, for any network and layer (docs/measurements.md)."""


def _squared(gradient: Tensor) -> Tensor:
    """Return |g|^2 of each image: (N, 3, h, w) -> (N,).

    Summed in double precision: on a GPU the order of a sum depends on where a row lies in memory.
    """
    return gradient.double().square().sum(dim=(1, 2, 3)).to(gradient.dtype)
