"""Numbers to grey levels, by a stated rule."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

RULES = {
    "tile": "x / max(2 max, -2 min) + 0.5, each tile on its own",
    "unit": "x / max(2 max, -2 min) + 0.5, one scale for each unit's tiles",
    "sheet": "x / max(2 max, -2 min) + 0.5, one scale for the whole sheet",
    "true": "x + mean colour, clipped to 0..255",
}


def about_grey(x: Floats, axes: tuple[int, ...] | None = None) -> Pixels:
    """Signed values to 8 bits with 0 at mid-grey: x / max(2 max, -2 min) + 0.5.

    Minimum and maximum are taken over `axes` (default: over everything). All zeros are mid-grey.
    """
    values = np.asarray(x, np.float32)
    top = 2 * np.maximum(
        values.max(axis=axes, keepdims=True), -values.min(axis=axes, keepdims=True)
    )
    return _eight_bits(values / np.where(top > 0, top, 1) + 0.5)


def as_photograph(x: Floats, mean: tuple[float, ...]) -> Pixels:
    """Mean-subtracted values in 0..255 units, as the picture that the network was shown."""
    return _eight_bits((np.asarray(x, np.float32) + np.asarray(mean, np.float32)) / 255)


def toned(tiles: Floats, rule: str, mean: tuple[float, ...] = (127.5, 127.5, 127.5)) -> Pixels:
    """Tiles (U, n, h, w, 3) to 8 bits by one of the `RULES`; a unit's tiles are the n."""
    if rule == "true":
        return as_photograph(tiles, mean)
    axes = {"tile": (2, 3, 4), "unit": (1, 2, 3, 4), "sheet": None}[rule]
    return about_grey(tiles, axes)


def _eight_bits(unit: NDArray[Any]) -> Pixels:
    """0..1 to 0..255, rounded; what lies outside is clipped."""
    return (unit.clip(0, 1) * 255 + 0.5).astype(np.uint8)
