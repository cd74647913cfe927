"""What a set of images has in common: its colours, and how much it holds of each frequency."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from cnnvis_cli.arrays import Doubles, Floats, Pixels


@dataclass(frozen=True, eq=False)
class ImageSpectrum:
    """Colours and mean magnitudes of images, as logits: what a sigmoid turns into pixels.

    Two are equal if all their numbers are.
    """

    magnitude: Floats  # (3, H, W // 2 + 1), of each colour component; 0 for the mean
    colour: Floats  # (3, 3) from components (columns) to red, green and blue (rows), orthonormal
    offset: Floats  # (3,) the mean of red, green and blue
    width: int  # W, of the images in pixels

    @cached_property
    def digest(self) -> str:
        """Return the first 16 hexadecimal digits of the SHA-256 of all numbers."""
        content = hashlib.sha256(f"{self.magnitude.shape} {self.width}".encode())
        for part in (self.magnitude, self.colour, self.offset):
            content.update(np.ascontiguousarray(part, "<f4").tobytes())
        return content.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageSpectrum) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def on(self, canvas: tuple[int, int]) -> Doubles:
        """Return the magnitudes of a canvas's frequencies, (3, h, w // 2 + 1).

        They are interpolated between those of the images, at the same cycles per pixel, and each
        component keeps its deviation: a small canvas has the contrast of whole images.
        """
        height, whole = self.magnitude.shape[1], self.magnitude.astype(np.float64)
        rows = _between(whole, np.fft.fftfreq(canvas[0]) * height, 1)
        found = _between(rows, np.fft.rfftfreq(canvas[1]) * self.width, 2)
        found[:, 0, 0] = 0
        had, has = variances(whole, self.width), variances(found, canvas[1])
        return found * np.sqrt(had / np.where(has > 0, has, 1))[:, None, None]


def variances(magnitude: Doubles, width: int) -> Doubles:
    """Return the variance per pixel of images with these magnitudes, (C, h, w // 2 + 1): (C,).

    Each column stands for two frequencies, except the first and, if the width is even, the last.
    """
    power = magnitude**2
    power[:, :, 1 : (width + 1) // 2] *= 2
    found: Doubles = power.sum(axis=(1, 2)) / (magnitude.shape[1] * width) ** 2
    return found


def _between(grid: Doubles, places: NDArray[np.floating[Any]], axis: int) -> Doubles:
    """Return the values between the lines of an axis, interpolated linearly.

    The rows are a circle; the columns, of which there is one half, end with the last.
    """
    low = np.floor(places).astype(int)
    count = grid.shape[axis]
    shape = [1, 1, 1]
    shape[axis] = len(places)
    share = (places - low).reshape(shape)
    high = (low + 1) % count if axis == 1 else np.minimum(low + 1, count - 1)
    near, far = grid.take(low % count, axis), grid.take(high, axis)
    found: Doubles = near * (1 - share) + far * share
    return found


def logits(pixels: Pixels) -> Doubles:
    """Return log(v / (1 - v)) of values 0..255, taken as (value + 0.5) / 256."""
    value = (pixels.astype(np.float64) + 0.5) / 256
    found: Doubles = np.log(value / (1 - value))
    return found


def measured(
    read: Callable[[int], Pixels], images: Sequence[int], step: Callable[[], None]
) -> ImageSpectrum:
    """Return the spectrum of some images, (H, W, 3) each, read twice; call `step` for each.

    The components are the principal ones of the colours of all pixels, weakest first. The sums are
    in double precision and in the order of the images.
    """
    total, products, pixels = np.zeros(3), np.zeros((3, 3)), 0
    for index in images:
        step()
        values = logits(read(index)).reshape(-1, 3)
        total += values.sum(axis=0)
        products += values.T @ values
        pixels += len(values)
    mean = total / pixels
    colour = principal(products / pixels - np.outer(mean, mean))
    magnitude: NDArray[np.float64] | float = 0.0
    width = 0
    for index in images:
        step()
        components = (logits(read(index)) - mean) @ colour
        width = components.shape[1]
        magnitude = magnitude + np.abs(scipy.fft.rfft2(components.transpose(2, 0, 1)))
    found = np.asarray(magnitude / len(images))
    found[:, 0, 0] = 0
    return ImageSpectrum(
        found.astype(np.float32), colour.astype(np.float32), mean.astype(np.float32), width
    )


def principal(covariance: Doubles) -> Doubles:
    """Return the unit vectors of a covariance (3, 3) as columns, weakest first.

    The largest entry of each is above 0, so that they do not depend on the library's choice.
    """
    vectors = np.linalg.eigh(covariance)[1]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    found: Doubles = vectors * np.sign(largest)
    return found
