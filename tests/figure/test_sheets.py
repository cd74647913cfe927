"""Tones by their formulas, and sheets searched for the tiles that must be on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cnnvis_cli.figure.canvas import Canvas, read_record
from cnnvis_cli.figure.sheets import Caption, Cell, beside, block, per_page, sheet
from cnnvis_cli.figure.tone import RULES, about_grey, as_photograph, toned

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
CAPTION = Caption("demo conv1 (features.0) · units 0 to 7 of 32", "Preferred images. " * 12)


def tiles(seed: int = 0, units: int = 3, each: int = 2) -> Floats:
    """Signed values (U, n, 4, 5, 3) of very different sizes."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(units, each, 4, 5, 3))
    values *= 10.0 ** random.integers(-3, 4, (units, each, 1, 1, 1))
    return values.astype(np.float32)


def grey(value: float, top: float, bottom: float) -> int:
    """One value by the rule x / max(2 max, -2 min) + 0.5, as a level of 0..255."""
    return min(255, max(0, int((value / max(2 * top, -2 * bottom) + 0.5) * 255 + 0.5)))


@pytest.mark.parametrize("rule", ["tile", "unit", "sheet"])
def test_a_tone_is_its_formula(rule: str) -> None:
    x = tiles()
    found = toned(x, rule)
    assert found.dtype == np.uint8
    for (unit, number, row, column, colour), value in np.ndenumerate(x):
        among = {"tile": x[unit, number], "unit": x[unit], "sheet": x}[rule]
        level = found[unit, number, row, column, colour]
        assert (
            abs(int(level) - grey(float(value), float(among.max()), float(among.min()))) <= 1
        )  # of rounding


def test_the_true_tone_adds_the_mean_colour_back() -> None:
    mean = (123.675, 116.28, 103.53)
    photograph = np.random.default_rng(0).integers(0, 256, (2, 1, 4, 5, 3))
    x = (photograph - np.array(mean)).astype(np.float32)
    assert np.array_equal(toned(x, "true", mean), photograph)
    assert np.array_equal(as_photograph(x[0, 0], mean), photograph[0, 0])
    assert np.array_equal(toned(x + 400, "true", mean), np.full(x.shape, 255))
    assert not toned(x - 400, "true", mean).any()


@pytest.mark.parametrize("rule", ["tile", "unit", "sheet"])
def test_nothing_is_mid_grey(rule: str) -> None:
    assert (toned(np.zeros((1, 2, 3, 3, 3), np.float32), rule) == 128).all()
    with_a_dead_tile = tiles(units=1)
    with_a_dead_tile[0, 1] = 0
    assert (toned(with_a_dead_tile, rule)[0, 1] == 128).all()


@given(st.integers(0, 999), st.floats(1e-4, 1e4))
@settings(max_examples=50, deadline=None)
def test_about_grey_uses_the_range_and_forgets_the_scale(seed: int, scale: float) -> None:
    x = tiles(seed, 1, 1)
    found = about_grey(x)
    extreme = found.ravel()[np.abs(x).argmax()]
    assert extreme in (0, 255)
    again = about_grey((x * np.float32(scale)).astype(np.float32))
    assert np.abs(found.astype(int) - again.astype(int)).max() <= 1
    assert np.abs(255 - about_grey(-x).astype(int) - found.astype(int)).max() <= 1


def test_every_rule_is_explained() -> None:
    assert set(RULES) == {"tile", "unit", "sheet", "true"}
    assert all(RULES.values())


