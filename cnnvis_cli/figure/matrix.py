"""A matrix of numbers as a figure: a pure function from arrays to a canvas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cnnvis_cli.arrays import Doubles
from cnnvis_cli.figure.canvas import INK, WHITE, Canvas, text_size
from cnnvis_cli.figure.heat import coloured
from cnnvis_cli.figure.sheets import MARGIN, SMALL, Caption, begun

HEIGHT, LEAST_WIDTH = 22, 34  # of a cell, in pixels
DARK = 0.6  # strength below which a cell's number is white


def matrix(
    values: Doubles, rows: Sequence[str], columns: Sequence[str], caption: Caption
) -> Canvas:
    """Return a table of numbers from 0 to 1, each on its colour, with the names of both sides."""
    gutter = max(text_size(name, SMALL)[0] for name in rows) + 8
    width = max(LEAST_WIDTH, *(text_size(name, SMALL)[0] + 6 for name in columns))
    head = SMALL + 8
    canvas, top = begun(caption, gutter + width * len(columns), head + HEIGHT * len(rows))
    colours = coloured(np.clip(np.nan_to_num(values), 0, 1).astype(np.float32))
    canvas.tile(
        np.repeat(np.repeat(colours, HEIGHT, axis=0), width, axis=1), top + head, MARGIN + gutter
    )
    for column, name in enumerate(columns):
        _centred(canvas, name, (top, MARGIN + gutter + column * width), width, INK)
    for row, name in enumerate(rows):
        down = top + head + row * HEIGHT + (HEIGHT - SMALL) // 2
        canvas.text(name, down, MARGIN, SMALL)
        for column, value in enumerate(values[row].tolist()):
            ink = WHITE if not value >= DARK else INK
            left = MARGIN + gutter + column * width
            _centred(canvas, f"{value:.2f}".removeprefix("0"), (down, left), width, ink)
    return canvas


def _centred(
    canvas: Canvas, text: str, place: tuple[int, int], width: int, ink: tuple[int, int, int]
) -> None:
    top, left = place
    canvas.text(text, top, left + (width - text_size(text, SMALL)[0]) // 2, SMALL, ink)
