"""Tones by their formulas, and sheets searched for the tiles that must be on them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cnnvis_cli.arrays import Floats, Pixels
from cnnvis_cli.figure.canvas import (
    Canvas,
    TextLine,
    read_record,
    reduced,
    shortened,
    text_size,
)
from cnnvis_cli.figure.sheets import (
    Caption,
    Cell,
    CellRow,
    Pane,
    block,
    fitting,
    per_page,
    rows_of_cells,
    sheet,
    single,
    toolbox_montage,
)
from cnnvis_cli.figure.tone import TONE_RULES, about_grey, as_photograph, toned

CAPTION = Caption("demo conv1 (features.0) · units 0 to 7 of 32", "Preferred images. " * 12)


def tiles(seed: int = 0, units: int = 3, each: int = 2) -> Floats:
    """Signed values (U, n, 4, 5, 3) of very different sizes."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(units, each, 4, 5, 3))
    values *= 10.0 ** random.integers(-3, 4, (units, each, 1, 1, 1))
    return values.astype(np.float32)


def grey(value: float, divisor: float) -> int:
    """Return one value by the rule x / divisor + 0.5, as a level of 0..255."""
    return min(255, max(0, int((value / divisor + 0.5) * 255 + 0.5)))


def percentile(tile: Floats) -> float:
    """Return the 99th percentile of |x| where x is not 0, from the sorted values."""
    size = np.sort(np.abs(tile[tile != 0]).astype(float))
    place = 0.99 * (len(size) - 1)
    low = int(place)
    above = size[min(low + 1, len(size) - 1)]
    return float(size[low] + (place - low) * (above - size[low]))


@pytest.mark.parametrize("rule", ["tile", "max", "unit", "sheet"])
def test_a_tone_is_its_formula(rule: str) -> None:
    x = tiles()
    x[0, 1, :2] = 0  # where a window leaves the image
    found = toned(x, rule)
    assert found.dtype == np.uint8
    p = np.array([[percentile(tile) for tile in unit] for unit in x])
    for (unit, number, row, column, colour), value in np.ndenumerate(x):
        tile = x[unit, number]
        divisor = {
            "tile": 2 * p[unit, number],
            "max": max(2 * tile.max(), -2 * tile.min()),
            "unit": 2 * p[unit].max(),
            "sheet": 2 * p.max(),
        }[rule]
        level = found[unit, number, row, column, colour]
        assert abs(int(level) - grey(float(value), float(divisor))) <= 1  # of rounding


def test_one_strong_pixel_does_not_blank_a_picture() -> None:
    """As in projections of deep layers, where a single pixel is ten times as strong as a face."""
    x = np.random.default_rng(0).normal(size=(1, 1, 30, 30, 3)).astype(np.float32)
    x[0, 0, 15, 15, 0] = 100
    contrast = {rule: float(toned(x, rule).std()) for rule in ("tile", "max")}
    assert contrast["tile"] > 40
    assert contrast["max"] < 5
    assert "99th percentile" in TONE_RULES["tile"]


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
    assert set(TONE_RULES) == {"tile", "max", "unit", "sheet", "true"}
    assert all(TONE_RULES.values())


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


def pattern(number: int, height: int, width: int) -> Pixels:
    """Return a tile that is like no other, in colours that no text has."""
    random = np.random.default_rng(number)
    found = random.integers(0, 120, (height, width, 3)).astype(np.uint8)
    found[..., 1] += 130  # green: text and paper have no colour
    return found


def places(paper: Pixels, tile: Pixels) -> list[tuple[int, int]]:
    """Return where a tile is on a sheet, to the pixel."""
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
    cells = [Cell.of(f"{n}", pattern(n, height, width)) for n in range(count)]
    paper = sheet(cells, CAPTION, scale).pixels
    taken = np.zeros(paper.shape[:2], bool)
    found = []
    for cell in cells:
        drawn = cell.panes[0].tiles[0].repeat(scale, axis=0).repeat(scale, axis=1)
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
    cells = [Cell.of(label, pattern(n, 40, width)) for n in range(4)]
    paper = sheet(cells, CAPTION).pixels
    ink = np.asarray((paper < 250).any(axis=-1))
    tops = {places(paper, cell.panes[0].tiles[0])[0] for cell in cells}
    for top, left in tops:
        above = ink[top - 15 : top, left : left + width].any()
        beside_it = ink[top : top + 40, : min(x for _, x in tops)].any()
        assert above or beside_it


