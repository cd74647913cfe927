"""Sheets as PDF for papers: lossless pictures, real text and vector lines."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from reportlab import rl_config
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.pdfdoc import PDFDictionary, PDFInfo, PDFString
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas as Page

from cnnvis_cli.figure.canvas import (
    Canvas,
    Dot,
    Ink,
    Line,
    Mark,
    PlotArea,
    TextLine,
    Tile,
    enlarged_box,
    font_file,
    resized,
)

rl_config.useA85 = 0  # plain bytes: a quarter smaller
POINTS = 72  # per inch
ASCENT = 0.99  # of the font: from the top of a line to its baseline, relative to its size


def pdf(canvas: Canvas, record: Mapping[str, str], dpi: int | None = None) -> bytes:
    """Return one page with the sheet at `dpi` pixels per inch (default 100), always the same bytes.

    A sheet for a paper has its own size, and pictures of `dpi`. The record's values are in the
    file's properties, which name no author; the only font is the one of the text, embedded.
    """
    inch = dpi or 100 if canvas.unit is None else POINTS / canvas.unit
    buffer = io.BytesIO()
    size = (canvas.width * POINTS / inch, canvas.height * POINTS / inch)
    page: Any = _Page(buffer, pagesize=size, invariant=1, pageCompression=1)
    page._doc.info = _Properties()
    page.setTitle(record.get("Title", ""))
    page.setCreator(record.get("Software", ""))
    page.setSubject(record.get("cnnvis", ""))
    page.setKeywords(record.get("cnnvis-key", ""))
    page.scale(POINTS / inch, POINTS / inch)
    page.translate(0, canvas.height)
    _register_font()
    for mark in canvas.marks:
        _draw_mark(mark, page, canvas.zoom(dpi))
    page.showPage()
    page.save()
    return buffer.getvalue()


def read_key(path: Path) -> str | None:
    """Return the record's ``cnnvis-key`` of a PDF file; None if absent or cut off."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    found = re.search(rb"/Keywords \(([0-9a-f]+)\)", content)
    whole = content.rstrip().endswith(b"%%EOF")
    return found[1].decode() if found and whole else None


@cache
def _register_font() -> None:
    pdfmetrics.registerFont(TTFont("Aileron", io.BytesIO(font_file())))


class _Page(Page):
    """A page that begins without reportlab's Helvetica, which would be named and not embedded."""

    def _make_preamble(self) -> None:
        self._preamble = "1 0 0 1 0 0 cm"


class _Properties(PDFInfo):
    """A file's properties without an author."""

    def format(self, document: Any) -> bytes:
        """Return the properties as an object of the file."""
        entries = {
            "Title": PDFString(self.title),
            "Producer": PDFString(self.producer),
            "Creator": PDFString(self.creator),
            "Subject": PDFString(self.subject),
            "Keywords": PDFString(self.keywords),
        }
        found: bytes = PDFDictionary(entries).format(document)
        return found


def _draw_mark(mark: Mark, page: Page, zoom: float) -> None:
    match mark:
        case Tile(pixels, box):
            left, top, width, height = box
            x, y, right, bottom = enlarged_box(box, zoom)
            picture = ImageReader(resized(pixels, (right - x, bottom - y)))
            page.drawImage(picture, left, -top - height, width, height)
        case TextLine(text, (left, top), size, ink):
            page.setFillColorRGB(*_colour(ink))
            page.setFont("Aileron", size)
            page.drawString(left, -top - ASCENT * size, text)
        case Line():
            _line(mark, page, 0.5, 0.5)
        case PlotArea((left, top, _, _), strokes):
            for stroke in strokes:
                if isinstance(stroke, Line):
                    _line(stroke, page, left, top)
                else:
                    _dot(stroke, page, left, top)


def _line(line: Line, page: Page, left: float, top: float) -> None:
    page.setStrokeColorRGB(*_colour(line.ink))
    page.setLineWidth(line.width)
    path = page.beginPath()
    first, *rest = ((left + x, -top - y) for x, y in line.points)
    path.moveTo(*first)
    for point in rest:
        path.lineTo(*point)
    page.drawPath(path)


def _dot(dot: Dot, page: Page, left: float, top: float) -> None:
    page.setFillColorRGB(*_colour(dot.ink))
    page.setStrokeColorRGB(*_colour(dot.ink))
    page.setLineWidth(1)
    x, y = dot.centre
    page.circle(left + x, -top - y, dot.radius, stroke=int(not dot.filled), fill=int(dot.filled))


def _colour(ink: Ink) -> tuple[float, float, float]:
    red, green, blue = ink
    return red / 255, green / 255, blue / 255
