"""Sheets of filters side by side, with marks: a pure function from pixels to a canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Floats, Pixels
from cnnvis_cli.figure.canvas import FAINT, INK, WHITE, Canvas, scaled, text_size
from cnnvis_cli.figure.lines import INKS
from cnnvis_cli.figure.sheets import MARGIN, SHEET_GAP, SMALL, Caption, begun, scale_to
from cnnvis_cli.figure.tone import about_grey

TONES = {
    "tile": "x / (2 max |x|) + 0.5, each filter on its own",
    "sheet": "x / (2 max |x|) + 0.5, one scale for each of the two sheets",
}
FILTER_WIDTH = 44  # approximate width of a filter in pixels, unless a scale is given
FILTER_GAP = 8  # between filters, for the frames
FRAME, WIDE = INKS[1], 3
HEAD = SMALL + 10  # for a sheet's title
EASY = 8  # the columns of large sheets are a multiple of this, for easy counting


@dataclass(frozen=True)
class FilterSheet:
    """Filters (n, h, w, 3) under a title."""

    title: str
    tiles: Pixels


@dataclass(frozen=True)
class Marks:
    """Which filters are framed, and which are crossed out: (n,) each."""

    framed: NDArray[np.bool_]
    crossed: NDArray[np.bool_]


def toned_filters(filters: Floats, tone: str) -> Pixels:
    """Return weights (n, h, w, 3) in 8 bits with 0 at mid-grey, by one of the `TONES`."""
    return about_grey(filters, None if tone == "sheet" else (1, 2, 3))


def filter_scale(size: tuple[int, int]) -> int:
    """Return the pixels per weight that make a filter of this size easy to see."""
    return max(1, round(FILTER_WIDTH / max(size)))


def filter_sheets(
    sheets: Sequence[FilterSheet], marks: Marks, caption: Caption, scale: float
) -> Canvas:
    """Return the same filters in several states side by side, marked alike in each."""
    tiles, across = sheets[0].tiles, len(sheets)
    if caption.room:
        titles = max(text_size(sheet.title, SMALL)[0] for sheet in sheets) + SHEET_GAP
        across = max(1, min(across, (caption.room + SHEET_GAP) // titles))
        room = (caption.room + SHEET_GAP) // across - SHEET_GAP
        scale = scale_to(lambda scale: _FilterGrid.of(tiles, scale).width, room)
    grid = _FilterGrid.of(tiles, scale)
    width = across * (grid.width + SHEET_GAP) - SHEET_GAP
    pitch = HEAD + grid.height + SHEET_GAP
    canvas, top = begun(caption, width, -(-len(sheets) // across) * pitch - SHEET_GAP)
    for number, sheet in enumerate(sheets):
        row, column = divmod(number, across)
        left, y = MARGIN + column * (grid.width + SHEET_GAP), top + row * pitch
        canvas.text(sheet.title, y, left + grid.gutter, SMALL, INK)
        _draw_filters(canvas, sheet.tiles, marks, grid, (y + HEAD, left))
    return canvas


@dataclass(frozen=True)
class _FilterGrid:
    """The places of filters in a sheet, in pixels from its upper left corner."""

    count: int
    columns: int
    tile: tuple[int, int]  # height and width of a drawn filter
    scale: float
    gutter: int  # room for the number of each row's first filter

    @classmethod
    def of(cls, tiles: Pixels, scale: float) -> _FilterGrid:
        count = len(tiles)
        height, width = (scaled(side, scale) for side in tiles.shape[1:3])
        columns = min(count, max(1, round(math.sqrt(count))))
        if count >= 4 * EASY:
            columns = max(EASY, columns - columns % EASY)
        gutter = text_size(str(count - 1), SMALL)[0] + 8
        return cls(count, columns, (height, width), scale, gutter)

    @property
    def width(self) -> int:
        return self.gutter + self.columns * (self.tile[1] + FILTER_GAP) - FILTER_GAP

    @property
    def height(self) -> int:
        return -(-self.count // self.columns) * (self.tile[0] + FILTER_GAP) - FILTER_GAP

    def place(self, number: int) -> tuple[int, int]:
        """Return the upper left corner of a filter: top, left."""
        row, column = divmod(number, self.columns)
        return row * (self.tile[0] + FILTER_GAP), self.gutter + column * (self.tile[1] + FILTER_GAP)


def _draw_filters(
    canvas: Canvas, tiles: Pixels, marks: Marks, grid: _FilterGrid, corner: tuple[int, int]
) -> None:
    for number, tile in enumerate(tiles):
        y, x = grid.place(number)
        top, left = corner[0] + y, corner[1] + x
        canvas.tile(tile, top, left, grid.scale)
        if marks.framed[number]:
            canvas.border(top, left, *grid.tile, FRAME, WIDE)
        if marks.crossed[number]:
            _cross(canvas, top, left, grid.tile)
        if number % grid.columns == 0:
            middle = top + (grid.tile[0] - SMALL) // 2 - 1
            canvas.text(str(number), middle, corner[1], SMALL, FAINT)


def _cross(canvas: Canvas, top: int, left: int, size: tuple[int, int]) -> None:
    """Cross out a filter, visible on any colour: dark on a white edge."""
    bottom, right = top + size[0] - 1, left + size[1] - 1
    arms = ([(left, top), (right, bottom)], [(left, bottom), (right, top)])
    for ink, width in ((WHITE, 3), (INK, 1)):
        for arm in arms:
            canvas.line(arm, ink, width)
