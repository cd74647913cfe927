"""What each channel of a layer does over a whole dataset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Stats:
    """Sums over places and images that add up; `count` places in all, (C,) of the others."""

    count: int
    total: Numbers
    squares: Numbers
    largest: Numbers
    active: Numbers  # places above 0

    @classmethod
    def empty(cls, channels: int) -> Stats:
        zero = np.zeros(channels)
        return cls(0, zero, zero, np.full(channels, -np.inf), zero)

    def merge(self, other: Stats) -> Stats:
        """Of both. The sums are rounded, so merge in one fixed order for the same last bits."""
        return Stats(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            np.maximum(self.largest, other.largest),
            self.active + other.active,
        )

    def summary(self) -> dict[str, Numbers]:
        """Mean, standard deviation, maximum and share of places above 0; NaN without a place."""
        if not self.count:
            nothing = np.full_like(self.total, np.nan)
            return {"mean": nothing, "std": nothing, "max": nothing, "active": nothing}
        with np.errstate(invalid="ignore", over="ignore"):  # of activations that are not finite
            mean = self.total / self.count
            variance = np.maximum(self.squares / self.count - mean**2, 0)
        return {
            "mean": mean,
            "std": np.sqrt(variance),
            "max": self.largest,
            "active": self.active / self.count,
        }
