"""Layer sheets: pure functions from arrays to a canvas."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.figure.canvas import FAINT, INK, Canvas, scaled, shortened, text_size
from cnnvis_cli.nouns import Column

TITLE, SMALL = 15, 11  # height of text in pixels
MARGIN = 14
SHEET_GAP = 28  # pixels between sheets side by side
PAGE = 16_000_000  # most pixels on one page
ROOMY = 24  # least width in pixels of a tile with its own label
CLASS_NAME_WIDTH = 48  # and with a class name
LABELLED = 80  # and with a label that may be shortened
LINE = SMALL + 4
PAPER_TILE = 20  # least side in pixels of a tile in a paper, if fewer columns help
GAP_OF_ROWS = 14  # pixels between rows of layers
WIDEST_TILE = 150  # most pixels of a side there, for a unit of few pictures
SPACE = 5  # pixels between panes of a cell


@dataclass(frozen=True)
class Caption:
    """The text above a sheet: a title, and a line on how to read it.

    In a `column` of a paper it is not on the sheet, which is as wide as the column.
    """

    title: str
    note: str
    column: Column | None = None

    @property
    def room(self) -> int:
        """The width of the column in pixels of the sheet; 0 where there is none."""
        return room_of(self.column)

    @property
    def text(self) -> str:
        """All of it, as a caption."""
        return f"{self.title}. {self.note}".strip()


def room_of(column: Column | None) -> int:
    """Return a column's width in pixels of a sheet, whose small text has the column's height."""
    return 0 if column is None else int(column.width / column.points * SMALL)


def scale_to(width: Callable[[float], int], room: int) -> float:
    """Return the largest scale at which a width that grows with it fits; 0 if none does."""
    low, high = 0.0, 64.0
    for _ in range(24):
        middle = (low + high) / 2
        if width(middle) <= room:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Pane:
    """Pictures of one size (n, h, w, 3), `columns` per row, with names under them."""

    tiles: Pixels
    columns: int = 3
    names: tuple[str, ...] = ()
    title: str = ""

    def size(self, scale: float) -> tuple[int, int]:
        """The height and width on the sheet."""
        count = len(self.tiles)
        down, across = self.pitch(scale)
        rows, columns = -(-count // self.columns), min(self.columns, count)
        head = LINE if self.title else 0
        title = text_size(self.title, SMALL)[0] if self.title else 0
        return head + rows * down - 1, max(columns * across - 1, title)

    def pitch(self, scale: float) -> tuple[int, int]:
        """The distance in pixels from a picture to the one below and to the next."""
        height, width = (scaled(side, scale) for side in self.tiles.shape[1:3])
        return height + 1 + (LINE if self.named(scale) else 0), width + 1

    def named(self, scale: float) -> bool:
        """Whether there are names (they may be empty), and room for them."""
        return bool(self.names) and scaled(self.tiles.shape[2], scale) >= CLASS_NAME_WIDTH

    def canvas(self) -> Canvas:
        """Return the pane alone, as its own sheet."""
        canvas = Canvas(*self.size(1))
        self.draw(canvas, 0, 0, 1)
        return canvas

    def draw(self, canvas: Canvas, top: int, left: int, scale: float) -> None:
        if self.title:
            canvas.text(self.title, top, left, SMALL, FAINT)
            top += LINE
        down, across = self.pitch(scale)
        for number, tile in enumerate(self.tiles):
            row, column = divmod(number, self.columns)
            y, x = top + row * down, left + column * across
            canvas.tile(tile, y, x, scale)
            if self.named(scale) and number < len(self.names):
                name = shortened(self.names[number], SMALL, across - 3)
                canvas.text(name, y + scaled(tile.shape[0], scale) + 1, x, SMALL, FAINT)


@dataclass(frozen=True)
class Cell:
    """One unit's panes with its label, `across` of them per row; `dead` crosses it out."""

    label: str
    panes: tuple[Pane, ...]
    dead: bool = False
    across: int = 0  # 0: all in one row

    @classmethod
    def of(cls, label: str, pixels: Pixels, dead: bool = False) -> Cell:
        """Return a cell of one picture (h, w, 3)."""
        return cls(label, (Pane(pixels[None], 1),), dead)

    @property
    def rows(self) -> list[tuple[Pane, ...]]:
        across = self.across or len(self.panes)
        return [self.panes[i : i + across] for i in range(0, len(self.panes), across)]

    def size(self, scale: float) -> tuple[int, int]:
        """The height and width on the sheet, without the label."""
        sizes = [[pane.size(scale) for pane in row] for row in self.rows]
        height = sum(max(h for h, _ in row) + SPACE for row in sizes) - SPACE
        return height, max(sum(w + SPACE for _, w in row) for row in sizes) - SPACE

    def draw(self, canvas: Canvas, top: int, left: int, scale: float) -> None:
        y = top
        for row in self.rows:
            x = left
            for pane in row:
                pane.draw(canvas, y, x, scale)
                x += pane.size(scale)[1] + SPACE
            y += max(pane.size(scale)[0] for pane in row) + SPACE
        if self.dead:
            canvas.cross(top, left, *self.size(scale))


