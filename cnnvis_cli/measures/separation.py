"""How well values separate one group of images from all others: the area under the ROC curve."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from cnnvis_cli.arrays import Doubles, Floats, Int64s

UNITS = 256  # whose ranks are in memory at a time


@dataclass(frozen=True)
class Groups:
    """Groups of N images, each with a name; they may overlap."""

    names: tuple[str, ...]
    members: NDArray[np.bool_]  # (G, N)

    @property
    def sizes(self) -> Int64s:
        found: Int64s = self.members.sum(axis=1)
        return found

    def within(self, names: Collection[str]) -> set[str]:
        """Return the names of the groups all of whose images are in one of these groups."""
        found = set()
        for name, inside in zip(self.names, self.members, strict=True):
            if name in names:
                found |= {self.names[n] for n in np.flatnonzero(~(self.members & ~inside).any(1))}
        return found


def areas(values: Floats, groups: Groups) -> Doubles:
    """Return the area under the curve of each of C units for each group: (N, C) -> (G, C).

    It is the share of pairs, one image in the group and one outside, of which the one inside has
    the larger value; a tie counts half. NaN is below all numbers.
    """
    found = np.empty((len(groups.names), values.shape[1]))
    for first in range(0, values.shape[1], UNITS):
        some = values[:, first : first + UNITS]
        ranks = rankdata(np.where(np.isnan(some), -np.inf, some), axis=0)
        found[:, first : first + UNITS] = _areas_of_ranks(np.asarray(ranks, np.float64), groups)
    return found


def _areas_of_ranks(ranks: Doubles, groups: Groups) -> Doubles:
    inside = groups.sizes[:, None]
    sums = groups.members.astype(np.float64) @ ranks
    found: Doubles = (sums - inside * (inside + 1) / 2) / (inside * (len(ranks) - inside))
    return found


def best_by_chance(groups: Groups, shuffles: int, seed: int) -> Doubles:
    """Return the largest area over all groups for each of some random orders of the images.

    Sorted. Only the order of values matters, so this is the same for all units; ties would make
    it smaller.
    """
    generator = np.random.default_rng(seed)
    order = np.arange(1, groups.members.shape[1] + 1, dtype=np.float64)
    orders = np.stack([generator.permutation(order) for _ in range(shuffles)], axis=1)
    return np.sort(_areas_of_ranks(orders, groups).max(axis=0))


def chances(best: Doubles, by_chance: Doubles) -> Doubles:
    """Return the share of random orders, this one among them, with a best area as large: (C,)."""
    larger = len(by_chance) - np.searchsorted(by_chance, best - 1e-12)
    found: Doubles = (1 + larger) / (1 + len(by_chance))
    return found


def standard_errors(values: Floats, groups: Groups, chosen: Sequence[int] | Int64s) -> Doubles:
    """Return the standard error of each unit's area for its chosen group: (N, C), (C,) -> (C,).

    From the spread of the placements of the images inside and outside (DeLong, DeLong and
    Clarke-Pearson 1988, equation 4); NaN for a group of one image.
    """
    found = np.full(values.shape[1], np.nan)
    for unit, group in enumerate(chosen):
        inside = groups.members[group]
        column = np.where(np.isnan(values[:, unit]), -np.inf, values[:, unit])
        above, below = np.sort(column[inside]), np.sort(column[~inside])
        if len(above) > 1 and len(below) > 1:
            of_inside, of_outside = _placements(below, above), _placements(above, below)
            parts = of_inside.var(ddof=1) / len(above), of_outside.var(ddof=1) / len(below)
            found[unit] = np.sqrt(sum(parts))
    return found


def _placements(among: Floats, values: Floats) -> Doubles:
    """Return the share of sorted numbers that is below each value, ties counted half."""
    lower, upper = (np.searchsorted(among, values, side) for side in ("left", "right"))
    found: Doubles = (lower + upper) / (2 * len(among))
    return found
