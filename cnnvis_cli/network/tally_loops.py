"""The tally's loops over a layer's maps, compiled for the CPU by numba.

Maps are (B, places, C), channels last, as the network computes them: the inner loop runs along
the channels, one vector register after the other. Running sums are kept for one image at a time,
so that they stay in the nearest cache; the last image comes first, because it is what the layer
has just written. `tally._read` and `tally._count` tell the same in tensor operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from cnnvis_cli import histogram

_BLOCK = 128  # places that are summed in float32 before they are added in float64
_ZERO, _ONE = np.float32(0), np.int32(1)
_SHIFT, _FIRST, _SIDE = histogram.SHIFT, histogram.FIRST, histogram.SIDE


def _compile(loop: Callable[..., None]) -> Callable[..., None]:
    """`loop` as machine code, kept on disk between processes where there is a place for it."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        compiled: Callable[..., None] = njit(cache=True, **options)(loop)
    except RuntimeError:  # numba: no locator available, an installation that cannot be written to
        compiled = njit(**options)(loop)
    return compiled


@_compile
def read(  # noqa: PLR0913 - six results
    maps: NDArray[np.float32],
    value: NDArray[np.float32],
    place: NDArray[np.int32],
    total: NDArray[np.float64],
    squares: NDArray[np.float64],
    positive: NDArray[np.float64],
    active: NDArray[np.int32],
) -> None:
    """Fill the arrays of a `tally.Summary`, (B, C) each, from maps (B, places, C)."""
    images, places, channels = maps.shape
    # Rows at a distance that is no power of two, or they would all want the same lines of cache.
    width = (channels + 15) // 16 * 16 + 16
    floats = np.empty(4 * width, np.float32)
    wholes = np.empty(2 * width, np.int32)
    top, added = floats[:channels], floats[width : width + channels]
    squared, above = floats[2 * width : 2 * width + channels], floats[3 * width :][:channels]
    at, on = wholes[:channels], wholes[width : width + channels]
    for image in range(images - 1, -1, -1):
        top[:], at[:], on[:] = -np.inf, -1, 0
        total[image], squares[image], positive[image] = 0, 0, 0
        for start in range(0, places, _BLOCK):
            added[:], squared[:], above[:] = 0, 0, 0
            for here in range(start, min(start + _BLOCK, places)):
                row = maps[image, here]
                for c in range(channels):  # all loads before all stores, or it is no vector loop
                    x, best, where = row[c], top[c], at[c]
                    sum1, sum2, sum3, ons = added[c], squared[c], above[c], on[c]
                    stronger, is_on = x > best, x > _ZERO
                    top[c] = x if stronger else best
                    at[c] = np.int32(here) if stronger else where
                    added[c] = sum1 + x
                    squared[c] = sum2 + x * x
                    above[c] = sum3 + (x if is_on else _ZERO)
                    on[c] = ons + (_ONE if is_on else np.int32(0))
            for c in range(channels):
                total[image, c] += added[c]
                squares[image, c] += squared[c]
                positive[image, c] += above[c]
        for c in range(channels):
            if at[c] < 0:  # nothing above minus infinity: the first that is no NaN, if any
                for here in range(places - 1, -1, -1):
                    if maps[image, here, c] == -np.inf:
                        at[c] = here
            value[image, c] = top[c] + _ZERO
            place[image, c] = at[c]
            active[image, c] = on[c]


@_compile
def fill(
    maps: NDArray[np.float32],
    rows: NDArray[np.int64],
    places: NDArray[np.int64],
    counts: NDArray[np.int32],
) -> None:
    """Count the places (n, s) of the images `rows` (n,) in the histograms `counts` (C, BINS)."""
    bits = maps.view(np.int32)
    for i in range(len(rows)):
        for here in places[i]:
            for c in range(maps.shape[2]):
                x = maps[rows[i], here, c]
                if x == x:  # noqa: PLR0124 - not NaN
                    size = ((bits[rows[i], here, c] & 0x7FFFFFFF) >> _SHIFT) - _FIRST
                    step = min(max(size, 0), _SIDE - 1)
                    counts[c, _SIDE - 1 - step if x < _ZERO else _SIDE + step] += 1
