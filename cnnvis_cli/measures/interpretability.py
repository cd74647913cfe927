"""The Machine Interpretability Score: do pictures of a unit tell which image activates it more?

Zimmermann, Klindt and Brendel, NeurIPS 2024; docs/methods.md says what is done in another way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Doubles, Floats, Int64s

TAIL = 0.1  # of the images, at each end, from which queries and explanations come
EXPLANATION_SIZE = 9  # images that explain a side: K of the paper
TASKS = 20
LEAST_TASKS = 5
RESAMPLED = 200  # times, for the spread


@dataclass(frozen=True)
class Tasks:
    """A unit's tasks: which of two query images, row by row, activates it more?"""

    strong: Int64s  # (T,) queries from the upper tail
    weak: Int64s  # (T,) and from the lower one
    strongest: Int64s  # (K,) images that explain what activates it
    weakest: Int64s  # (K,) and what does not


def least_images() -> int:
    """Return how many images are needed for the fewest tasks."""
    return round((EXPLANATION_SIZE + LEAST_TASKS) / TAIL)


def unit_tasks(values: Floats) -> Tasks:
    """Return the tasks of a unit with these values (N,) in N images.

    The strongest and the weakest K images explain; queries are spread evenly over the rest of both
    tails. NaN is below all numbers; equal values are in the order of the images.
    """
    order = np.argsort(np.where(np.isnan(values), -np.inf, values), kind="stable")
    size = round(TAIL * len(values))
    rest = np.arange(EXPLANATION_SIZE, size)
    spread = rest[np.linspace(0, len(rest) - 1, min(TASKS, len(rest))).round().astype(np.int64)]
    down, most = order[::-1], EXPLANATION_SIZE
    return Tasks(down[spread], order[spread], down[:most], order[:most])


def unit_length(features: Floats, mean: Floats) -> Floats:
    """Return features (n, F) without their mean over the sample (F,), each of length 1."""
    away = features.astype(np.float64) - mean
    size = np.linalg.norm(away, axis=1, keepdims=True)
    found: Floats = (away / np.where(size > 0, size, 1)).astype(np.float32)
    return found


def likeness_gaps(tasks: Tasks, images: Floats, above: Floats, below: Floats | None) -> Doubles:
    """Return for each task how much more the strong query looks like the explanation: (T,).

    `images` (N, F) are features of length 1, `above` and `below` (K, F) those of the
    pictures that explain; without `below` only what activates the unit is explained.
    """
    strong, weak = images[tasks.strong], images[tasks.weak]
    found = (strong @ above.T).mean(axis=1) - (weak @ above.T).mean(axis=1)
    if below is not None:
        found += (weak @ below.T).mean(axis=1) - (strong @ below.T).mean(axis=1)
    return np.asarray(found, np.float64)


def certainties(found: Doubles, alpha: float) -> Doubles:
    """Return how surely each task is solved, 0 to 1, from its difference."""
    return np.asarray(1 / (1 + np.exp(-np.clip(found / alpha, -700, 700))))


def bootstrap_spread(solved: Doubles, generator: np.random.Generator) -> float:
    """Return the standard deviation of the mean over resampled tasks (the bootstrap)."""
    rows: NDArray[np.int64] = generator.integers(0, len(solved), (RESAMPLED, len(solved)))
    return float(solved[rows].mean(axis=1).std())