def test_a_dead_cell_is_crossed_out_and_the_others_are_not() -> None:
    cells = [Cell.of("0", pattern(0, 30, 30)), Cell.of("1", pattern(1, 30, 30), dead=True)]
    paper = sheet(cells, CAPTION).pixels
    assert len(places(paper, cells[0].panes[0].tiles[0])) == 1
    assert not places(paper, cells[1].panes[0].tiles[0])
    between_the_arms = cells[1].panes[0].tiles[0][1:3, 3:27]
    assert len(places(paper, between_the_arms)) == 1


def test_a_page_is_not_larger_than_it_may_be() -> None:
    for height, width, scale in ((7, 7, 1), (51, 51, 2), (337, 678, 1), (4000, 5000, 3)):
        count = per_page((height * scale, width * scale))
        assert count >= 1
        if count > 1:
            cells = [Cell.of("0", np.zeros((height, width, 3), np.uint8))] * min(count, 2000)
            paper = sheet(cells, Caption("title", "note"), scale).pixels
            assert paper.shape[0] * paper.shape[1] < 25e6


def test_the_same_sheet_is_the_same_file_and_carries_its_record(tmp_path: Path) -> None:
    record = {"Title": "demo conv1 · ünits", "cnnvis": '{"tone": "x / max(2 max, -2 min)"}'}

    def drawn() -> bytes:
        cells = [Cell.of(f"{n}", pattern(n, 20, 20)) for n in range(5)]
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


def patterns(first: int, count: int, height: int, width: int) -> Pixels:
    return np.stack([pattern(first + n, height, width) for n in range(count)])


def ink_of(paper: Pixels) -> NDArray[np.bool_]:
    """Return where a sheet has text: neither paper nor a tile, which is green."""
    grey = (paper == paper[..., :1]).all(axis=-1)
    found: NDArray[np.bool_] = grey & (paper[..., 0] < 250)
    return found


def boxes_of(paper: Pixels, tiles: Pixels, scale: int = 1) -> list[tuple[int, int]]:
    """Return the only place of each tile on a sheet."""
    drawn = tiles.repeat(scale, axis=1).repeat(scale, axis=2)
    found = [places(paper, tile) for tile in drawn]
    assert all(len(each) == 1 for each in found), "every tile stands on the sheet once"
    return [each[0] for each in found]


@pytest.mark.parametrize(("width", "scale"), [(60, 1), (48, 1), (24, 2)])
def test_names_stand_under_their_own_tiles(width: int, scale: int) -> None:
    names = ("cat", "", "a very long name that does not fit", "dog")
    pane = Pane(patterns(0, 4, 20, width), 2, names)
    canvas = Canvas(*pane.size(scale))
    pane.draw(canvas, 0, 0, scale)
    ink, wide = ink_of(canvas.pixels), width * scale
    below = 20 * scale
    for name, (top, left) in zip(names, boxes_of(canvas.pixels, pane.tiles, scale), strict=True):
        line = ink[top + below : top + below + 15, left : left + wide + 1]
        assert line.any() == bool(name), name
        assert not line[:, -3:].any(), "a name does not touch its neighbour's"
    assert shortened(names[2], 11, wide).endswith("...")


@pytest.mark.parametrize("names", [(), ("cat",) * 4])
def test_narrow_tiles_have_no_names(names: tuple[str, ...]) -> None:
    pane = Pane(patterns(0, 4, 20, 47), 2, names)
    assert pane.size(1) == (41, 95)
    assert not ink_of(pane.canvas().pixels).any()


def test_wide_tiles_without_names_have_no_ink() -> None:
    pane = Pane(patterns(0, 4, 20, 60), 2)
    assert pane.size(1) == (41, 121)
    assert not ink_of(pane.canvas().pixels).any()


def test_a_pane_is_the_block_of_its_tiles() -> None:
    for count, columns in ((9, 3), (7, 3), (2, 3), (4, 2)):
        tiles = patterns(0, count, 5, 4)
        assert np.array_equal(
            Pane(tiles, columns).canvas().pixels, block(tiles, min(columns, count))
        )


def test_a_title_stands_above_its_pane() -> None:
    tiles = patterns(0, 4, 20, 60)
    paper = Pane(tiles, 2, title="style 1").canvas().pixels
    first = min(boxes_of(paper, tiles))
    assert first[0] >= 11
    assert ink_of(paper)[: first[0]].any()
    assert not ink_of(paper)[first[0] :].any()