def sheet(cells: Sequence[Cell], caption: Caption, scale: float = 1) -> Canvas:
    """Return all cells in a nearly square grid, row by row, under a caption.

    Cells are of one size. Each has its label above if there is room, shortened where it is
    wider; in rows of small cells, only the first has a label.
    """
    placed = _Placed.of(cells, caption, scale)
    canvas, head = begun(caption, placed.grid.width, placed.grid.height)
    placed.draw(canvas, head)
    return canvas


def sheets_below(parts: Sequence[CellRow], caption: Caption) -> Canvas:
    """Return the sheets of several layers below each other, each under its name."""
    size = SMALL if caption.room else TITLE
    sheets = [_Placed.of(part.cells, caption, part.scale) for part in parts]
    heights = [size + 6 + placed.grid.height + GAP_OF_ROWS for placed in sheets]
    canvas, top = begun(caption, max(placed.grid.width for placed in sheets), sum(heights))
    for part, placed, height in zip(parts, sheets, heights, strict=True):
        canvas.text(part.title, top, MARGIN, size)
        placed.draw(canvas, top + size + 6)
        top += height
    return canvas


@dataclass(frozen=True)
class _Placed:
    """The cells of a sheet with their places and their scale."""

    cells: Sequence[Cell]
    scale: float
    grid: _CellGrid

    @classmethod
    def of(cls, cells: Sequence[Cell], caption: Caption, scale: float) -> _Placed:
        """Return cells in a nearly square grid at a scale, or so that they fill a column."""
        label = max(text_size(c.label, SMALL)[0] for c in cells)
        if not caption.room:
            grid = _CellGrid.around(len(cells), *_largest_size(cells, scale), label)
            return cls(cells, scale, grid)
        cells = narrowed(cells, caption.room)
        return cls(cells, *_grid_in_column(cells, label, caption.room))

    def draw(self, canvas: Canvas, head: int) -> None:
        """Draw the cells from a height on."""
        height, _ = _largest_size(self.cells, self.scale)
        grid = self.grid
        for number, cell in enumerate(self.cells):
            row, column = divmod(number, grid.columns)
            top = head + row * grid.row_pitch
            left = MARGIN + grid.gutter + column * grid.column_pitch
            if not grid.gutter:
                label = shortened(cell.label, SMALL, grid.column_pitch - 3)
                canvas.text(label, top, left, SMALL, FAINT)
                top += LINE
            elif column == 0:
                canvas.text(cell.label, top + (height - SMALL) // 2 - 1, MARGIN, SMALL, FAINT)
            cell.draw(canvas, top, left, self.scale)


def narrowed(cells: Sequence[Cell], room: int) -> list[Cell]:
    """Return cells with as few panes per row as their titles need in a column of this width."""
    most = max(len(row) for row in cells[0].rows)
    for across in range(most, 1, -1):
        found = [replace(cell, across=across) for cell in cells]
        if _side_in(found, room) >= PAPER_TILE:
            return found
    return [replace(cell, across=1) for cell in cells]


def _side_in(cells: Sequence[Cell], room: int) -> float:
    """Return the side of the first pane's tiles where the widest cell fills a width."""
    scale = scale_to(lambda scale: _largest_size(cells, scale)[1], room)
    return scale * float(max(cells[0].panes[0].tiles.shape[1:3]))


def _largest_size(cells: Sequence[Cell], scale: float) -> tuple[int, int]:
    """Return the height and width that every cell has room in; titles may differ in width."""
    heights, widths = zip(*(cell.size(scale) for cell in cells), strict=True)
    return max(heights), max(widths)


def _grid_in_column(cells: Sequence[Cell], label: int, room: int) -> tuple[float, _CellGrid]:
    """Return the scale and the places at which cells fill a column's width."""
    height, width = _largest_size(cells, 1)
    count = len(cells)
    wanted = round(math.sqrt(count * 1.3 * (height + LINE) / width))
    even = -(-count // -(-count // max(1, min(count, wanted))))  # full rows, as far as possible
    for columns in range(even, 0, -1):

        def grid(scale: float, columns: int = columns) -> _CellGrid:
            return _CellGrid.around(count, *_largest_size(cells, scale), label, columns)

        scale = scale_to(lambda scale: grid(scale).width, room)
        if columns == 1 or scale * min(cells[0].panes[0].tiles.shape[1:3]) >= PAPER_TILE:
            break
    return scale, grid(scale)


@dataclass(frozen=True)
class CellRow:
    """Cells of one layer side by side, with the layer's name; at a scale of its own, or 0."""

    title: str
    cells: tuple[Cell, ...]
    scale: float = 0


def rows_of_cells(rows: Sequence[CellRow], caption: Caption, scale: float = 1) -> Canvas:
    """Return layers below each other, each with its cells in one line, as in print."""
    size = SMALL if caption.room else TITLE
    gutter = gutter_of([row.title for row in rows], caption)
    scales = [row.scale or scale for row in rows]
    both = list(zip(rows, scales, strict=True))
    heights = [max(cell.size(own)[0] for cell in row.cells) for row, own in both]
    width = gutter + max(_line_width(row.cells, own) for row, own in both)
    pitches = [LINE + max(height, size) + GAP_OF_ROWS for height in heights]
    canvas, top = begun(caption, width, sum(pitches))
    for (row, own), height, pitch in zip(both, heights, pitches, strict=True):
        canvas.text(row.title, top + LINE + max(0, (height - size) // 2), MARGIN, size)
        left = MARGIN + gutter
        for number, cell in enumerate(row.cells, 1):
            free = _advance(cell, own) - 3
            if number == len(row.cells):  # the last one's label may use the rest of the row
                free = max(free, MARGIN + max(width, caption.room) - left)
            canvas.text(shortened(cell.label, SMALL, free), top, left, SMALL, FAINT)
            cell.draw(canvas, top + LINE, left, own)
            left += _advance(cell, own)
        top += pitch
    return canvas


def gutter_of(titles: Sequence[str], caption: Caption) -> int:
    """Return the room for the names of rows at their left."""
    size = SMALL if caption.room else TITLE
    return max(text_size(title, size)[0] for title in titles) + (8 if caption.room else 14)


def row_scale(cell: Cell, count: int, room: int) -> float:
    """Return the scale at which so many such cells fill a row."""
    return scale_to(lambda scale: count * _advance(cell, scale), room)


def _advance(cell: Cell, scale: float) -> int:
    """Return the distance from a cell of a row to the next; narrow ones leave room for a number."""
    width = cell.size(scale)[1]
    return max(width, ROOMY) + max(6, min(width // 12, 16))


def _line_width(cells: Sequence[Cell], scale: float) -> int:
    return sum(_advance(cell, scale) for cell in cells)


def fitting(cell: Cell, width: int, scale: float) -> int:
    """Return how many such cells fit in a row of so many pixels."""
    return max(1, width // _advance(cell, scale))


def single(cell: Cell, caption: Caption, scale: float = 1) -> Canvas:
    """Return one unit's panes under a caption."""
    if caption.room:
        (cell,) = narrowed([cell], caption.room)
        most = WIDEST_TILE / max(cell.panes[0].tiles.shape[1:3])
        scale = min(most, scale_to(lambda scale: cell.size(scale)[1], caption.room))
    height, width = cell.size(scale)
    canvas, top = begun(caption, width, height)
    cell.draw(canvas, top, MARGIN, scale)
    return canvas


def begun(caption: Caption, width: int, height: int) -> tuple[Canvas, int]:
    """Return a sheet with `height` x `width` pixels under a caption, and where these begin."""
    if caption.room:
        canvas = Canvas(height + 2 * MARGIN, width + 2 * MARGIN)
        canvas.caption = caption.text
        return canvas, MARGIN
    title, _ = text_size(caption.title, TITLE)
    notes = wrapped(caption.note, max(width, 360))
    head = MARGIN + TITLE + 6 + len(notes) * LINE + 8
    widest = max(width, title, *(text_size(line, SMALL)[0] for line in notes))
    canvas = Canvas(head + height + MARGIN, widest + 2 * MARGIN)
    canvas.text(caption.title, MARGIN, MARGIN, TITLE, INK)
    for number, line in enumerate(notes):
        canvas.text(line, MARGIN + TITLE + 6 + number * LINE, MARGIN, SMALL, FAINT)
    return canvas, head


@dataclass(frozen=True)
class _CellGrid:
    """The places of cells: pixels from one to the next, and the room for labels of rows."""

    rows: int
    columns: int
    row_pitch: int
    column_pitch: int
    gutter: int  # width of the labels of rows; 0 if each cell has its own
    gap: int  # between columns

    @classmethod
    def around(cls, count: int, height: int, width: int, label: int, columns: int = 0) -> _CellGrid:
        """Return the places of cells in so many columns, by default as in a wide rectangle."""
        own = width >= max(ROOMY, min(label, LABELLED))
        gap = max(3, min(width // 12, 12))
        row_pitch = height + (LINE + 2 if own else 0) + gap
        if not own:
            row_pitch = max(row_pitch, SMALL + 3)
        column_pitch = width + gap
        if not columns:
            columns = max(1, min(count, round(math.sqrt(count * row_pitch / column_pitch * 1.3))))
            if not own and columns >= 8:
                columns -= columns % 8  # labels of rows are then easy to count from
        rows = -(-count // columns)
        return cls(rows, columns, row_pitch, column_pitch, 0 if own else label + 8, gap)

    @property
    def height(self) -> int:
        return self.rows * self.row_pitch

    @property
    def width(self) -> int:
        return self.gutter + self.columns * self.column_pitch - self.gap


def wrapped(text: str, width: int) -> list[str]:
    """Return a text in lines that are at most `width` pixels wide."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_size(longer, SMALL)[0] > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


CORNERS = ("1", "2", "3", "4")  # style names, row by row
SHOWN_CORNER = 2  # the corner of which the toolbox's viewer shows one tile


def toolbox_montage(blocks: Mapping[str, Pixels]) -> Canvas:
    """Return two by two blocks of 3x3 runs by style (n, h, w, 3), as the toolbox's viewer needs.

    Each block has a border of 1 + 2 pixels; the whole is square with an even side
    (deep-visualization-toolbox, caffevis/caffevis_helper.py, crop_to_corner). The viewer shows the
    third block: style 3, or without it, or if the first is a style of another name, the first.
    Others take the blocks that are left.
    """
    height, width = next(iter(blocks.values())).shape[1:3]
    side = 3 * max(height, width) + 2
    half = side + 2 * 3
    canvas = Canvas(2 * half, 2 * half)
    for number, name in enumerate(_in_corners(list(blocks))):
        row, column = divmod(number, 2)
        if name is not None:
            canvas.tile(block(blocks[name][:9]), row * half + 3, column * half + 3)
    return canvas


def _in_corners(names: Sequence[str]) -> list[str | None]:
    """Return the style of each of the four corners."""
    corners = [name if name in names else None for name in CORNERS]
    first = names[0]
    if first not in CORNERS or corners[SHOWN_CORNER] is None:
        corners[SHOWN_CORNER] = first
    left = [name for name in names if name not in corners]
    for number, name in enumerate(corners):
        if name is None and left:
            corners[number] = left.pop(0)
    return corners


def block(tiles: Pixels, columns: int = 3, gap: int = 1) -> Pixels:
    """Return tiles (n, h, w, 3) as one picture, `columns` per row, a white `gap` between them."""
    count, height, width, _ = tiles.shape
    rows = -(-count // columns)
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    picture = np.full(size, 255, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        picture[top : top + height, left : left + width] = tile
    return picture


def per_page(cell: tuple[int, int]) -> int:
    """Return the number of cells of this height and width on a page."""
    return max(1, PAGE // ((cell[0] + SMALL + 14) * (cell[1] + 8)))
