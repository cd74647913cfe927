"""Contact sheets: every picture is there unchanged, and every word has room."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.contact import Card, cards_on_a_page, contact_sheet, rows_sheet
from cnnvis_cli.figure.sheets import PAGE, Caption

CAPTION = Caption("a title", "a note " * 30)


def cards(count: int, pictures: int, side: int) -> list[Card]:
    drawn = np.random.default_rng(0).integers(0, 250, (count, pictures, side, side + 2, 3))
    return [
        Card(picture.astype(np.uint8), f"row {i}", (f"decay 0.1 · blur {i}/4 · norm 30", "lead 1"))
        for i, picture in enumerate(drawn)
    ]


def found(canvas: Canvas, picture: NDArray[np.uint8], scale: int) -> list[tuple[int, int]]:
    """Return the upper left corners of a picture on the sheet, pixel by pixel."""
    large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    sheet, (h, w, _) = canvas.pixels, large.shape
    corners = np.argwhere((sheet == large[0, 0]).all(axis=2))
    return [
        (int(y), int(x))
        for y, x in corners
        if sheet[y : y + h, x : x + w].shape == large.shape
        and (sheet[y : y + h, x : x + w] == large).all()
    ]


@pytest.mark.parametrize(("count", "pictures", "side"), [(1, 1, 7), (5, 4, 27), (7, 9, 60)])
@pytest.mark.parametrize("scale", [1, 3])
def test_every_picture_stands_on_the_sheet_once(
    count: int, pictures: int, side: int, scale: int
) -> None:
    given = cards(count, pictures, side)
    canvas = contact_sheet(given, CAPTION, scale)
    places = [found(canvas, picture, scale) for card in given for picture in card.pictures]
    assert all(len(place) == 1 for place in places)
    corners = [place[0] for place in places]
    assert len(set(corners)) == count * pictures
    assert corners[0] == min(corners)  # the best comes first


def test_a_line_of_cards_for_each_title() -> None:
    given = cards(6, 2, 20)
    canvas = rows_sheet([("decay", given[:3]), ("blur", given[3:])], CAPTION)
    corners = [found(canvas, card.pictures[0], 1)[0] for card in given]
    tops, lefts = [y for y, _ in corners], [x for _, x in corners]
    assert len(set(tops)) == 2
    assert tops == sorted(tops)
    assert lefts[:3] == lefts[3:] == sorted(lefts[:3])


def test_long_words_make_a_card_higher_not_cut_off() -> None:
    short = cards(1, 1, 9)
    wordy = [Card(c.pictures, c.heading, ("many words " * 12, *c.lines)) for c in short]
    one, other = (contact_sheet(some, CAPTION).pixels for some in (short, wordy))
    assert other.shape[0] > one.shape[0] + 60
    assert other.shape[1] == one.shape[1]
    for sheet in (one, other):  # the margin stays white
        assert (sheet[:, -10:] == 255).all()
        assert (sheet[-10:] == 255).all()


@pytest.mark.parametrize("scale", [1, 4])
def test_a_page_of_cards_is_no_larger_than_a_page(scale: int) -> None:
    given = cards(1, 4, 27) * 300
    count = cards_on_a_page(given, scale)
    sheet = contact_sheet(given[:count], CAPTION, scale).pixels
    assert sheet.shape[0] * sheet.shape[1] < 1.3 * PAGE
