"""How a unit's optimized images compare with the best of a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cnnvis_cli.arrays import Bools, Doubles, Floats, Int32s

EQUAL = 1e-3  # of the best photograph's value: a unit with a ceiling reaches no more


@dataclass(frozen=True)
class Preference:
    """Each unit's best optimized value beside the best among the images of the dataset."""

    units: Int32s  # (U,)
    optimized: Floats  # (U,)
    photograph: Floats  # (U,) NaN where no image has a value
    live: Bools  # (U,) whether a gradient reached the image
    images: int  # of the dataset

    @property
    def ratio(self) -> Doubles:
        """Return how many times the best photograph's value is reached; NaN if that is not above 0.

        Shape (U,).
        """
        known = np.where(self.photograph > 0, self.photograph, np.nan).astype(np.float64)
        return self.optimized / known

    @property
    def preferred(self) -> Bools:
        """Return which units prefer their image, within `EQUAL`: (U,)."""
        margin = EQUAL * np.abs(self.photograph)
        reached: Bools = self.optimized >= self.photograph - margin
        return reached

    def of(self, units: Sequence[int]) -> Preference:
        """Return that of some of the units."""
        rows = np.searchsorted(self.units, units)
        return replace(
            self,
            units=self.units[rows],
            optimized=self.optimized[rows],
            photograph=self.photograph[rows],
            live=self.live[rows],
        )

    def summary(self) -> str:
        """Return the words of a result line."""
        compared = self._compared
        ratios = self.ratio[compared]
        beaten = int((self.preferred & compared).sum())
        if not compared.any():
            return f"no live unit has a value among {self.images} images to compare with"
        text = (
            f"{beaten} of {int(compared.sum())} live units prefer their image to the best of "
            f"{self.images} images"
        )
        if np.isfinite(ratios).any():
            text += f" (median {np.nanmedian(ratios):.2f} times its value)"
        return text

    @property
    def below(self) -> list[int]:
        """Return the live units that prefer a photograph."""
        found: list[int] = self.units[self._compared & ~self.preferred].tolist()
        return found

    @property
    def _compared(self) -> Bools:
        compared: Bools = self.live & np.isfinite(self.photograph)
        return compared
