"""The bins of activation histograms: the same for every channel of every network.

A bin is an eighth of an octave of one sign, read from the sign, the exponent and the first three
binary places of a float32. So the bins are 6 to 12 % wide at every scale, and the counts of parts
can be added without prior knowledge of the values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DROPPED_BITS = 20  # of the 23 binary places of a float32, all but the first three
LOWEST_OCTAVE = -16  # octave; smaller values count as 2^-16, zero as positive
BINS_PER_SIGN = 32 * 8  # bins per sign: up to 2^16; the last one holds everything beyond
BINS = 2 * BINS_PER_SIGN
FIRST_BIN = (127 + LOWEST_OCTAVE) << (23 - DROPPED_BITS)  # the first bin's bits
LEVELS = (0.001, 0.005, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.995, 0.999)


def bins(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the bin of each value, 0 to BINS - 1; NaN has none and must be left out before."""
    bits = np.ascontiguousarray(values, np.float32).view(np.int32)
    above = ((bits & 0x7FFFFFFF) >> DROPPED_BITS) - FIRST_BIN
    step = np.clip(above, 0, BINS_PER_SIGN - 1).astype(np.int64)
    found: NDArray[np.int64] = np.where(values < 0, BINS_PER_SIGN - 1 - step, BINS_PER_SIGN + step)
    return found


def edges() -> NDArray[np.float64]:
    """Return the bin edges, (BINS + 1,), ascending; the outermost bins hold everything beyond.

    Bin i holds edges[i] <= x < edges[i + 1] for positive x, and its mirror image for negative x.
    """
    steps = np.arange(BINS_PER_SIGN + 1)
    side = 2.0 ** (LOWEST_OCTAVE + steps // 8) * (1 + steps % 8 / 8)
    side[0] = 0
    return np.concatenate((-side[:0:-1], side))


def quantiles(counts: NDArray[np.int64], largest: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values below which the shares LEVELS of the counts lie: (C, BINS) -> (C, levels).

    They are interpolated linearly within a bin, and never above the channel's `largest` value (C,);
    NaN for a channel without counts.
    """
    total = counts.sum(axis=1, dtype=np.float64)
    below = np.concatenate((np.zeros((len(counts), 1)), np.cumsum(counts, axis=1)), axis=1)
    found = np.full((len(counts), len(LEVELS)), np.nan)
    for channel in np.flatnonzero(total):
        wanted = np.array(LEVELS) * total[channel]
        found[channel] = np.interp(wanted, below[channel], edges())
    capped: NDArray[np.float64] = np.minimum(found, largest[:, None])
    return capped


def rectified_mean(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean of max(x, 0) over the counts, each at its bin's middle: (C, BINS) -> (C,).

    The bin of 0 counts as 0. NaN for a channel without counts.
    """
    bounds = edges()[BINS_PER_SIGN + 1 :]
    above = counts[:, BINS_PER_SIGN + 1 :] @ ((bounds[1:] + bounds[:-1]) / 2)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = above / counts.sum(axis=1)
    return mean
