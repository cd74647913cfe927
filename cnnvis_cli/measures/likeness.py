"""How alike two layers are, and which of their units: correlations over the same N images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from cnnvis_cli.arrays import Doubles, Floats, Int64s

GROUPS = 20  # of images, each left out once to see how much a number varies


def centred(values: Floats) -> Floats:
    """Return values (N, C) with the mean of each unit removed; NaN becomes the mean.

    Units are scaled by the largest magnitude of all, so that squares stay finite.
    """
    finite = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    known = np.isfinite(finite).any(axis=0)
    means = np.zeros(finite.shape[1])
    means[known] = np.nanmean(finite[:, known], axis=0)
    away = np.nan_to_num(finite - means)
    top = np.abs(away).max(initial=0)
    found: Floats = (away / (top or 1)).astype(np.float32)
    return found


def correlations(x: Floats, y: Floats) -> Doubles:
    """Return Pearson's correlation of each unit of x (N, p) with each of y (N, q): (p, q).

    Both are centred. That of a constant unit is 0.
    """
    sizes = (np.linalg.norm(each.astype(np.float64), axis=0) for each in (x, y))
    across, down = (np.where(size > 0, size, np.inf) for size in sizes)
    found: Doubles = (x.T @ y) / across[:, None] / down
    return np.clip(found, -1, 1)


def alignment(x: Floats, y: Floats, scale: float) -> float:
    """Return the linear centred kernel alignment of centred x (N, p) and y (N, q), unbiased.

    `scale` is the product of the dependence of each on itself. That of layers that have nothing
    in common is 0 on average; NaN where a layer is constant.
    """
    return dependence(x, y) / scale**0.5 if scale > 0 else float("nan")


def dependence(x: Floats, y: Floats) -> float:
    """Return the unbiased HSIC of two linear kernels (Song et al. 2012, equation 5).

    The kernels X X' and Y Y', (N, N) with diagonals of 0, are never formed.
    """
    n = len(x)
    own = [np.square(each, dtype=np.float64).sum(axis=1) for each in (x, y)]  # the diagonals
    sums = [
        each @ each.sum(axis=0, dtype=np.float64) - d for each, d in zip((x, y), own, strict=True)
    ]
    trace = float(np.square(x.T @ y, dtype=np.float64).sum() - own[0] @ own[1])
    both = float(sums[0].sum() * sums[1].sum()) / ((n - 1) * (n - 2))
    return (trace + both - 2 * float(sums[0] @ sums[1]) / (n - 2)) / (n * (n - 3))


def pairs(found: Doubles) -> tuple[Int64s, Int64s]:
    """Return the pairs, one unit of each side, with the largest sum of correlations."""
    rows, columns = linear_sum_assignment(found, maximize=True)
    return rows.astype(np.int64), columns.astype(np.int64)


def best_of_shuffled(x: Floats, y: Floats, order: NDArray[np.int64]) -> Doubles:
    """Return each unit's largest correlation once the images of y are in another order: (p,)."""
    found: Doubles = correlations(x, y[order]).max(axis=1)
    return found


def left_out(images: int, order: NDArray[np.int64]) -> Iterator[Int64s]:
    """Yield the images that stay when one of some groups, random by `order`, is left out."""
    groups = min(GROUPS, images // 3)
    for number in range(groups):
        yield np.sort(np.delete(order, np.arange(number, images, groups)))


def jackknife_error(found: Doubles) -> Doubles:
    """Return the standard error of values that were found with each group left out: (G, ...).

    The delete-a-group jackknife: sqrt((G - 1) / G times the sum of squares about the mean).
    """
    count = len(found)
    away = found - found.mean(axis=0)
    return np.asarray(np.sqrt((count - 1) / count * np.square(away).sum(axis=0)))


def alignment_error(x: Floats, y: Floats, order: NDArray[np.int64]) -> float:
    """Return the standard error of the alignment of x (N, p) and y (N, q) over the images."""
    found = []
    for kept in left_out(len(x), order):
        one, two = (each[kept] - each[kept].mean(axis=0) for each in (x, y))
        found.append(alignment(one, two, dependence(one, one) * dependence(two, two)))
    return float(jackknife_error(np.array(found)))


def correlation_errors(x: Floats, y: Floats, order: NDArray[np.int64]) -> Doubles:
    """Return the standard error of each correlation of x (N, p) with its partner in y: (p,)."""
    found = []
    for kept in left_out(len(x), order):
        one, two = (each[kept] - each[kept].mean(axis=0, dtype=np.float64) for each in (x, y))
        sizes = np.linalg.norm(one, axis=0) * np.linalg.norm(two, axis=0)
        found.append((one * two).sum(axis=0) / np.where(sizes > 0, sizes, np.inf))
    return jackknife_error(np.stack(found))


def rank_vectors(values: Floats) -> Floats:
    """Return the ranks of each row, centred and of length 1: products are rank correlations.

    (n, F) -> (n, F); equal values share their mean rank (Spearman 1904). A constant row is 0.
    """
    ranks = rankdata(values, axis=1) - (values.shape[1] + 1) / 2
    length = np.linalg.norm(ranks, axis=1, keepdims=True)
    found: Floats = (ranks / np.where(length > 0, length, 1)).astype(np.float32)
    return found


def between(some: Floats, others: Floats) -> float:
    """Return the mean product of each of some vectors with each of others: (n, F), (m, F)."""
    return float((some @ others.T).mean(dtype=np.float64))


def within(vectors: Floats) -> float:
    """Return the mean product of each of at least two vectors (n, F) with each other one."""
    products = (vectors @ vectors.T).astype(np.float64)
    count = len(vectors)
    return float((products.sum() - np.trace(products)) / (count * (count - 1)))
