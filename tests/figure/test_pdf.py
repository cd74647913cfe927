"""PDF files, taken apart: pictures to the pixel, where they stand, how large a page is."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.figure.canvas import Canvas, TextLine
from cnnvis_cli.figure.lines import Plot, plots
from cnnvis_cli.figure.pdf import pdf, read_key
from cnnvis_cli.figure.sheets import Caption, Cell, sheet

KEY = "0123456789abcdef" * 4
STREAM = rb"\bobj\s*<<((?:(?!endobj).)*?)>>\s*stream\r?\n"  # and its dictionary
RECORD = {
    "Title": "demo conv1 · ünits 0 to 7",
    "Software": "cnnvis",
    "cnnvis": '{"scale": 1, "tone": "x / max(2 max, -2 min) + 0.5"}',
    "cnnvis-key": KEY,
}


def noise(seed: int, height: int, width: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def drawn() -> Canvas:
    """Return a sheet with tiles of two shapes, text and a cross."""
    cells = [Cell.of(f"{n} ünit", noise(n, 30, 40), dead=n == 2) for n in range(5)]
    return sheet(cells, Caption("a title (with brackets) \\", "a note " * 20))


def streams(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the dictionary and the unpacked bytes of each stream of a file."""
    for found in re.finditer(STREAM, content, re.DOTALL):
        length = re.search(rb"/Length (\d+)", found[1])
        assert length is not None
        packed = content[found.end() : found.end() + int(length[1])]
        assert b"/FlateDecode" in found[1]
        yield found[1], zlib.decompress(packed)


def pictures(content: bytes) -> list[Pixels]:
    """Return every picture in a file, (h, w, 3)."""
    found = []
    for about, raw in streams(content):
        if b"/Subtype /Image" in about:
            assert b"/DeviceRGB" in about
            size = [re.search(rb"/%s (\d+)" % side, about) for side in (b"Height", b"Width")]
            height, width = (int(side[1]) for side in size if side is not None)
            found.append(np.frombuffer(raw, np.uint8).reshape(height, width, 3))
    return found


def page_text(content: bytes) -> str:
    """Return the drawing commands of the page."""
    plain = [raw for about, raw in streams(content) if b"/Subtype" not in about]
    (found,) = (raw for raw in plain if raw.startswith(b"1 0 0 1 0 0 cm"))
    return found.decode("latin-1")


def media_box(content: bytes) -> list[float]:
    found = re.search(rb"/MediaBox \[([^\]]*)\]", content)
    assert found is not None
    return [float(number) for number in found[1].split()]


def info(content: bytes, name: str) -> str:
    """Return one of a file's properties, in which brackets are escaped."""
    found = re.search(rb"/%s \(((?:\\.|[^\\)])*)\)" % name.encode(), content, re.DOTALL)
    assert found is not None
    escapes = {rb"\r": b"\r", rb"\n": b"\n", rb"\t": b"\t"}
    raw = re.sub(
        rb"\\([0-7]{3}|.)",
        lambda m: bytes([int(m[1], 8)]) if len(m[1]) == 3 else escapes.get(m[0], m[1]),
        found[1],
    )
    return (
        raw.decode("utf-16")
        if raw.startswith((b"\xfe\xff", b"\xff\xfe"))
        else raw.decode("latin-1")
    )


def test_the_same_sheet_is_the_same_file() -> None:
    once = pdf(drawn(), RECORD)
    assert pdf(drawn(), RECORD) == once
    assert pdf(drawn(), {**RECORD, "cnnvis-key": "0"}) != once
    assert pdf(drawn(), RECORD, 300) != once


def test_pictures_are_whole_to_the_pixel() -> None:
    found = pictures(pdf(drawn(), RECORD))
    assert len(found) == 5
    for n in range(5):
        assert sum(np.array_equal(each, noise(n, 30, 40)) for each in found) == 1


