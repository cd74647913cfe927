"""Pixels in a grid, with text; the only writer of pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.figure import png
from cnnvis_cli.nouns import Point

Picture = Image.Image  # for modules that must not import Pillow
Ink = tuple[int, int, int]
WHITE, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
FINE = 4  # text and lines are drawn this many times larger, then reduced


@cache
def _font(size: int) -> Any:
    """Return the font, `FINE` times larger than this height: small sizes are set too tightly."""
    return ImageFont.load_default(size * FINE)


def font_file() -> bytes:
    """Return the TrueType font of all text: Aileron, which comes with Pillow."""
    content: bytes = _font(10).font_bytes
    return content


@lru_cache(maxsize=4096)
def text_size(text: str, size: int) -> tuple[int, int]:
    """Return the width and height in pixels of a line of text."""
    _, _, right, bottom = _font(size).getbbox(text)
    return int(np.ceil(right / FINE)), int(np.ceil(bottom / FINE))


@lru_cache(maxsize=4096)
def _typeset(text: str, size: int) -> Image.Image:
    """Return the ink of each pixel of a line of text, 0 to 255."""
    width, height = text_size(text, size)
    large = Image.new("L", (width * FINE, height * FINE), 0)
    ImageDraw.Draw(large).text((0, 0), text, fill=255, font=_font(size))
    return large.reduce(FINE)


def shortened(text: str, size: int, width: int) -> str:
    """Return a text of at most `width` pixels, cut with three dots if necessary.

    A single word with digits is left out instead: cut short, an identifier would be another one.
    """
    if text_size(text, size)[0] <= width:
        return text
    if " " not in text and any(letter.isdigit() for letter in text):
        return ""
    kept = text
    while kept and text_size(f"{kept.rstrip()}...", size)[0] > width:
        kept = kept[:-1]
    return f"{kept.rstrip()}..." if kept else ""


def scaled(size: int, scale: float) -> int:
    """Return the drawn length of this many pixels."""
    return max(1, round(size * scale))


@dataclass(frozen=True)
class Tile:
    """A picture (h, w, 3) in a box of the sheet: left, top, width, height."""

    pixels: Pixels
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class TextLine:
    """A line of text with its upper left corner at a place, `size` pixels high."""

    text: str
    place: tuple[int, int]  # left, top
    size: int
    ink: Ink


@dataclass(frozen=True)
class Line:
    """A straight line from point to point."""

    points: tuple[Point, ...]
    ink: Ink
    width: float


@dataclass(frozen=True)
class Dot:
    """A filled circle, or a ring."""

    centre: Point
    radius: float
    ink: Ink
    filled: bool = True


@dataclass(frozen=True)
class PlotArea:
    """A field of smooth lines and dots, in pixels of the sheet from its upper left corner."""

    box: tuple[int, int, int, int]  # left, top, width, height
    strokes: list[Line | Dot] = field(default_factory=list)

    def line(self, points: Sequence[Point], ink: Ink, width: float = 1) -> None:
        self.strokes.append(Line(tuple(points), ink, width))

    def dot(self, x: float, y: float, radius: float, ink: Ink, filled: bool = True) -> None:
        self.strokes.append(Dot((x, y), radius, ink, filled))


Mark = Tile | TextLine | Line | PlotArea


class Canvas:
    """A white sheet of `height` x `width` pixels for tiles and text.

    It records what was put on it, and becomes pixels or a page of a PDF on request.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.marks: list[Mark] = []

    def tile(self, pixels: Pixels, top: int, left: int, scale: float = 1) -> None:
        """Put a picture (h, w, 3) on the sheet, each of its pixels as `scale` x `scale` pixels.

        When enlarged, pixels become squares; when reduced, they are averaged.
        """
        height, width = (scaled(side, scale) for side in pixels.shape[:2])
        self.marks.append(Tile(np.ascontiguousarray(pixels), (left, top, width, height)))

    def text(self, text: str, top: int, left: int, size: int, ink: Ink = INK) -> None:
        """Write a line of text with its upper left corner at this place, `size` pixels high."""
        if text:
            self.marks.append(TextLine(text, (left, top), size, ink))

    def cross(self, top: int, left: int, height: int, width: int) -> None:
        """Cross out an empty tile."""
        bottom, right = top + height - 1, left + width - 1
        self.line([(left, top), (right, bottom)], FAINT)
        self.line([(left, bottom), (right, top)], FAINT)

    def line(self, points: Sequence[Point], ink: Ink, width: float = 1) -> None:
        """Draw straight from point to point, in whole pixels."""
        self.marks.append(Line(tuple(points), ink, width))

    def border(self, top: int, left: int, height: int, width: int, ink: Ink, wide: int) -> None:
        """Frame a tile of this place and size from outside, `wide` pixels thick."""
        away = (wide + 1) // 2
        x, y, right, bottom = left - away, top - away, left + width - 1 + away, top + height - 1
        bottom += away
        self.line([(x, y), (right, y), (right, bottom), (x, bottom), (x, y)], ink, wide)

    def frame(self, top: int, left: int, height: int, width: int) -> PlotArea:
        """Return a field to draw smooth lines in."""
        frame = PlotArea((left, top, width, height))
        self.marks.append(frame)
        return frame

    @property
    def pixels(self) -> Pixels:
        """The pixels of the sheet: (height, width, 3)."""
        return np.asarray(self._painted())

    def png(self, record: Mapping[str, str], dpi: int | None = None) -> bytes:
        """Return a PNG file with a record in its text chunks; the same sheet gives the same bytes.

        `dpi` is the number of pixels per inch in print.
        """
        return png.encode(self.pixels, record, dpi)

    def jpeg(self, record: Mapping[str, str], quality: int = 95) -> bytes:
        """Return a JPEG file of the best quality, with full colour; the record is its comment."""
        comment = json.dumps(dict(record)) if record else ""
        buffer = io.BytesIO()
        self._painted().save(buffer, "JPEG", quality=quality, subsampling=0, comment=comment)
        return buffer.getvalue()

    def _painted(self) -> Image.Image:
        image = Image.new("RGB", (self.width, self.height), WHITE)
        draw = ImageDraw.Draw(image)
        for mark in self.marks:
            _paint(mark, image, draw)
        return image


