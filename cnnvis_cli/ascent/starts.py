"""The first image of an ascent."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from cnnvis_cli.nouns import Size, Unit

START_STD = 10.0  # grey levels of the noise that an ascent starts from (the toolbox's default)


def seed_of(seed: int, unit: Unit, run: int) -> int:
    """Return the seed of one ascent: a function of these three alone.

    So its random numbers are the same in any batch, on any device and after any restart.
    """
    digest = hashlib.sha256(f"{seed} {unit} {run}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def noise(seed: int, size: Size) -> Tensor:
    """Return N(0, 10) noise about the mean colour, drawn on the CPU: (3, *size)."""
    return torch.randn(3, *size, generator=_generator(seed)) * START_STD


def uniform(seed: int, size: Size, mean: Tensor) -> Tensor:
    """Return uniform noise over 0..255, mean-subtracted: (3, *size); `mean` is (1, 3, 1, 1)."""
    return torch.rand(3, *size, generator=_generator(seed)) * 255 - mean[0]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
