"""Numbers to grey levels, by a stated rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Floats, Pixels
from cnnvis_cli.figure.heat import CAP

ROBUST = f"x / (2 p) + 0.5, p the {CAP}th percentile of |x| where x is not 0"
TONE_RULES = {
    "tile": f"{ROBUST}, each tile on its own",
    "max": "x / max(2 max, -2 min) + 0.5, each tile on its own",
    "unit": f"{ROBUST}, one scale for each unit: the largest of its tiles",
    "sheet": f"{ROBUST}, one scale for the whole sheet: the largest of its tiles",
    "true": "x + mean colour, clipped to 0..255",
}


def divisors(tiles: Floats) -> Floats:
    """Return 2 p of each tile by the rule `ROBUST`: (..., h, w, 3) -> (..., 1, 1, 1).

    It is 0 for a tile of zeros. A few strong pixels, which decide a tile's maximum, leave it alone.
    """
    shape = tiles.shape[:-3]
    found = np.zeros((*shape, 1, 1, 1), np.float32)
    for place in np.ndindex(shape):
        size = np.abs(np.asarray(tiles[place], np.float32))
        on = size[size > 0]
        if on.size:
            found[place] = 2 * np.percentile(on, CAP)
    return found


def common_divisor(tiles: Floats) -> float:
    """Return the divisor of one scale for all tiles: the largest of `divisors`."""
    return float(divisors(tiles).max(initial=0))


def about_grey(
    x: Floats, axes: tuple[int, ...] | None = None, top: float | Floats | None = None
) -> Pixels:
    """Return signed values in 8 bits with 0 at mid-grey: x / max(2 max, -2 min) + 0.5.

    Minimum and maximum are taken over `axes` (default: over everything), unless divisors are
    given as `top`. All zeros are mid-grey.
    """
    values = np.asarray(x, np.float32)
    if top is None:
        high, low = values.max(axis=axes, keepdims=True), values.min(axis=axes, keepdims=True)
        divisor = 2 * np.maximum(high, -low)
    else:
        divisor = np.asarray(top, np.float32)
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
    if rule == "max":
        return about_grey(tiles, (2, 3, 4))
    if rule == "sheet" and top is not None:
        return about_grey(tiles, top=top)
    each = divisors(tiles)  # (U, n, 1, 1, 1)
    axes = {"tile": (), "unit": (1,), "sheet": (0, 1)}[rule]
    return about_grey(tiles, top=each.max(axis=axes, keepdims=True))


OPAQUE = 80  # percentile of the gradients from which on a pixel is shown in full: Horama's plots.py


def faded(tiles: Floats, sums: NDArray[np.floating[Any]]) -> Floats:
    """Return tiles (n, h, w, 3) faded to the mean colour where gradients (n, h, w) were small."""
    full = np.percentile(sums.astype(np.float32), OPAQUE, axis=(1, 2), keepdims=True)
    opacity = np.minimum(sums.astype(np.float32) / np.where(full > 0, full, 1), 1)
    found: Floats = tiles * opacity[..., None].astype(np.float32)
    return found


def toned_together(
    parts: Sequence[Floats], rule: str, mean: tuple[float, ...] = (127.5, 127.5, 127.5)
) -> list[Pixels]:
    """Return several arrays toned for one sheet, as by `toned`, with a common scale."""
    top = max(map(common_divisor, parts), default=None) if rule == "sheet" else None
    return [toned(part, rule, mean, top) for part in parts]


def _eight_bits(unit: NDArray[np.floating[Any]]) -> Pixels:
    """Return 0..1 as 0..255, rounded and clipped. The argument is overwritten."""
    np.clip(unit, 0, 1, out=unit)
    unit *= 255
    unit += 0.5
    return unit.astype(np.uint8)