@pytest.mark.parametrize(("count", "columns", "gap"), [(9, 3, 1), (7, 3, 2), (1, 3, 1), (4, 4, 0)])
def test_a_block_has_its_tiles_row_by_row(count: int, columns: int, gap: int) -> None:
    parts = np.random.default_rng(0).integers(0, 255, (count, 4, 5, 3)).astype(np.uint8)
    found = block(parts, columns, gap)
    rows = (count + columns - 1) // columns
    assert found.shape == (rows * 4 + (rows - 1) * gap, columns * 5 + (columns - 1) * gap, 3)
    covered = np.zeros(found.shape[:2], bool)
    for number, part in enumerate(parts):
        top, left = (4 + gap) * (number // columns), (5 + gap) * (number % columns)
        assert np.array_equal(found[top : top + 4, left : left + 5], part)
        covered[top : top + 4, left : left + 5] = True
    assert (found[~covered] == 255).all()


def test_beside_keeps_both_and_leaves_a_gap() -> None:
    left, right = np.full((6, 4, 3), 7, np.uint8), np.full((6, 5, 3), 9, np.uint8)
    found = beside(left, right, 3)
    assert found.shape == (6, 12, 3)
    assert (found[:, :4] == 7).all()
    assert (found[:, 4:7] == 255).all()
    assert (found[:, 7:] == 9).all()


def pattern(number: int, height: int, width: int) -> Pixels:
    """A tile that is like no other, in colours that no text has."""
    random = np.random.default_rng(number)
    found = random.integers(0, 120, (height, width, 3)).astype(np.uint8)
    found[..., 1] += 130  # green: text and paper have no colour
    return found


def places(paper: Pixels, tile: Pixels) -> list[tuple[int, int]]:
    """Where a tile is on a sheet, to the pixel."""
    height, width = tile.shape[:2]
    corners = paper[: len(paper) - height + 1, : paper.shape[1] - width + 1]
    starts = np.argwhere((corners == tile[0, 0]).all(axis=-1)).tolist()
    return [
        (top, left)
        for top, left in starts
        if np.array_equal(paper[top : top + height, left : left + width], tile)
    ]


GRIDS = [
    # cells, their height and width, and the scale that they are drawn at
    (1, 3, 3, 1),
    (64, 3, 3, 1),
    (96, 7, 7, 3),
    (2, 80, 163, 1),
    (8, 80, 163, 2),
    (11, 120, 30, 1),
    (12, 27, 27, 3),
]


@pytest.mark.parametrize(("count", "height", "width", "scale"), GRIDS)
def test_a_sheet_has_every_tile_once_in_a_grid_without_overlap(
    count: int, height: int, width: int, scale: int
) -> None:
    cells = [Cell(f"{n}", pattern(n, height, width)) for n in range(count)]
    paper = sheet(cells, CAPTION, scale).pixels
    taken = np.zeros(paper.shape[:2], bool)
    found = []
    for cell in cells:
        drawn = cell.pixels.repeat(scale, axis=0).repeat(scale, axis=1)
        ((top, left),) = places(paper, drawn)
        window = taken[top : top + height * scale, left : left + width * scale]
        assert not window.any()
        window[:] = True
        found.append((top, left))
    tops, lefts = (sorted({place[axis] for place in found}) for axis in (0, 1))
    assert found == [(tops[n // len(lefts)], lefts[n % len(lefts)]) for n in range(count)]
    ink: NDArray[np.bool_] = (paper < 250).any(axis=-1) & ~taken
    assert ink[: found[0][0]].any(), "a caption above the tiles"
    assert ink[found[0][0] :].any(), "labels"
    edges = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
    assert not edges.any(), "text must not run off the paper"
    outside = paper[ink.nonzero()]
    assert (outside == outside[:, :1]).all(), "text has no colour, so no tile reaches outside"


@pytest.mark.parametrize(
    ("label", "width"), [("7", 40), ("23 zigzag", 90), ("999 toilet tissue", 60)]
)
def test_each_cell_has_ink_for_its_label_nearby(label: str, width: int) -> None:
    cells = [Cell(label, pattern(n, 40, width)) for n in range(4)]
    paper = sheet(cells, CAPTION).pixels
    ink = np.asarray((paper < 250).any(axis=-1))
    tops = {places(paper, cell.pixels)[0] for cell in cells}
    for top, left in tops:
        below = ink[top + 40 : top + 40 + 14, left : left + width].any()
        beside_it = ink[top : top + 40, : min(x for _, x in tops)].any()
        assert below or beside_it


def test_a_dead_cell_is_crossed_out_and_the_others_are_not() -> None:
    cells = [Cell("0", pattern(0, 30, 30)), Cell("1", pattern(1, 30, 30), dead=True)]
    paper = sheet(cells, CAPTION).pixels
    assert len(places(paper, cells[0].pixels)) == 1
    assert not places(paper, cells[1].pixels)
    assert len(places(paper, cells[1].pixels[1:3, 3:27])) == 1  # between the arms of the cross


def test_a_page_is_not_larger_than_it_may_be() -> None:
    for height, width, scale in ((7, 7, 1), (51, 51, 2), (337, 678, 1), (4000, 5000, 3)):
        count = per_page(height, width, scale)
        assert count >= 1
        if count > 1:
            cells = [Cell("0", np.zeros((height, width, 3), np.uint8))] * min(count, 2000)
            paper = sheet(cells, Caption("title", "note"), scale).pixels
            assert paper.shape[0] * paper.shape[1] < 25e6


def test_the_same_sheet_is_the_same_file_and_carries_its_record(tmp_path: Path) -> None:
    record = {"Title": "demo conv1 · ünits", "cnnvis": '{"tone": "x / max(2 max, -2 min)"}'}

    def drawn() -> bytes:
        cells = [Cell(f"{n}", pattern(n, 20, 20)) for n in range(5)]
        return sheet(cells, CAPTION, 2).png(record)

    path = tmp_path / "sheet.png"
    path.write_bytes(drawn())
    assert drawn() == path.read_bytes()
    found = read_record(path)
    assert {key: found[key] for key in record} == record


@pytest.mark.parametrize("content", [None, b"", b"no picture", "cut"])
def test_a_damaged_picture_has_no_record(content: bytes | str | None, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    whole = Canvas(200, 200).png({"cnnvis-key": "1"})
    if content is not None:
        path.write_bytes(whole[:-60] if isinstance(content, str) else content)
    assert read_record(path) == {}