@pytest.mark.parametrize(("across", "rows"), [(0, 1), (1, 4), (2, 2), (3, 2), (4, 1)])
def test_panes_of_a_cell_stand_in_rows(across: int, rows: int) -> None:
    panes = tuple(Pane(patterns(9 * n, 2, 8, 10), 1, title=str(n)) for n in range(4))
    cell = Cell("7", panes, across=across)
    paper = single(cell, CAPTION, 2).pixels
    found = [boxes_of(paper, pane.tiles, 2) for pane in panes]
    firsts = [tiles[0] for tiles in found]
    assert firsts == sorted(firsts)
    tops, lefts = (sorted({place[axis] for place in firsts}) for axis in (0, 1))
    assert (len(tops), len(lefts)) == (rows, across or 4)
    assert firsts == [(tops[n // len(lefts)], lefts[n % len(lefts)]) for n in range(4)]
    height, width = cell.size(2)
    corner = (tops[0] - 15, lefts[0])  # the first title's
    for top, left in (place for tiles in found for place in tiles):
        assert corner[0] <= top <= corner[0] + height - 16
        assert corner[1] <= left <= corner[1] + width - 20
    assert (max(top for tiles in found for top, _ in tiles) + 16) == corner[0] + height
    assert (max(left for tiles in found for _, left in tiles) + 20) == corner[1] + width


@pytest.mark.parametrize("scale", [1, 2])
def test_rows_of_cells_have_every_tile_at_true_size_and_titles_at_the_left(scale: int) -> None:
    sizes = {"fc8": (3, 4, 60, 50), "conv3": (5, 3, 21, 23), "conv1": (9, 4, 7, 7)}
    rows, first = [], 0
    for title, (count, runs, height, width) in sizes.items():
        tiles = [patterns(first + 10 * n, runs, height, width) for n in range(count)]
        rows.append(CellRow(title, tuple(Cell(f"{n}", (Pane(t, 2),)) for n, t in enumerate(tiles))))
        first += 100
    paper = rows_of_cells(rows, CAPTION, scale).pixels
    ink, bottom = ink_of(paper), 0
    every = []
    for row in rows:
        found = [boxes_of(paper, cell.panes[0].tiles, scale) for cell in row.cells]
        tops = [top for cell in found for top, _ in cell]
        lefts = [cell[0][1] for cell in found]
        assert lefts == sorted(set(lefts))
        assert len({cell[0][0] for cell in found}) == 1, "cells of a layer stand in one line"
        assert min(tops) > bottom, "layers stand below each other"
        height, width = (side * scale for side in row.cells[0].panes[0].tiles.shape[1:3])
        bottom = max(tops) + height
        for cell, left in zip(found, lefts, strict=True):
            label = ink[min(tops) - 15 : min(tops), left : left + max(24, width)]
            assert label.any(), "its label"
            assert cell[0] == min(cell)
        words = ink[min(tops) : bottom + 24, 14 : min(lefts) - 4]
        assert words.any()
        assert np.flatnonzero(words.any(axis=0)).max() >= text_size(row.title, 15)[0] - 4
        every.append(min(lefts))
    assert len(set(every)) == 1, "layers begin at one line"
    edges = np.concatenate([ink[0], ink[-1], ink[:, 0], ink[:, -1]])
    assert not edges.any()


@pytest.mark.parametrize("width", [7, 30, 163])
def test_what_fits_in_a_row_fits(width: int) -> None:
    cell = Cell("123", (Pane(patterns(0, 4, 9, width), 2),))
    count = fitting(cell, 800, 1)
    paper = [
        rows_of_cells([CellRow("", (cell,) * n)], Caption("", "")).width for n in (count, count + 1)
    ]
    assert paper[0] <= 800 + 42 < paper[1]  # two margins and the gutter of titles


def viewed(img: Pixels, row: int, column: int) -> Pixels:
    """Return the corner of a picture that the toolbox's viewer cuts out, by its rule."""
    assert img.shape[0] == img.shape[1], "square"
    assert img.shape[0] % 2 == 0, "of an even side"
    half, t = img.shape[0] // 2, 1 + 2
    return img[row * half + t : (row + 1) * half - t, column * half + t : (column + 1) * half - t]


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (5, 9), (10, 4)])
def test_the_toolbox_cuts_its_montage_into_the_styles(size: tuple[int, int]) -> None:
    blocks = {name: patterns(10 * n, 9, *size) for n, name in enumerate("1234")}
    paper = toolbox_montage(blocks).pixels
    height, width = (3 * side + 2 for side in size)
    for n, name in enumerate("1234"):
        corner = viewed(paper, n // 2, n % 2)
        assert corner.shape == (3 * max(size) + 2, 3 * max(size) + 2, 3)
        by_hand = np.full((height, width, 3), 255, np.uint8)
        for tile, (row, column) in zip(blocks[name], np.ndindex(3, 3), strict=True):
            top, left = row * (size[0] + 1), column * (size[1] + 1)
            by_hand[top : top + size[0], left : left + size[1]] = tile
        assert np.array_equal(corner[:height, :width], by_hand)
        assert (corner[height:] == 255).all()
        assert (corner[:, width:] == 255).all()


@pytest.mark.parametrize("count", [1, 3, 9, 12])
def test_a_toolbox_montage_of_few_or_many_runs_keeps_its_measures(count: int) -> None:
    tiles = patterns(0, count, 6, 6)
    paper = toolbox_montage({"3": tiles}).pixels
    corner = viewed(paper, 1, 0)
    assert paper.shape == (2 * (20 + 6), 2 * (20 + 6), 3)
    for n, (row, column) in zip(range(count), np.ndindex(3, 3), strict=False):
        assert np.array_equal(corner[7 * row : 7 * row + 6, 7 * column : 7 * column + 6], tiles[n])
    assert (viewed(paper, 0, 0) == 255).all()


def test_where_style_3_is_missing_the_viewer_shows_the_first() -> None:
    blocks = {"1": patterns(0, 9, 6, 6), "2": patterns(10, 9, 6, 6)}
    paper = toolbox_montage(blocks).pixels
    assert np.array_equal(viewed(paper, 1, 0), viewed(paper, 0, 0))
    assert not np.array_equal(viewed(paper, 1, 0), viewed(paper, 0, 1))
    assert (viewed(paper, 1, 1) == 255).all()
    named = toolbox_montage({"fourier": blocks["2"]}).pixels
    assert np.array_equal(viewed(named, 1, 0), block(blocks["2"]))


@pytest.mark.parametrize("scale", [0.5, 0.25])
def test_below_1_a_pixel_is_the_mean_of_those_it_stands_for(scale: float) -> None:
    tile, each = pattern(0, 24, 40), int(1 / scale)
    means = tile.reshape(24 // each, each, 40 // each, each, 3).mean(axis=(1, 3))
    small = reduced(tile, scale)
    assert np.abs(small - means).max() <= 1  # rows and columns are rounded one after the other
    paper = sheet([Cell.of("0", tile)], CAPTION, scale).pixels
    assert len(places(paper, small)) == 1


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.01, 1))
@settings(max_examples=50, deadline=None)
def test_any_share_of_a_picture_keeps_its_colour(height: int, width: int, scale: float) -> None:
    small = reduced(np.full((height, width, 3), (10, 200, 90), np.uint8), scale)
    assert small.shape == (max(1, round(height * scale)), max(1, round(width * scale)), 3)
    assert (small == (10, 200, 90)).all()
    assert np.array_equal(reduced(pattern(0, height, width), 1), pattern(0, height, width))


def test_a_shortened_text_fits_and_a_short_one_is_whole() -> None:
    assert shortened("cat", 11, 100) == "cat"
    for width in range(80):
        found = shortened("lesser panda", 11, width)
        assert not found or text_size(found, 11)[0] <= width
    assert shortened("lesser panda", 11, 50).startswith("les")


def test_a_label_wider_than_its_tile_is_shortened_and_not_left_out() -> None:
    """Of classes with long names each tile was once named by its row's first alone."""
    names = [f"{number} European fire salamander" for number in range(6)]
    cells = [Cell.of(name, np.zeros((112, 112, 3), np.uint8)) for name in names]
    marks = sheet(cells, Caption("title", "note")).marks
    said = [mark.text for mark in marks if isinstance(mark, TextLine)]
    for number in range(6):
        assert any(re.match(rf"{number} European .*\.\.\.$", text) for text in said), said
    small = [Cell.of(name, np.zeros((60, 60, 3), np.uint8)) for name in names]
    marks = sheet(small, Caption("title", "note")).marks
    said = [mark.text for mark in marks if isinstance(mark, TextLine)]
    assert names[0] in said
    assert len(said) < 6
