"""Many small pictures in one file, of which a page shows one at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.figure.canvas import Canvas, resized
from cnnvis_cli.nouns import Size

JPEG_BLOCK = 8  # a JPEG's blocks: no picture runs into its neighbour
LOSSLESS_SIDE = 48  # up to this side, pictures are much enlarged on the page, so they are lossless
GREY = 128
SMALL_QUALITY = 60  # of pictures of 40 to 80 pixels, of which a page shows many
QUALITY = 84  # of JPEGs with full colour; noise takes half the bytes of 95
BYTES = {"jpg": 0.32, "png": 2.1}  # per pixel of photographs, roughly


def within(size: Size, most: float) -> Size:
    """Return the size of a picture reduced until its longer side is at most `most`."""
    share = min(1.0, most / max(size))
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def padded(size: Size) -> Size:
    """Return the room of a picture in a file: whole blocks."""
    return -(-size[0] // JPEG_BLOCK) * JPEG_BLOCK, -(-size[1] // JPEG_BLOCK) * JPEG_BLOCK


def suffix(sizes: Sequence[Size], sharp: int = LOSSLESS_SIDE) -> str:
    """Return the file type for pictures of these sizes: lossless up to a side of `sharp` pixels."""
    return "png" if max(max(size) for size in sizes) <= sharp else "jpg"


def mosaic(tiles: Pixels, size: Size, columns: int) -> Pixels:
    """Return pictures (n, h, w, 3) in rows, each reduced to `size`, with grey between them."""
    height, width = padded(size)
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * height, min(columns, len(tiles)) * width, 3), GREY, np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * height, number % columns * width
        same = tile.shape[:2] == size
        drawn = tile if same else np.asarray(resized(tile, (size[1], size[0])))
        sheet[top : top + size[0], left : left + size[1]] = drawn
    return sheet


def stacked(sheets: Sequence[Pixels]) -> Pixels:
    """Return sheets below each other, with grey beside the narrower ones."""
    width = max(sheet.shape[1] for sheet in sheets)
    rest = [((0, 0), (0, width - sheet.shape[1]), (0, 0)) for sheet in sheets]
    wide = [np.pad(s, r, constant_values=GREY) for s, r in zip(sheets, rest, strict=True)]
    return np.concatenate(wide)


def encoded(sheet: Pixels, suffix: str) -> bytes:
    """Return the file of a sheet, ``png`` or ``jpg``."""
    canvas = _canvas(sheet)
    return canvas.png({}) if suffix == "png" else canvas.jpeg({}, QUALITY)


def small_file(sheet: Pixels, suffix: str) -> bytes:
    """Return the file of a sheet of small pictures: a JPEG of them has half the colour."""
    canvas = _canvas(sheet)
    return canvas.png({}) if suffix == "png" else canvas.jpeg({}, SMALL_QUALITY, full_colour=False)


def _canvas(sheet: Pixels) -> Canvas:
    canvas = Canvas(*sheet.shape[:2])
    canvas.tile(sheet, 0, 0)
    return canvas
