"""Pixels in a grid, with text; the only writer of pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure import png
from cnnvis_cli.nouns import Point

Picture = Image.Image  # for modules that must not import Pillow
Ink = tuple[int, int, int]
WHITE, INK, FAINT = (255, 255, 255), (20, 20, 20), (110, 110, 110)
PRINT_DPI = 300  # pixels per inch of a picture for a paper
FINE = 4  # text and lines are drawn this many times larger, then reduced


@cache
def _font(size: float) -> Any:
    """Return the font, `FINE` times larger than this height: small sizes are set too tightly."""
    return ImageFont.load_default(size * FINE)


def font_file() -> bytes:
    """Return the TrueType font of all text: Aileron, which comes with Pillow."""
    content: bytes = _font(10).font_bytes
    return content


@lru_cache(maxsize=4096)
def text_size(text: str, size: float) -> tuple[int, int]:
    """Return the width and height in pixels of a line of text."""
    _, _, right, bottom = _font(size).getbbox(text)
    return int(np.ceil(right / FINE)), int(np.ceil(bottom / FINE))


@lru_cache(maxsize=4096)
def _typeset(text: str, size: float) -> Image.Image:
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

    It records what was put on it, and becomes pixels or a page of a PDF on request. On a sheet for
    a paper, `unit` is the size of its pixels in points, and they are drawn finer.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.marks: list[Mark] = []
        self.caption = ""  # what is said beside the sheet, not on it
        self.unit: float | None = None

    @classmethod
    def stacked(cls, sheets: Sequence[Canvas], gap: int) -> Canvas:
        """Return sheets below each other, `gap` pixels apart; their captions follow each other."""
        height = sum(sheet.height + gap for sheet in sheets) - gap
        whole = cls(height, max(sheet.width for sheet in sheets))
        top = 0
        for sheet in sheets:
            whole.marks += [_shifted(mark, 0, top) for mark in sheet.marks]
            top += sheet.height + gap
        whole.caption = " ".join(sheet.caption for sheet in sheets).strip()
        return whole

    def printed(self, width: int, unit: float) -> Canvas:
        """Return the marks alone, without margins, centred in a column of a paper.

        `width` is the column's in pixels of the sheet, `unit` their size in points. Raise
        `UsageError` if the marks are wider.
        """
        boxes = [extent(mark) for mark in self.marks] or [(0, 0, 1, 1)]
        left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
        right, bottom = (max(box[i] + box[i + 2] for box in boxes) for i in (0, 1))
        if right - left > width:
            raise UsageError(
                f"the figure needs {(right - left) * unit / 72:.2f} inches at this height of text; "
                "give a larger --width, --columns 2, or fewer units"
            )
        sheet = Canvas(bottom - top, width)
        x, y = (width - (right - left)) // 2 - left, -top
        sheet.marks = [_shifted(mark, x, y) for mark in self.marks]
        sheet.caption, sheet.unit = self.caption, unit
        return sheet

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
        return png.encode(np.asarray(self._painted(dpi)), record, dpi)

    def jpeg(
        self, record: Mapping[str, str], quality: int = 95, *, full_colour: bool = True
    ) -> bytes:
        """Return a JPEG file, of the best quality and in full colour; the record is its comment."""
        comment = json.dumps(dict(record)) if record else ""
        buffer, halved = io.BytesIO(), 0 if full_colour else 2
        self._painted().save(buffer, "JPEG", quality=quality, subsampling=halved, comment=comment)
        return buffer.getvalue()

    @property
    def size_in_print(self) -> tuple[float, float]:
        """The width and height in a paper, in points."""
        unit = self.unit or 0.0
        return self.width * unit, self.height * unit

    def zoom(self, dpi: int | None) -> float:
        """Return the pixels of a picture per pixel of the sheet, at so many per inch."""
        return 1.0 if self.unit is None else (dpi or PRINT_DPI) * self.unit / 72

    def _painted(self, dpi: int | None = None) -> Image.Image:
        zoom = self.zoom(dpi)
        image = Image.new("RGB", (round(self.width * zoom), round(self.height * zoom)), WHITE)
        draw = ImageDraw.Draw(image)
        for mark in self.marks:
            _paint(mark, image, draw, zoom)
        return image


def extent(mark: Mark) -> tuple[int, int, int, int]:
    """Return the box of a mark: left, top, width, height."""
    match mark:
        case Tile(_, box) | PlotArea(box, _):
            return box
        case TextLine(text, (left, top), size, _):
            return left, top, *text_size(text, size)
        case Line(points, _, wide):
            xs, ys = zip(*points, strict=True)
            half = wide / 2
            left, top = round(min(xs) - half), round(min(ys) - half)
            return left, top, round(max(xs) + half) + 1 - left, round(max(ys) + half) + 1 - top


def _shifted(mark: Mark, x: int, y: int) -> Mark:
    """Return a mark at another place."""
    match mark:
        case Tile(_, (left, top, width, height)) | PlotArea((left, top, width, height), _):
            return replace(mark, box=(left + x, top + y, width, height))
        case TextLine(_, (left, top), _, _):
            return replace(mark, place=(left + x, top + y))
        case Line(points, _, _):
            return replace(mark, points=tuple((a + x, b + y) for a, b in points))


def zoomed(place: float, zoom: float) -> float:
    """Return where a pixel's middle is on a larger sheet: a line goes through middles."""
    return place if zoom == 1 else (place + 0.5) * zoom - 0.5


def _paint(mark: Mark, image: Image.Image, draw: ImageDraw.ImageDraw, zoom: float) -> None:
    """Paint a mark, `zoom` times larger than on the sheet."""
    match mark:
        case Tile(pixels, box):
            x, y, right, bottom = enlarged_box(box, zoom)
            image.paste(resized(pixels, (right - x, bottom - y)), (x, y))
        case TextLine(text, (left, top), size, ink):
            at = (round(left * zoom), round(top * zoom))
            image.paste(ink, at, _typeset(text, size if zoom == 1 else size * zoom))
        case Line(points, ink, width):
            path = [(zoomed(a, zoom), zoomed(b, zoom)) for a, b in points]
            draw.line(path, fill=ink, width=max(1, round(width * zoom)), joint="curve")
        case PlotArea(box, strokes):
            x, y, right, bottom = enlarged_box(box, zoom)
            large = Image.new("RGB", ((right - x) * FINE, (bottom - y) * FINE), WHITE)
            for stroke in strokes:
                _stroke(stroke, ImageDraw.Draw(large), FINE * zoom)
            image.paste(large.reduce(FINE), (x, y))


def enlarged_box(box: tuple[int, int, int, int], zoom: float) -> tuple[int, int, int, int]:
    """Return the edges of a box (left, top, width, height), enlarged: left, top, right, bottom."""
    left, top, width, height = box
    x, y = round(left * zoom), round(top * zoom)
    right, bottom = round((left + width) * zoom), round((top + height) * zoom)
    return x, y, max(right, x + 1), max(bottom, y + 1)


def _stroke(stroke: Line | Dot, draw: ImageDraw.ImageDraw, fine: float) -> None:
    """Draw one line or dot of a frame, `fine` times larger."""
    if isinstance(stroke, Line):
        points = [(x * fine, y * fine) for x, y in stroke.points]
        draw.line(points, fill=stroke.ink, width=round(stroke.width * fine), joint="curve")
        return
    x, y, r = (n * fine for n in (*stroke.centre, stroke.radius))
    box = (x - r, y - r, x + r, y + r)
    if stroke.filled:
        draw.ellipse(box, fill=stroke.ink)
    else:
        draw.ellipse(box, outline=stroke.ink, width=round(fine))


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
