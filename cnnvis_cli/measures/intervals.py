"""Intervals of a unit's activation, to show more than its strongest images."""

from __future__ import annotations

import numpy as np

from cnnvis_cli.arrays import Doubles, Floats, Int32s, Int64s

VALUE_BINS = 32
SHARES = {"75 to 90 %": (0.75, 0.9), "median": (0.45, 0.55), "low": (0.0, 0.25)}


def in_intervals(values: Floats, count: int, generator: np.random.Generator) -> dict[str, Int64s]:
    """Return up to `count` images of each interval of a unit's values (N,), strongest first.

    The first has the strongest images. Those between shares of the images with a value above 0,
    by rank, are drawn at random and leave out the first. `none` is drawn from those with no value
    above 0; where there are none, `lowest` has those with the lowest. NaN is no value.
    """
    order = np.argsort(np.where(np.isnan(values), -np.inf, values), kind="stable")
    active = order[np.searchsorted(np.nan_to_num(values[order], nan=-np.inf), 0, "right") :]
    found = {"strongest": active[::-1][:count]}
    others = active[: len(active) - len(found["strongest"])]
    for name, (low, high) in SHARES.items():
        first, last = round(low * len(active)), round(high * len(active))
        found[name] = _some(others[first:last], count, generator)
    silent = order[: len(order) - len(active)]
    silent = silent[~np.isnan(values[silent])]
    if len(silent):
        found["none"] = _some(silent, count, generator)
    else:
        found["lowest"] = others[:count][::-1]
    return found


def _some(images: Int64s, count: int, generator: np.random.Generator) -> Int64s:
    """Return some of the images at random, the strongest first."""
    drawn = generator.choice(len(images), min(count, len(images)), replace=False)
    return images[np.sort(drawn)[::-1]]


def value_counts(values: Floats) -> tuple[Int64s, Doubles]:
    """Return how many of a unit's values (N,) lie in each of some equal bins, and their edges.

    The bins reach from the smallest to the largest finite value; others are left out.
    """
    counts, edges = np.histogram(values[np.isfinite(values)].astype(np.float64), VALUE_BINS)
    return counts.astype(np.int64), edges


def class_means(values: Floats, labels: Int32s) -> tuple[Doubles, Int64s]:
    """Return each class's mean of the values above 0 (else 0), and its number of images.

    `values` are (N, C), NaN for no value; `labels` (N,), -1 without a class. The means are
    (classes, C), 0 for a class without images; the numbers (classes,).
    """
    known = (labels >= 0) & ~np.isnan(values).all(axis=1)
    count = int(labels.max(initial=-1)) + 1
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, labels[known], np.nan_to_num(np.maximum(values[known], 0)))
    numbers = np.bincount(labels[known], minlength=count)
    return sums / np.maximum(numbers, 1)[:, None], numbers
