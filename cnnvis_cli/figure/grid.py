"""A layer's maps as tiles in a square, in a stated tone: pure functions from numbers to pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Floats
from cnnvis_cli.nouns import Axis, ReceptiveField, Size

Grey = NDArray[np.uint8]
TILE_GAP = 1  # between tiles, in pixels of the maps, as in the toolbox
PAPER = 255
SCALE_RULES = {
    "layer": "one scale for the layer",
    "tile": "each channel on its own scale",
}


class Scale(NamedTuple):
    """The smallest and the largest value shown by one tone: (1 or C, 1, 1) each.

    If nothing is negative, 0 is black and the largest value white; otherwise 0 is mid-grey.
    """

    low: Floats
    high: Floats
    signed: bool

    @classmethod
    def of(cls, maps: Floats, rule: str) -> Scale:
        """Return the scale of maps (..., C, h, w) by one of the `SCALE_RULES`."""
        axes = tuple(i for i in range(maps.ndim) if rule == "layer" or i != maps.ndim - 3)
        low = maps.min(axis=axes, keepdims=True).reshape(-1, 1, 1)
        high = maps.max(axis=axes, keepdims=True).reshape(-1, 1, 1)
        return cls(low, high, bool(low.min() < 0))

    def widened(self, other: Scale) -> Scale:
        """Return the scale that covers both."""
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Scale(low, high, self.signed or other.signed)

    def grey(self, maps: Floats) -> Grey:
        """Return maps (C, h, w) as grey levels: x / max, or x / max(2 max, -2 min) + 0.5."""
        divisor = np.maximum(2 * self.high, -2 * self.low) if self.signed else self.high
        levels = maps * (255 / np.where(divisor > 0, divisor, np.float32(1)))
        levels += 128 if self.signed else 0.5  # 0.5 * 255, plus a half for rounding
        return np.clip(levels, 0, 255, out=levels).astype(np.uint8)

    def rule(self, tone: str) -> str:
        """Return how to read the grey levels, in words."""
        words = "x / max(2 max, -2 min) + 0.5, 0 is mid-grey" if self.signed else SIMPLE
        span = f", {self.low.min():.4g} to {self.high.max():.4g}" if tone == "layer" else ""
        return f"{words}; {SCALE_RULES[tone]}{span}"


SIMPLE = "x / max, 0 is black"  # if nothing is negative


def finite(values: Floats) -> tuple[Floats, int]:
    """Return values with 0 for every non-finite one, and the number of these."""
    bad = ~np.isfinite(values)
    count = int(bad.sum())
    return (np.where(bad, np.float32(0), values) if count else values), count


def columns_of(count: int) -> int:
    """Return the tiles per row: those of the smallest square that holds all, as in the toolbox."""
    return math.ceil(math.sqrt(count))


@dataclass(frozen=True)
class Grid:
    """Tiles of one size, row by row in a square."""

    count: int
    tile: Size

    @property
    def columns(self) -> int:
        return columns_of(self.count)

    @property
    def rows(self) -> int:
        return -(-self.count // self.columns)

    @property
    def pitch(self) -> Size:
        """The distance in pixels from a tile to the one below and to the next."""
        return self.tile[0] + TILE_GAP, self.tile[1] + TILE_GAP

    @property
    def size(self) -> Size:
        return self.rows * self.pitch[0] - TILE_GAP, self.columns * self.pitch[1] - TILE_GAP

    def picture(self, tiles: Grey) -> Grey:
        """Return all tiles (C, h, w) as one picture."""
        (height, width), (down, across) = self.tile, self.pitch
        whole = np.full((self.rows * self.columns, down, across), PAPER, np.uint8)
        whole[: self.count, :height, :width] = tiles
        square = whole.reshape(self.rows, self.columns, down, across).transpose(0, 2, 1, 3)
        picture = square.reshape(self.rows * down, self.columns * across)
        return picture[:-TILE_GAP, :-TILE_GAP]


def grid_of(maps: Floats) -> Grid:
    return Grid(len(maps), (maps.shape[1], maps.shape[2]))


def in_colour(grey: Grey) -> Grey:
    """Return grey levels (h, w) as a picture (h, w, 3)."""
    return np.repeat(grey[..., None], 3, axis=-1)


def over_image(
    values: Floats, field: ReceptiveField, size: Size, smooth: bool = True
) -> NDArray[np.float32]:
    """Return a map (h, w) laid over the image (H, W): each place at the centre of its field.

    Between centres it is interpolated, or takes the value of the nearest place; beyond the
    outermost centres it is continued.
    """
    rows = _weights(field.rows, values.shape[0], size[0], smooth)
    columns = _weights(field.columns, values.shape[1], size[1], smooth)
    return np.asarray(rows @ values @ columns.T, np.float32)


def _weights(axis: Axis, count: int, length: int, smooth: bool) -> Floats:
    """Return the weight of each of `count` places in each of `length` pixels: (length, count)."""
    pixels = np.arange(length) + 0.5
    where: Any = (pixels - axis.start - axis.size / 2) / (axis.stride or 1)
    if not axis.stride:  # every place sees everything: spread evenly
        where = pixels * count / length - 0.5
    where = np.clip(where if smooth else np.rint(where), 0, count - 1)
    weights = np.maximum(0, 1 - np.abs(where[:, None] - np.arange(count)))
    return np.asarray(weights, np.float32)