def _paint(mark: Mark, image: Image.Image, draw: ImageDraw.ImageDraw) -> None:
    match mark:
        case Tile(pixels, (left, top, width, height)):
            image.paste(resized(pixels, (width, height)), (left, top))
        case TextLine(text, (left, top), size, ink):
            image.paste(ink, (left, top), _typeset(text, size))
        case Line(points, ink, width):
            draw.line(list(points), fill=ink, width=round(width), joint="curve")
        case PlotArea((left, top, width, height), strokes):
            large = Image.new("RGB", (width * FINE, height * FINE), WHITE)
            for stroke in strokes:
                _stroke(stroke, ImageDraw.Draw(large))
            image.paste(large.reduce(FINE), (left, top))


def _stroke(stroke: Line | Dot, draw: ImageDraw.ImageDraw) -> None:
    """Return one line or dot of a frame, `FINE` times larger."""
    if isinstance(stroke, Line):
        points = [(x * FINE, y * FINE) for x, y in stroke.points]
        draw.line(points, fill=stroke.ink, width=round(stroke.width * FINE), joint="curve")
        return
    x, y, r = (n * FINE for n in (*stroke.centre, stroke.radius))
    box = (x - r, y - r, x + r, y + r)
    if stroke.filled:
        draw.ellipse(box, fill=stroke.ink)
    else:
        draw.ellipse(box, outline=stroke.ink, width=FINE)


def resized(pixels: Pixels, size: tuple[int, int]) -> Image.Image:
    """Return a picture at another size (width, height): squares enlarge, averages reduce it."""
    picture = Image.fromarray(pixels)
    if picture.size == size:
        return picture
    smaller = size[0] < picture.width
    return picture.resize(size, Image.Resampling.BOX if smaller else Image.Resampling.NEAREST)


def reduced(pixels: Pixels, scale: float) -> Pixels:
    """Return a picture at a fraction of its size, its pixels averaged."""
    height, width = (scaled(side, scale) for side in pixels.shape[:2])
    return np.asarray(resized(pixels, (width, height)))


def read_record(path: Path) -> dict[str, str]:
    """Return a PNG's text chunks or a JPEG's comment; empty if absent or damaged."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            image.load()
            info = json.loads(image.info.get("comment", "{}")) if image.format == "JPEG" else {}
            return {str(k): v for k, v in {**image.info, **info}.items() if isinstance(v, str)}
    except (OSError, SyntaxError, ValueError):
        return {}
