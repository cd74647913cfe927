"""The first image of an ascent."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from cnnvis_cli.arrays import Bools, Floats
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


ALIKE = 0.5  # cosine with the first noise: 1 at the start, up to 0.25 once a style has left it


def still_noise(images: Floats, noises: Floats) -> Bools:
    """Return which images (n, h, w, 3) are still the noise that they began with: (n,).

    That is a cosine of at least `ALIKE`, however faint the noise has become.
    """
    flat, begun = (part.reshape(len(part), -1).astype(np.float64) for part in (images, noises))
    lengths = np.linalg.norm(flat, axis=1) * np.linalg.norm(begun, axis=1)
    found: Bools = (flat * begun).sum(axis=1) >= ALIKE * lengths
    found &= lengths > 0
    return found


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
