"""Is an image that a unit is said to prefer preferred: to the best of the photographs?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.ascent.climb import Outcome
from cnnvis_cli.store.optimized import OptimizedFile
from cnnvis_cli.store.run import Run
from cnnvis_cli.store.topk_file import TopKFile

EQUAL = 1e-3  # of the best photograph's value: a unit with a ceiling reaches no more


@dataclass(frozen=True)
class Preference:
    """Each unit's best optimized value beside the best among the images of the dataset."""

    units: NDArray[np.int32]  # (U,)
    optimized: NDArray[np.float32]  # (U,)
    photograph: NDArray[np.float32]  # (U,) NaN where no image has a value
    live: NDArray[np.bool_]  # (U,) whether a gradient reached the image
    images: int  # of the dataset

    @property
    def ratio(self) -> NDArray[np.float64]:
        """Return how many times the best photograph's value is reached; NaN if that is not above 0.

        Shape (U,).
        """
        known = np.where(self.photograph > 0, self.photograph, np.nan).astype(np.float64)
        return self.optimized / known

    @property
    def preferred(self) -> NDArray[np.bool_]:
        """Return which units prefer their image, within `EQUAL`: (U,)."""
        margin = EQUAL * np.abs(self.photograph)
        reached: NDArray[np.bool_] = self.optimized >= self.photograph - margin
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
    def _compared(self) -> NDArray[np.bool_]:
        compared: NDArray[np.bool_] = self.live & np.isfinite(self.photograph)
        return compared


def preference_of(run: Run, alias: str, group: str) -> Preference | None:
    """Return how a layer's images of a style compare with the images of the run's top-k.

    None if the run has no top-k of the layer, or if the style maximises something else than the
    value that top-k ranks by.
    """
    file, top = OptimizedFile(run.optimized(alias)), TopKFile(run.topk)
    made = file.styles().get(group)
    if made is None or not run.topk.exists() or alias not in top.layers():
        return None
    plain = made.get("objective", "centre") == "centre" and not made.get("targets")
    plain = plain and made.get("image", {}).get("kind") != "Accent"  # stays near a photograph
    if not plain or made.get("softmax") or made.get("minimise"):
        return None
    units = file.units(group)
    best = top.layer(alias).places.activation[units, 0]
    values = file.read(group, "activation")
    live = (file.read(group, "outcome") != int(Outcome.NO_GRADIENT)).any(axis=1)
    return Preference(units, values.max(axis=1), best, live, top.summary()[0])
