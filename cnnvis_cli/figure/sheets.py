"""Layer sheets: pure functions from arrays to a canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.figure.canvas import FAINT, Canvas, text_size

Pixels = NDArray[np.uint8]
TITLE, SMALL = 15, 11  # height of letters in pixels
MARGIN = 14
PAGE = 16_000_000  # pixels on one page at most
ROOMY = 24  # pixels of width that a tile needs to carry its own label


@dataclass(frozen=True)
class Caption:
    """What stands above a sheet: a title, and a line on how to read it."""

    title: str
    note: str


@dataclass(frozen=True)
class Cell:
    """One unit's picture (h, w, 3) with its label; `dead` crosses it out."""

    label: str
    pixels: Pixels
    dead: bool = False


def sheet(cells: Sequence[Cell], caption: Caption, scale: int = 1) -> Canvas:
    """All cells in a grid as square as it gets, row by row, under a caption.

    Cells are of one size. Each carries its label underneath where there is room; small ones share
    a label for the row, that of its first cell.
    """
    height, width = (side * scale for side in cells[0].pixels.shape[:2])
    grid = _Grid.around(len(cells), height, width, max(text_size(c.label, SMALL)[0] for c in cells))
    notes = wrapped(caption.note, max(grid.width, 360))
    head = MARGIN + TITLE + 6 + len(notes) * (SMALL + 4) + 8
    texts = [text_size(caption.title, TITLE)[0], *(text_size(line, SMALL)[0] for line in notes)]
    canvas = Canvas(head + grid.height + MARGIN, max(grid.width, *texts) + 2 * MARGIN)
    draw_caption(canvas, caption.title, notes)
    for number, cell in enumerate(cells):
        row, column = divmod(number, grid.columns)
        top = head + row * grid.row_pitch
        left = MARGIN + grid.gutter + column * grid.column_pitch
        canvas.tile(cell.pixels, top, left, scale)
        if cell.dead:
            canvas.cross(top, left, height, width)
        if not grid.gutter:
            canvas.text(cell.label, top + height + 1, left, SMALL, FAINT)
        elif column == 0:
            canvas.text(cell.label, top + (height - SMALL) // 2 - 1, MARGIN, SMALL, FAINT)
    return canvas


def draw_caption(canvas: Canvas, title: str, notes: Sequence[str]) -> None:
    """A title with the lines below it, in the sheet's upper left corner."""
    canvas.text(title, MARGIN, MARGIN, TITLE)
    for number, line in enumerate(notes):
        canvas.text(line, MARGIN + TITLE + 6 + number * (SMALL + 4), MARGIN, SMALL, FAINT)


@dataclass(frozen=True)
class _Grid:
    """Where cells go: pixels from one to the next, and what is left for labels of rows."""

    rows: int
    columns: int
    row_pitch: int
    column_pitch: int
    gutter: int  # width of the labels of rows; 0 where each cell has its own

    @classmethod
    def around(cls, count: int, height: int, width: int, label: int) -> _Grid:
        own = width >= max(ROOMY, label)
        gap = max(3, min(width // 12, 12))
        row_pitch = height + (SMALL + 6 if own else 0) + gap
        if not own:
            row_pitch = max(row_pitch, SMALL + 3)
        column_pitch = width + gap
        columns = max(1, min(count, round(math.sqrt(count * row_pitch / column_pitch * 1.3))))
        if not own and columns >= 8:
            columns -= columns % 8  # labels of rows are then easy to count from
        rows = -(-count // columns)
        return cls(rows, columns, row_pitch, column_pitch, 0 if own else label + 8)

    @property
    def height(self) -> int:
        return self.rows * self.row_pitch

    @property
    def width(self) -> int:
        return self.gutter + self.columns * self.column_pitch


def wrapped(text: str, width: int) -> list[str]:
    """A text in lines that are at most `width` pixels wide."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_size(longer, SMALL)[0] > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def block(tiles: Pixels, columns: int = 3, gap: int = 1) -> Pixels:
    """Tiles (n, h, w, 3) as one picture, `columns` a row, a white `gap` between them."""
    count, height, width, _ = tiles.shape
    rows = -(-count // columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    picture = np.full(size, 255, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        picture[top : top + height, left : left + width] = tile
    return picture


def beside(left: Pixels, right: Pixels, gap: int = 4) -> Pixels:
    """Two pictures of one height, side by side."""
    space = np.full((left.shape[0], gap, 3), 255, np.uint8)
    return np.concatenate([left, space, right], axis=1)


def per_page(height: int, width: int, scale: int) -> int:
    """How many cells of this size a page holds."""
    area = (height * scale + SMALL + 14) * (width * scale + 8)
    return max(1, PAGE // area)
