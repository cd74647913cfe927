"""Strengths as colours, and the sheet of an image with its maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.figure.canvas import TextLine, Tile, text_size
from cnnvis_cli.figure.heat import (
    INFERNO,
    LUMA,
    PHOTOGRAPH_BRIGHTNESS,
    capped,
    colour_bar,
    coloured,
    in_grey,
    over,
    to_largest,
)
from cnnvis_cli.figure.saliency import LEGEND_WIDTH, MethodPicture, Subject, saliency_sheet
from cnnvis_cli.figure.sheets import Caption
from cnnvis_cli.nouns import Box

GUESSES = (("tench", 0.9713), ("a name that is far too long for a column of this width", 0.0004))


def flat(value: int, side: int = 60) -> Pixels:
    return np.full((side, side, 3), value, np.uint8)


def test_stronger_is_brighter() -> None:
    light = coloured(np.linspace(0, 1, 256, dtype=np.float32)[None])[0] @ np.array(LUMA)
    assert (np.diff(light) > -0.5).all()
    assert light[0] < 2
    assert light[-1] > 240
    assert [tuple(row) for row in colour_bar(1, 9)[0].tolist()] == list(INFERNO)


@given(st.floats(0.001, 1e6), st.integers(1, 29))
def test_a_cap_leaves_one_in_a_hundred_at_full_strength(scale: float, share: int) -> None:
    """Of those that are not 0, however few they are."""
    values = np.zeros(6000, np.float32)
    values[: 200 * share] = np.arange(1, 200 * share + 1) * scale
    strength = capped(values.reshape(60, 100))
    full = int((strength == 1).sum())
    assert strength.min() == 0
    assert 2 * share <= full <= 2 * share + 1


def test_nothing_stays_nothing() -> None:
    nothing = np.zeros((5, 7), np.float32)
    for strength in (capped(nothing), to_largest(nothing)):
        assert not strength.any()
        assert not in_grey(strength).any()
    photograph = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    shown = over(photograph, nothing)
    assert (
        np.abs(shown - (photograph @ np.array(LUMA) * PHOTOGRAPH_BRIGHTNESS)[..., None]) <= 0.5
    ).all()


def test_full_strength_hides_the_photograph() -> None:
    assert (over(flat(255), np.ones((60, 60), np.float32)) == INFERNO[-1]).all()


@pytest.mark.parametrize("side", [20, 60, 224])
@pytest.mark.parametrize("count", [1, 6])
def test_everything_is_on_the_sheet(side: int, count: int) -> None:
    columns = [
        MethodPicture(f"method {i}", flat(i, side), flat(100 + i, side)) for i in range(count)
    ]
    subject = Subject(flat(200, side), GUESSES, Box(2, 3, 12, 15))
    canvas = saliency_sheet(subject, columns, Caption("title", "a note on how to read it"))
    for mark in canvas.marks:
        if isinstance(mark, Tile):
            left, top, width, height = mark.box
        elif isinstance(mark, TextLine):
            (left, top), (width, height) = mark.place, text_size(mark.text, mark.size)
        else:
            continue
        assert left >= 0
        assert top >= 0
        assert left + width <= canvas.width
        assert top + height <= canvas.height
    values = {int(v) for v in np.unique(canvas.pixels)}
    assert {*range(count), *range(100, 100 + count), 200} <= values


def test_columns_do_not_run_into_each_other() -> None:
    """However narrow the image is; titles are those of the methods, the longest among them."""
    columns = [MethodPicture("integrated gradients", flat(1, 20), flat(2, 20))] * 2
    subject = Subject(flat(0, 20), GUESSES, Box(2, 3, 12, 15))
    canvas = saliency_sheet(subject, columns, Caption("title", "note"))
    below = [m for m in canvas.marks if isinstance(m, TextLine) and m.place[1] > 40]
    for text in below:
        assert text_size(text.text, text.size)[0] <= LEGEND_WIDTH
    assert any(text.text.endswith("...") for text in below)
    assert {"97.1%", "< 0.1%"} <= {text.text for text in below}
