"""Sheets of filters and the scatter plot: every tile and dot where it belongs, every mark seen."""

from __future__ import annotations

import numpy as np
import pytest

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.figure.filters import (
    FRAME,
    TONES,
    FilterSheet,
    Marks,
    filter_scale,
    filter_sheets,
    toned_filters,
)
from cnnvis_cli.figure.lines import INKS
from cnnvis_cli.figure.scatter import Band, Scatter, scatter
from cnnvis_cli.figure.sheets import Caption

CAPTION = Caption("a title", "a note")


def places(paper: Pixels, tile: Pixels) -> list[tuple[int, int]]:
    """Return where a picture is on a sheet, to the pixel."""
    height, width = tile.shape[:2]
    corners = paper[: len(paper) - height + 1, : paper.shape[1] - width + 1]
    starts = np.argwhere((corners == tile[0, 0]).all(axis=-1)).tolist()
    return [(y, x) for y, x in starts if np.array_equal(paper[y : y + height, x : x + width], tile)]


def tiles(count: int, size: int, seed: int) -> Pixels:
    random = np.random.default_rng(seed)
    return random.integers(0, 120, (count, size, size, 3)).astype(np.uint8)


def test_the_tone_is_the_stated_one() -> None:
    weights = np.random.default_rng(0).normal(size=(5, 3, 3, 3)).astype(np.float32)
    weights[1] *= 10
    for tone, largest in (
        ("sheet", np.abs(weights).max()),
        ("tile", np.abs(weights).max(axis=(1, 2, 3), keepdims=True)),
    ):
        wanted = ((weights / (2 * largest) + 0.5) * 255 + 0.5).astype(np.uint8)
        assert np.abs(toned_filters(weights, tone).astype(int) - wanted).max() <= 1
        assert "x / (2 max |x|) + 0.5" in TONES[tone]


@pytest.mark.parametrize(("size", "count"), [(3, 64), (7, 96), (11, 96), (5, 6), (1, 1), (16, 200)])
def test_every_filter_is_in_both_sheets_and_nothing_overlaps(size: int, count: int) -> None:
    scale = filter_scale((size, size))
    assert 30 <= size * scale <= 60
    marks = Marks(np.ones(count, bool), np.zeros(count, bool))
    sheets = [FilterSheet(f"sheet {n}", tiles(count, size, n), marks, scale) for n in range(2)]
    paper = filter_sheets(sheets, CAPTION).pixels
    taken = np.zeros(paper.shape[:2], bool)
    for sheet in sheets:
        for tile in sheet.tiles:
            large = tile.repeat(scale, axis=0).repeat(scale, axis=1)
            ((top, left),) = places(paper, large)
            window = taken[top : top + len(large), left : left + len(large)]
            assert not window.any()
            window[:] = True


def test_frames_and_crosses_are_on_their_filters_alone() -> None:
    grey = np.full((4, 5, 5, 3), 128, np.uint8)  # a dead filter is as grey as this
    framed, crossed = np.array([0, 1, 0, 0], bool), np.array([0, 0, 1, 0], bool)
    sheet = FilterSheet("grey", grey, Marks(framed, crossed), 8)
    paper = filter_sheets([sheet], CAPTION).pixels
    corners = [(y, x) for y in range(0, len(paper)) for x in range(paper.shape[1])]
    plain = [
        (y, x)
        for y, x in corners
        if (paper[y, x] == 128).all()
        and (y == 0 or (paper[y - 1, x] != 128).any())
        and (x == 0 or (paper[y, x - 1] != 128).any())
        and (paper[y : y + 40, x : x + 40] == 128).all()
        and paper[y : y + 40, x : x + 40].shape[:2] == (40, 40)
    ]
    assert len(plain) == 3  # all but the crossed one
    with_frame = [p for p in plain if (paper[p[0] - 1, p[1] + 20] == FRAME).all()]
    assert with_frame == [plain[1]]
    top, left = plain[0][0] + 40 + 8, plain[0][1]  # filter 2, below filter 0
    inside = paper[top : top + 40, left : left + 40].astype(int)
    assert inside.min() < 40
    assert inside.max() == 255
    assert (inside[18, 2] == 128).all()


def plot(x: list[float], y: list[float], bands: tuple[Band, ...] = ()) -> Scatter:
    none = np.zeros(len(x), bool)
    return Scatter(
        np.array(x), np.array(y), ("across", "up"), none, (np.array(x), np.array(y)), bands
    )


def inked(paper: Pixels, ink: tuple[int, int, int]) -> np.ndarray:
    return np.argwhere(np.abs(paper.astype(int) - ink).sum(axis=2) < 60)


def test_dots_are_where_their_numbers_are() -> None:
    lone = Scatter(
        np.array([0.0, 1.0, 4.0]),
        np.array([0.0, 20.0, 40.0]),
        ("across", "up"),
        np.zeros(3, bool),
        (np.empty(0), np.empty(0)),
        (Band(np.array([1]), "", INKS[1]), Band(np.array([2]), "", INKS[2])),
    )
    paper = scatter(lone, CAPTION).pixels
    first, second, third = (inked(paper, ink).mean(axis=0) for ink in INKS[:3])
    np.testing.assert_allclose((second - first)[1] / (third - first)[1], 1 / 4, atol=0.02)
    np.testing.assert_allclose((second - first)[0] / (third - first)[0], 1 / 2, atol=0.02)
    assert third[0] < first[0]  # rows count downwards


@pytest.mark.parametrize(
    ("x", "y"),
    [([0, 0], [0, 0]), ([0.2, 0.2], [5, 5]), ([0.1, 0.4], [-3, -1]), ([1e-9, 1], [1e9, 0])],
)
def test_any_numbers_can_be_plotted(x: list[float], y: list[float]) -> None:
    band = Band(np.array([0]), "1 lowest: mean 0", INKS[1])
    paper = scatter(plot(x, y, (band,)), CAPTION).pixels
    assert len(inked(paper, INKS[1])) > 5
    edges = np.concatenate([paper[0], paper[-1], paper[:, 0], paper[:, -1]])
    assert (edges == 255).all(), "nothing runs off the paper"


def test_a_ring_is_hollow() -> None:
    one = np.array([1.0])
    ring = Scatter(one, one, ("", ""), np.array([True]), (np.empty(0), np.empty(0)))
    dot = Scatter(one, one, ("", ""), np.array([False]), (np.empty(0), np.empty(0)))
    hollow, full = (len(inked(scatter(each, CAPTION).pixels, INKS[0])) for each in (ring, dot))
    assert 0 < hollow < full
