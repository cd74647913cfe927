"""The k strongest places of each channel, as a value that merges in any order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Floats, Int64s


@dataclass(frozen=True)
class TopK:
    """For each of C channels, up to k places, strongest first; arrays of (C, k).

    The order is total: activation descending, then image, row and column ascending. A slot is empty
    where image is -1; its activation is NaN. NaN never takes a slot. `merge` is associative,
    commutative and idempotent, so that a dataset can be divided anywhere.
    """

    activation: Floats
    image: Int64s
    row: Int64s
    column: Int64s

    @classmethod
    def empty(cls, channels: int, k: int) -> TopK:
        nowhere = np.full((channels, k), -1, np.int64)
        return cls(np.full((channels, k), np.nan, np.float32), nowhere, nowhere * 0, nowhere * 0)

    @classmethod
    def of(cls, activation: Floats, image: Int64s, row: Int64s, column: Int64s, k: int) -> TopK:
        """Return the k strongest of candidate places, arrays of (C, n) each, in any order.

        Candidates with image -1 or a NaN activation are not places; a place given twice counts
        once.
        """
        image = np.where(np.isnan(activation), -1, image)
        none = image < 0
        order = np.lexsort((column, row, image, -activation, none), axis=-1)
        twin = np.zeros_like(none)
        alike = [
            _repeats(np.take_along_axis(a, order, -1)) for a in (activation, image, row, column)
        ]
        twin[:, 1:] = np.logical_and.reduce(alike)
        gone = np.take_along_axis(none, order, -1) | twin
        last = np.argsort(gone, axis=-1, kind="stable")[:, :k]
        gone, keep = np.take_along_axis(gone, last, -1), np.take_along_axis(order, last, -1)
        filled = cls.empty(len(activation), k)
        width = keep.shape[1]
        for target, values, nothing in (
            (filled.activation, activation, np.nan),
            (filled.image, image, -1),
            (filled.row, row, 0),
            (filled.column, column, 0),
        ):
            target[:, :width] = np.where(gone, nothing, np.take_along_axis(values, keep, -1))
        return filled

    def rows(self, chosen: slice) -> TopK:
        """Return the places of some of the channels."""
        return TopK(
            self.activation[chosen], self.image[chosen], self.row[chosen], self.column[chosen]
        )

    def on_map(self, width: int) -> TopK:
        """Return places on a map of this `width`, where `row` counted all its places before."""
        return TopK(self.activation, self.image, self.row // width, self.row % width)

    def negated(self) -> TopK:
        """Return places with activations of the other sign; never -0."""
        return TopK(0 - self.activation, self.image, self.row, self.column)

    def merge(self, other: TopK) -> TopK:
        """Return the k strongest places of both."""
        return TopK.of(
            np.concatenate((self.activation, other.activation), axis=1),
            np.concatenate((self.image, other.image), axis=1),
            np.concatenate((self.row, other.row), axis=1),
            np.concatenate((self.column, other.column), axis=1),
            self.activation.shape[1],
        )


def _repeats(values: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return whether each entry equals the one before it in its row: (C, n) -> (C, n - 1)."""
    equal: NDArray[np.bool_] = values[:, 1:] == values[:, :-1]
    return equal