@pytest.mark.parametrize("scale", [3, 0.5])
def test_pictures_have_the_scale_of_the_sheet(scale: float) -> None:
    canvas = Canvas(100, 130)
    tile = noise(0, 20, 32)
    canvas.tile(tile, 7, 9, scale)
    (found,) = pictures(pdf(canvas, RECORD))
    assert np.array_equal(found, canvas.pixels[7 : 7 + len(found), 9 : 9 + found.shape[1]])
    assert found.shape == (round(20 * scale), round(32 * scale), 3)


def test_a_picture_stands_where_it_does_on_the_sheet() -> None:
    """Points count from the lower left corner, in units of a pixel after the page's scale."""
    canvas = Canvas(100, 130)
    canvas.tile(noise(0, 20, 32), 7, 9)
    page = page_text(pdf(canvas, RECORD, 100))
    numbers = [[float(n) for n in m.split()] for m in re.findall(r"((?:-?[\d.]+ ){6})cm", page)]
    corner, far = np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0])
    for a, b, c, d, e, f in reversed(numbers):
        matrix = np.array([[a, c, e], [b, d, f], [0, 0, 1]])
        corner, far = matrix @ corner, matrix @ far
    inch = 72 / 100
    np.testing.assert_allclose(corner[:2], [9 * inch, (100 - 27) * inch], atol=0.01)
    np.testing.assert_allclose(far[:2], [41 * inch, (100 - 7) * inch], atol=0.01)


@pytest.mark.parametrize(("dpi", "inch"), [(None, 100), (72, 72), (300, 300)])
def test_a_page_has_so_many_pixels_an_inch(dpi: int | None, inch: int) -> None:
    box = media_box(pdf(Canvas(310, 450), RECORD, dpi))
    np.testing.assert_allclose(box, [0, 0, 450 * 72 / inch, 310 * 72 / inch], atol=0.01)


def test_text_is_text_in_a_font_that_is_in_the_file() -> None:
    content = pdf(drawn(), RECORD)
    assert b"/FontFile2" in content
    texts = [mark for mark in drawn().marks if isinstance(mark, TextLine)]
    assert len(texts) > 7
    assert page_text(content).count(" Tj") == len(texts)


def test_any_text_can_be_set() -> None:
    canvas = Canvas(40, 300)
    canvas.text("(Köpfe) \\ 顔 лица \U0001f600", 5, 5, 11)
    content = pdf(canvas, RECORD | {"Title": "顔 (Köpfe)"})
    assert page_text(content).count(" Tj") >= 1
    assert info(content, "Title") == "顔 (Köpfe)"


def test_lines_and_dots_are_no_pictures() -> None:
    steps = np.arange(5)
    plot = Plot("7", steps, np.array([[0, 1, 2, 3, 4.0]]), np.array([3]))
    content = pdf(plots([plot], Caption("a title", "a note")), RECORD)
    assert not pictures(content)
    page = page_text(content)
    assert len(re.findall(r" l\b", page)) >= 4
    assert len(re.findall(r" c\b", page)) >= 4  # a circle is of four curves


def test_the_record_stands_among_the_properties() -> None:
    content = pdf(drawn(), RECORD)
    assert info(content, "Title") == RECORD["Title"]
    assert info(content, "Subject") == RECORD["cnnvis"]
    assert info(content, "Keywords") == KEY
    assert info(content, "Creator") == "cnnvis"


def test_the_key_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "sheet.pdf"
    path.write_bytes(pdf(drawn(), RECORD))
    assert read_key(path) == KEY
    path.write_bytes(pdf(drawn(), {"Title": "no key"}))
    assert read_key(path) is None


def test_a_file_that_is_absent_or_cut_short_has_no_key(tmp_path: Path) -> None:
    path = tmp_path / "sheet.pdf"
    assert read_key(path) is None
    assert read_key(tmp_path) is None
    whole = pdf(drawn(), RECORD)
    for length in (0, 9, len(whole) // 2, len(whole) - 7, len(whole) - 4):
        path.write_bytes(whole[:length])
        assert read_key(path) is None, length
    path.write_bytes(whole)
    assert read_key(path) == KEY
