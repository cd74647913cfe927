"""Regularized activation maximization: the loop itself.

Yosinski et al. 2015, section 3, equation (2), in the order in which the authors' toolbox does it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

from cnnvis_cli.ascent.styles import Style
from cnnvis_cli.nouns import Size, Unit

Score = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W), mean-subtracted, to the layer's activations at one place, (B, C)."""

START_STD = 10.0  # grey levels of the noise that an ascent starts from (the toolbox's default)


class Outcome(IntEnum):
    """How an ascent ended."""

    NOT_DONE = 0
    LARGEST = 1  # at its best image the unit is the largest of its layer at its place
    NOT_LARGEST = 2
    NO_GRADIENT = 3  # the gradient was zero throughout: nothing that feeds the unit is on


@dataclass(frozen=True)
class Ascent:
    """The best images of a batch of ascents and how they came about, B of each."""

    image: Tensor  # (B, 3, H, W) mean-subtracted, 0..255 units
    activation: Tensor  # (B,)
    start: Tensor  # (B,) the value for the first image
    best_step: Tensor  # (B,) int
    outcome: Tensor  # (B,) int
    last: Tensor  # (B, 3, H, W) the images where the ascents ended


def noise(units: Sequence[tuple[Unit, int]], seed: int, size: Size) -> Tensor:
    """Start images, N(0, 10) about the mean colour: one for each (unit, run), (B, 3, H, W).

    Each is a function of seed, unit and run alone, drawn on the CPU, so that it is the same in
    any batch, on any device and after any restart.
    """
    images = []
    for unit, run in units:
        digest = hashlib.sha256(f"{seed} {unit} {run}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        images.append(torch.randn(3, *size, generator=generator) * START_STD)
    return torch.stack(images)


def climb(score: Score, start: Tensor, channels: Tensor, style: Style, mean: Tensor) -> Ascent:
    """Ascend from `start` for one channel an image; keeps the best image of each.

    Parameters
    ----------
    start : (B, 3, H, W) mean-subtracted images.
    channels : (B,) the channel that each image is for.
    mean : (1, 3, 1, 1) the mean colour, which the clipping to 0..255 needs.
    """
    slots = torch.arange(len(start), device=start.device)
    x = start
    best = torch.zeros_like(start)
    best_value = torch.full((len(start),), float("-inf"), device=start.device)
    first = torch.zeros_like(best_value)
    best_step, largest = torch.zeros_like(slots), torch.zeros_like(slots, dtype=torch.bool)
    alive = moved = torch.ones_like(largest)
    for i in range(style.iterations):
        x = (x + mean).clamp(0, 255) - mean
        value, leads, gradient = _look(score, x, slots, channels)
        if i == 0:
            first = value
        better = alive & (value > best_value)
        best = torch.where(better[:, None, None, None], x, best)
        best_value = torch.where(better, value, best_value)
        best_step = torch.where(better, i, best_step)
        largest = torch.where(better, leads, largest)
        alive = alive & gradient.flatten(1).any(dim=1)
        moved = alive if i == 0 else moved
        if i < style.iterations - 1:
            x = _step(x, value, gradient, style, i)
    done = torch.where(largest, int(Outcome.LARGEST), int(Outcome.NOT_LARGEST))
    outcome = torch.where(moved, done, int(Outcome.NO_GRADIENT))
    return Ascent(best, best_value, first, best_step, outcome, x)


def _look(
    score: Score, x: Tensor, slots: Tensor, channels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Each image's activation (B,), whether it is its layer's largest (B,), and its gradient."""
    x = x.detach().requires_grad_()
    activations = score(x)
    value = activations[slots, channels]
    (gradient,) = torch.autograd.grad(value.sum(), x)
    value = value.detach()
    return value, activations.detach().amax(dim=1) <= value, gradient


def _step(x: Tensor, value: Tensor, gradient: Tensor, style: Style, iteration: int) -> Tensor:
    """One step along the gradient, then each regularizer in order."""
    rate = style.step(value, gradient)
    x = x + rate[:, None, None, None] * gradient
    for regularizer in style.regularizers:
        x = regularizer(x, gradient, iteration)
    return x
