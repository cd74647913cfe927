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
FILTER_GAP, GAP_IN_COLUMN = 8, 4  # between filters, for the frames
FRAME, WIDE, WIDE_IN_COLUMN = INKS[1], 3, 1
HEAD = SMALL + 10  # for a sheet's title
EASY = 8  # the columns of large sheets are a multiple of this, for easy counting


@dataclass(frozen=True)
class Marks:
    """Which filters are framed, and which are crossed out: (n,) each."""

    framed: NDArray[np.bool_]
    crossed: NDArray[np.bool_]


@dataclass(frozen=True)
class FilterSheet:
    """Filters (n, h, w, 3) under a title, with their marks."""

    title: str
    tiles: Pixels
    marks: Marks
    scale: float  # pixels per weight, outside of papers


def toned_filters(filters: Floats, tone: str) -> Pixels:
    """Return weights (n, h, w, 3) in 8 bits with 0 at mid-grey, by one of the `TONES`."""
    return about_grey(filters, None if tone == "sheet" else (1, 2, 3))


def filter_scale(size: tuple[int, int]) -> int:
    """Return the pixels per weight that make a filter of this size easy to see."""
    return max(1, round(FILTER_WIDTH / max(size)))


def filter_sheets(sheets: Sequence[FilterSheet], caption: Caption) -> Canvas:
    """Return sheets side by side: filters in several states, or those of several networks."""
    across, grids = len(sheets), [_FilterGrid.of(sheet.tiles, sheet.scale) for sheet in sheets]
    if caption.room:
        titles = max(text_size(sheet.title, SMALL)[0] for sheet in sheets) + SHEET_GAP
        across = max(1, min(across, (caption.room + SHEET_GAP) // titles))
        room = (caption.room + SHEET_GAP) // across - SHEET_GAP
        grids = [_FilterGrid.within(sheet.tiles, room) for sheet in sheets]
    wide, high = max(grid.width for grid in grids), max(grid.height for grid in grids)
    width, pitch = across * (wide + SHEET_GAP) - SHEET_GAP, HEAD + high + SHEET_GAP
    canvas, top = begun(caption, width, -(-len(sheets) // across) * pitch - SHEET_GAP)
    for number, (sheet, grid) in enumerate(zip(sheets, grids, strict=True)):
        row, column = divmod(number, across)
        left, y = MARGIN + column * (wide + SHEET_GAP), top + row * pitch
        canvas.text(sheet.title, y, left + grid.gutter, SMALL, INK)
        thick = WIDE_IN_COLUMN if caption.room else WIDE
        _draw_filters(canvas, sheet, grid, (y + HEAD, left), thick)
    return canvas


@dataclass(frozen=True)
class _FilterGrid:
    """The places of filters in a sheet, in pixels from its upper left corner."""

    count: int
    columns: int
    tile: tuple[int, int]  # height and width of a drawn filter
    scale: float
    gap: int  # between filters, for the frames
    gutter: int  # room for the number of each row's first filter

    @classmethod
    def of(cls, tiles: Pixels, scale: float, gap: int = FILTER_GAP) -> _FilterGrid:
        count = len(tiles)
        height, width = (scaled(side, scale) for side in tiles.shape[1:3])
        columns = min(count, max(1, round(math.sqrt(count))))
        if count >= 4 * EASY:
            columns = max(EASY, columns - columns % EASY)
        gutter = text_size(str(count - 1), SMALL)[0] + 8
        return cls(count, columns, (height, width), scale, gap, gutter)

    @classmethod
    def within(cls, tiles: Pixels, room: int) -> _FilterGrid:
        """Return the grid that fills a width."""
        gap = GAP_IN_COLUMN
        return cls.of(tiles, scale_to(lambda scale: cls.of(tiles, scale, gap).width, room), gap)

    @property
    def width(self) -> int:
        return self.gutter + self.columns * (self.tile[1] + self.gap) - self.gap

    @property
    def height(self) -> int:
        return -(-self.count // self.columns) * (self.tile[0] + self.gap) - self.gap

    def place(self, number: int) -> tuple[int, int]:
        """Return the upper left corner of a filter: top, left."""
        row, column = divmod(number, self.columns)
        return row * (self.tile[0] + self.gap), self.gutter + column * (self.tile[1] + self.gap)


def _draw_filters(
    canvas: Canvas, sheet: FilterSheet, grid: _FilterGrid, corner: tuple[int, int], wide: int
) -> None:
    marks = sheet.marks
    for number, tile in enumerate(sheet.tiles):
        y, x = grid.place(number)
        top, left = corner[0] + y, corner[1] + x
        canvas.tile(tile, top, left, grid.scale)
        if marks.framed[number]:
            canvas.border(top, left, *grid.tile, FRAME, wide)
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
