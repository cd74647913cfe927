"""Numbers to grey levels, by a stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Floats, Pixels

TONE_RULES = {
    "tile": "x / max(2 max, -2 min) + 0.5, each tile on its own",
    "unit": "x / max(2 max, -2 min) + 0.5, one scale for each unit's tiles",
    "sheet": "x / max(2 max, -2 min) + 0.5, one scale for the whole sheet",
    "true": "x + mean colour, clipped to 0..255",
}


def largest(x: Floats) -> float:
    """Return the divisor of one scale: max(2 max, -2 min)."""
    return 2 * max(float(x.max()), -float(x.min()))


def about_grey(x: Floats, axes: tuple[int, ...] | None = None, top: float | None = None) -> Pixels:
    """Return signed values in 8 bits with 0 at mid-grey: x / max(2 max, -2 min) + 0.5.

    Minimum and maximum are taken over `axes` (default: over everything), unless the divisor is
    given as `top`. All zeros are mid-grey.
    """
    values = np.asarray(x, np.float32)
    if top is None:
        high, low = values.max(axis=axes, keepdims=True), values.min(axis=axes, keepdims=True)
        divisor = 2 * np.maximum(high, -low)
    else:
        divisor = np.full((1,) * values.ndim, top, np.float32)
    unit = values / np.where(divisor > 0, divisor, np.float32(1))
    unit += 0.5
    return _eight_bits(unit)


def as_photograph(x: Floats, mean: tuple[float, ...]) -> Pixels:
    """Return mean-subtracted values in 0..255 units as the picture that the network sees."""
    return _eight_bits((np.asarray(x, np.float32) + np.asarray(mean, np.float32)) / 255)


def toned(
    tiles: Floats,
    rule: str,
    mean: tuple[float, ...] = (127.5, 127.5, 127.5),
    top: float | None = None,
) -> Pixels:
    """Return tiles (U, n, h, w, 3) in 8 bits by one of the `TONE_RULES`; each unit has n tiles.

    `top` is the divisor of a whole sheet, if these are only some of its tiles.
    """
    if rule == "true":
        return as_photograph(tiles, mean)
    if rule == "sheet":
        return about_grey(tiles, top=top)
    return about_grey(tiles, {"tile": (2, 3, 4), "unit": (1, 2, 3, 4)}[rule])


def toned_together(
    parts: Sequence[Floats], rule: str, mean: tuple[float, ...] = (127.5, 127.5, 127.5)
) -> list[Pixels]:
    """Return several arrays toned for one sheet, as by `toned`, with a common scale."""
    top = max(map(largest, parts), default=None) if rule == "sheet" else None
    return [toned(part, rule, mean, top) for part in parts]


def _eight_bits(unit: NDArray[np.floating[Any]]) -> Pixels:
    """Return 0..1 as 0..255, rounded and clipped. The argument is overwritten."""
    np.clip(unit, 0, 1, out=unit)
    unit *= 255
    unit += 0.5
    return unit.astype(np.uint8)
