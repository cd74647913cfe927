"""A gallery's facts on units, as plain values: histograms, classes, neighbours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from cnnvis_cli import histogram

Indices = NDArray[np.integer[Any]]
Bars = tuple[float, float, list[int]]  # from the lowest value to the highest, counts
BARS = 48
NEIGHBOURS = 8


def plain_numbers(values: NDArray[Any]) -> list[float | None]:
    """Return numbers with four digits; None for non-finite ones."""
    return [digits(v) if np.isfinite(v) else None for v in values.tolist()]


def digits(value: float) -> float:
    return float(f"{value:.4g}")


def histogram_bars(counts: NDArray[np.int64], largest: float) -> Bars | None:
    """Return one channel's counts (bins,) in bars of one width; None if there are none.

    The bars reach to the `largest` value, which the places that were counted need not have.
    """
    edges, filled = histogram.edges(), np.flatnonzero(counts)
    if not len(filled) or not np.isfinite(largest):
        return None
    low = float(edges[filled[0]])
    high = max(low, largest)
    if high == low:
        high = low + (abs(low) or 1)
    below = np.interp(
        np.linspace(low, high, BARS + 1), edges, np.concatenate(([0], np.cumsum(counts)))
    )
    below[-1] = counts.sum()
    found = np.ceil(np.diff(below)).astype(int).tolist()  # a single value is visible too
    return digits(low), digits(high), found


def class_counts(labels: Sequence[int]) -> list[tuple[int, int]]:
    """Return the number of a unit's top images per class, the most frequent first."""
    counts = Counter(label for label in labels if label >= 0)
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def searched_classes(labels: Sequence[int], most: int) -> list[int]:
    """Return the most frequent classes of a unit's images, each with its count and first rank."""
    found = []
    for label, count in class_counts(labels)[:most]:
        found += [label, count, list(labels).index(label)]
    return found


def neighbours(images: Indices, chosen: slice) -> list[list[tuple[int, int]]]:
    """Return the units that share most of their top images (U, k) with each of the chosen rows.

    These are pairs of a row and the number of images it shares, the nearest by Jaccard's index
    first, ties by number. An empty slot is -1.
    """
    row, slot = np.nonzero(images >= 0)
    known, column = np.unique(images[row, slot], return_inverse=True)
    has = csr_array(
        (np.ones(len(row), np.int32), (row, column)), shape=(len(images), max(1, len(known)))
    )
    sizes = np.bincount(row, minlength=len(images))
    rows = range(*chosen.indices(len(images)))
    together = (has[chosen] @ has.T).toarray()
    return [_nearest(row, shared, sizes) for row, shared in zip(rows, together, strict=True)]


def _nearest(row: int, shared: Indices, sizes: Indices) -> list[tuple[int, int]]:
    """Return a row's neighbours, given the number of images that it shares with each row."""
    others = np.flatnonzero(shared)
    others = others[others != row]
    share = shared[others] / (sizes[row] + sizes[others] - shared[others])
    nearest = others[np.argsort(-share, kind="stable")[:NEIGHBOURS]]
    return [(other, int(shared[other])) for other in nearest.tolist()]
