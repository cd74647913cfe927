"""Pixels in a grid, with text; the only writer of pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

Pixels = NDArray[np.uint8]
WHITE, INK, FAINT = (255, 255, 255), (20, 20, 20), (120, 120, 120)


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def text_size(text: str, size: int) -> tuple[int, int]:
    """Width and height in pixels that a line of text takes."""
    _, _, right, bottom = _font(size).getbbox(text)
    return int(np.ceil(right)), int(np.ceil(bottom))


class Canvas:
    """A white sheet of `height` x `width` pixels to put tiles and text on."""

    def __init__(self, height: int, width: int) -> None:
        self._image = Image.new("RGB", (width, height), WHITE)
        self._draw = ImageDraw.Draw(self._image)

    def tile(self, pixels: Pixels, top: int, left: int, scale: int = 1) -> None:
        """Put a picture (h, w, 3), each of its pixels `scale` x `scale` on the sheet."""
        height, width = pixels.shape[:2]
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        if scale > 1:
            size = (width * scale, height * scale)
            picture = picture.resize(size, Image.Resampling.NEAREST)
        self._image.paste(picture, (left, top))

    def text(
        self, text: str, top: int, left: int, size: int, ink: tuple[int, int, int] = INK
    ) -> None:
        """Write a line with its upper left corner at this place, `size` pixels high."""
        self._draw.text((left, top), text, fill=ink, font=_font(size))

    def cross(self, top: int, left: int, height: int, width: int) -> None:
        """Cross out a tile that holds nothing."""
        bottom, right = top + height - 1, left + width - 1
        self._draw.line((left, top, right, bottom), fill=FAINT)
        self._draw.line((left, bottom, right, top), fill=FAINT)

    def line(
        self, points: Sequence[tuple[float, float]], ink: tuple[int, int, int], width: int = 1
    ) -> None:
        """Draw straight from point to point, (x, y) each."""
        self._draw.line(list(points), fill=ink, width=width, joint="curve")

    def dot(self, x: float, y: float, radius: float, ink: tuple[int, int, int]) -> None:
        """Draw a filled circle."""
        self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)

    def reduced(self, factor: int) -> Pixels:
        """The sheet a whole number of times smaller: smooth lines from jagged ones."""
        return np.asarray(self._image.reduce(factor))

    @property
    def pixels(self) -> Pixels:
        return np.asarray(self._image)

    def png(self, record: Mapping[str, str]) -> bytes:
        """A PNG file with a record in its text chunks; the same sheet gives the same bytes."""
        info = PngImagePlugin.PngInfo()
        for key, value in record.items():
            info.add_itxt(key, value)
        buffer = io.BytesIO()
        self._image.save(buffer, "PNG", pnginfo=info, compress_level=4)
        return buffer.getvalue()


def read_record(path: Path) -> dict[str, str]:
    """The text chunks of a PNG; empty where there is no such file or it is damaged."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            image.load()
            return {str(k): v for k, v in image.info.items() if isinstance(v, str)}
    except (OSError, SyntaxError, ValueError):
        return {}
