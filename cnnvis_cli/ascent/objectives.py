"""What is maximised: from a layer's activations to one number per image."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from cnnvis_cli.errors import UsageError


@dataclass(frozen=True)
class Objective:
    """The value of a layer's unit, or along a direction in the space of its channels.

    A target is the number of a channel, or of a row of `directions` (n, C). To minimise a value,
    its negative is maximised.
    """

    mean: bool = False  # over the whole map, instead of one place
    minimise: bool = False
    softmax: bool = False  # over the layer's channels
    directions: Tensor | None = None
    diversity: float = 0.0  # weight of the penalty on runs of a unit that look alike
    run_group: int = 1  # number of neighbouring images that are runs of one unit

    @property
    def sign(self) -> float:
        return -1.0 if self.minimise else 1.0

    def __call__(
        self, maps: Tensor, targets: Tensor, place: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the objective, the signed value, and whether the target leads: (B,) each.

        `maps` are (B, C, h, w), `place` the row and column that count. A unit leads where no
        channel is larger there (smaller, when minimising). A direction leads where the activations
        reach further along it than along any channel.
        """
        found = maps.mean(dim=(2, 3)) if self.mean else maps[:, :, place[0], place[1]]
        if self.softmax:
            found = found.softmax(dim=1)
        value, length = self._along(found, targets)
        signed = self.sign * value
        with torch.no_grad():
            leads = (self.sign * found).amax(dim=1) <= signed / length
        if not self.diversity:
            return signed, signed, leads
        counted = maps if self.mean else found[:, :, None, None]
        shared = likeness(counted.flatten(2), self.run_group)
        return signed - self.diversity * signed.detach().abs() * shared, signed, leads

    def _along(self, found: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the activations (B, C) along each target, and the target's length."""
        if self.directions is None:
            return found.gather(1, targets[:, None])[:, 0], 1.0
        wanted = self.directions.to(found)[targets]
        return (found * wanted).sum(dim=1), wanted.norm(dim=1)


def likeness(maps: Tensor, run_group: int) -> Tensor:
    """Return how similar each image's maps are to its run group's, 0 to 1: (B, C, P) -> (B,).

    This is the mean cosine of Gram matrices, channels by channels: the "style" that Olah et al.
    2017 ("Feature Visualization", section Diversity) penalise. With fewer places than channels, the
    inner product of two Gram matrices is computed as the sum of squares of the products of all
    pairs of places, which is the same.
    """
    if run_group == 1:
        return maps.new_zeros(len(maps))
    largest = maps.detach().abs().amax(dim=(1, 2), keepdim=True)
    scaled = maps / torch.where(largest > 0, largest, 1)
    run_groups = scaled.reshape(-1, run_group, *maps.shape[1:])
    if maps.shape[1] < maps.shape[2]:
        grams = run_groups @ run_groups.mT  # (T, R, C, C)
        products = torch.einsum("trcd,tscd->trs", grams, grams)
    else:
        pairs = torch.einsum("trcp,tscq->trspq", run_groups, run_groups)
        products = pairs.pow(2).sum(dim=(-1, -2))
    own = products.diagonal(dim1=1, dim2=2)
    cosines = products / (own[:, :, None] * own[:, None, :] + TINY).sqrt()
    others = cosines.sum(dim=2) - cosines.diagonal(dim1=1, dim2=2)
    return (others / (run_group - 1)).flatten()


TINY = 1e-12  # small beside the products, of which each map's largest value gives at least 1


_TERM = re.compile(r"\s*([+-]?)\s*(?:(\d*\.?\d+(?:e[+-]?\d+)?)\s*\*\s*)?(\d+)\s*")


def parse_sum(text: str, channels: int, layer: str) -> list[float]:
    """Return the direction of a weighted sum of units, ``12 + 0.5*31 - 7``: one weight per channel.

    Raise `UsageError` for a text that is not such a sum, or a channel that the layer does not have.
    """
    weights, position = [0.0] * channels, 0
    while position < len(text):
        term = _TERM.match(text, position)
        if not term or (position and not term[1]):
            raise UsageError(
                f"--sum {text!r}: write it like '12 + 0.5*31 - 7', channels of {layer}"
            )
        channel = int(term[3])
        if channel >= channels:
            raise UsageError(
                f"--sum {text!r}: {layer} has no unit {channel}; it has 0 to {channels - 1}"
            )
        weights[channel] += float(term[2] or 1) * (-1 if term[1] == "-" else 1)
        position = term.end()
    if not any(weights):
        raise UsageError(f"--sum {text!r}: adds up to nothing")
    return weights


def check_directions(found: Tensor, channels: int, place: str) -> Tensor:
    """Return directions as a tensor (n, C), from (n, C) or (C,); raise `UsageError` if invalid."""
    rows = found[None] if found.dim() == 1 else found
    if rows.dim() != 2 or not len(rows) or rows.shape[1] != channels:
        raise UsageError(f"{place}: needs numbers (n, {channels}), has {tuple(found.shape)}")
    if not bool(rows.isfinite().all()):
        raise UsageError(f"{place}: has numbers that are not finite")
    if not bool(rows.any(dim=1).all()):
        raise UsageError(f"{place}: a direction of zeros leads nowhere")
    return rows
