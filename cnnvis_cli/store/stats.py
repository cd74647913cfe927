"""Statistics of each channel of a layer over a whole dataset."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Arrays, Doubles
from cnnvis_cli.histogram import BINS, quantiles
from cnnvis_cli.store.topk import TopK

ROWS = 8192  # channels whose places are merged at a time


class Piece(Protocol):
    """A stored part, of which some arrays are read at a time."""

    @property
    def names(self) -> Collection[str]:
        """Return the names of its arrays."""

    def read(self, names: Sequence[str]) -> Arrays:
        """Return arrays by name."""


@dataclass
class Account:
    """The sums of channels `first` to `last`, added part by part.

    Sums are rounded: for the same last bits, add parts in one fixed order. `lowest` holds negated
    activations.
    """

    first: int
    last: int
    k: int
    minima: bool = False
    images: int = 0
    strongest: TopK = field(init=False)
    lowest: TopK | None = field(init=False)
    sums: Doubles = field(init=False)  # (2, C): total, squares
    active: Doubles = field(init=False)  # (C,) places above 0
    histogram: NDArray[np.int64] = field(init=False)  # (C, BINS)
    classes: dict[int, tuple[int, Doubles]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        channels = self.last - self.first
        self.strongest = TopK.empty(channels, self.k)
        self.lowest = TopK.empty(channels, self.k) if self.minima else None
        self.sums, self.active = np.zeros((2, channels)), np.zeros(channels)
        self.histogram = np.zeros((channels, BINS), np.int64)

    def add(self, part: Arrays) -> None:
        """Add one part, with the arrays of `network.tally.Tally.arrays`, or several as `joined`."""
        mine = slice(self.first, self.last)
        self.images += int(part["images"][0])
        self.strongest = self.strongest.merge(_part_places(part, "", mine))
        if self.lowest is not None:
            self.lowest = self.lowest.merge(_part_places(part, "min.", mine))
        for sums in _rounded_sums(part, mine):
            self.sums += sums
        self.active += part["active"][mine]
        bins = slice(*np.searchsorted(part["bin"], (self.first * BINS, self.last * BINS)))
        self.histogram.ravel()[part["bin"][bins] - self.first * BINS] += part["count"][bins]
        for row, label in enumerate(part["class"].tolist()):
            images, total = self.classes.get(label, (0, np.zeros(self.last - self.first)))
            more, positive = int(part["class_images"][row]), part["class_positive"][row, mine]
            self.classes[label] = images + more, total + positive

    def of(self, channels: slice, places: int) -> tuple[TopK, TopK | None, Arrays]:
        """Return strongest and lowest places and statistics of a layer with maps of `places`.

        `channels` counts from this account's first one.
        """
        chosen = slice(channels.start - self.first, channels.stop - self.first)
        lowest = self.lowest and self.lowest.rows(chosen)
        return self.strongest.rows(chosen), lowest, self._statistics(chosen, places)

    def _statistics(self, chosen: slice, places: int) -> Arrays:
        """Return mean, deviation, maximum, share above 0 and so on; NaN without an image."""
        largest = self.strongest.activation[chosen, 0].astype(np.float64)
        counts = self.histogram[chosen]
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            total, squares = self.sums[:, chosen] / (self.images * places)
            active = self.active[chosen] / (self.images * places)
            std = np.sqrt(np.maximum(squares - total**2, 0))
        best, index = self._selectivity(chosen)
        return {
            "stats/mean": total,
            "stats/std": std,
            "stats/max": largest,
            "stats/active": active,
            "stats/dead": self.active[chosen] == 0,
            "stats/selectivity": index,
            "stats/class": best,
            "stats/quantiles": quantiles(counts, largest),
            "histogram": counts,
        }

    def _selectivity(self, chosen: slice) -> tuple[NDArray[np.int32], Doubles]:
        """Return the class that activates each channel most, and the class selectivity index.

        (a - b) / (a + b), where a is the channel's mean rectified activation over the images of
        that class and b the mean of the other classes' means (Morcos et al. 2018, arXiv:1803.06959,
        section 2.3); 0 for no preference, 1 for a single class. NaN and -1 with fewer than two
        classes, or if the channel is never active.
        """
        channels = self.active[chosen].shape[0]
        if len(self.classes) < 2:
            return np.full(channels, -1, np.int32), np.full(channels, np.nan)
        labels = sorted(self.classes)
        means = np.array([self.classes[la][1][chosen] / self.classes[la][0] for la in labels])
        best = means.argmax(axis=0)
        largest = means.max(axis=0)
        others = (means.sum(axis=0) - largest) / (len(labels) - 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            index = (largest - others) / (largest + others)
        known = largest > 0
        return (
            np.where(known, np.array(labels)[best], -1).astype(np.int32),
            np.where(known, index, np.nan),
        )


def joined(pieces: Sequence[Piece], channels: int) -> Arrays:
    """Return neighbouring parts, or several already joined, in their order as one.

    To be added to an account, to the same bits. What can be added in any order is added: the
    strongest places and whole numbers. Of rounded sums each part's row stays, (parts, M).
    """
    found: Arrays = {}
    for prefix in ("", "min.") if "min.place" in pieces[0].names else ("",):
        names = [prefix + name for name in ("activation", "image", "place")]
        places = [piece.read(names) for piece in pieces]
        found |= {name: np.empty_like(places[0][name]) for name in names}
        for start in range(0, channels, ROWS):
            rows = slice(start, start + ROWS)
            part = reduce(TopK.merge, (_part_places(each, prefix, rows) for each in places))
            for name, values in zip(names, (part.activation, part.image, part.row), strict=True):
                found[name][rows] = values
    for name in ("total", "squares"):
        found[name] = np.concatenate([np.atleast_2d(piece.read([name])[name]) for piece in pieces])
    for name in ("active", "images"):
        found[name] = np.sum([piece.read([name])[name] for piece in pieces], axis=0)
    for name in ("class", "class_images", "class_positive", "crc", "failures", "reasons"):
        found[name] = np.concatenate([piece.read([name])[name] for piece in pieces])
    return found | _joined_histograms(pieces, channels)


def _joined_histograms(pieces: Sequence[Piece], channels: int) -> Arrays:
    counts = np.zeros(channels * BINS, np.int32)  # at most 8 per image of up to 2^28
    for piece in pieces:
        part = piece.read(["bin", "count"])
        counts[part["bin"]] += part["count"]
    filled = np.flatnonzero(counts).astype(np.int32)
    return {"bin": filled, "count": counts[filled]}


def _rounded_sums(part: Arrays, mine: slice) -> Iterator[Doubles]:
    """Yield the sums of each part, (2, C)."""
    total, squares = (np.atleast_2d(part[name]) for name in ("total", "squares"))
    for row in range(len(total)):
        yield np.stack((total[row, mine], squares[row, mine]))


def _part_places(part: Arrays, prefix: str, mine: slice) -> TopK:
    """Return places by their number in the map; rows and columns follow when the layer is known."""
    activation, image, place = (part[prefix + n][mine] for n in ("activation", "image", "place"))
    return TopK(activation, image, place.astype(np.int64), np.zeros_like(image))
