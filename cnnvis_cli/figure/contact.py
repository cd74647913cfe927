"""Contact sheets of a parameter search: pure functions from cards to a canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.figure.canvas import FAINT, Canvas, scaled
from cnnvis_cli.figure.sheets import MARGIN, PAGE, SMALL, TITLE, Caption, begun, block, wrapped

CARD_TEXT_WIDTH = 170  # pixels of width that a card's text needs
CARD_LINE = SMALL + 3
CARD_GAP = 14
WIDEST = 2 * CARD_TEXT_WIDTH  # least width of a sheet


@dataclass(frozen=True)
class Card:
    """One row of parameters: pictures (n, h, w, 3), a heading, and a text."""

    pictures: Pixels
    heading: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Shape:
    """The size of a sheet's cards, in pixels; all are alike."""

    columns: int  # of a card's pictures
    width: int
    picture: int  # height of the pictures together
    heading: int  # lines
    text: int  # lines under the pictures
    scale: float

    @classmethod
    def of(cls, cards: Sequence[Card], scale: float, room: int = 0) -> _Shape:
        """Return the size of cards; `room` is the width of a column that they fill."""
        count, height, width, _ = cards[0].pictures.shape
        if room:
            wide = (room + CARD_GAP) // _in_a_line(room) - CARD_GAP
            columns = min(count, math.isqrt(count - 1) + 1)
            scale = wide / (columns * (width + 1) - 1)
        else:
            columns = _pictures_per_line(count, scaled(width, scale))
        across = scaled(columns * (width + 1) - 1, scale)
        down = scaled(-(-count // columns) * (height + 1) - 1, scale)
        if not room:
            wide = max(across, CARD_TEXT_WIDTH)
        text = max(sum(len(wrapped(line, wide)) for line in card.lines) for card in cards)
        heading = max(len(wrapped(card.heading, wide)) for card in cards)
        return cls(columns, wide, down, heading, text, scale)

    @property
    def height(self) -> int:
        return (self.heading + self.text) * CARD_LINE + self.picture + 6


def _pictures_per_line(count: int, width: int) -> int:
    """Return the pictures per line of a card: all, while the card is narrower than two texts."""
    return min(count, max(math.isqrt(count - 1) + 1, 2 * CARD_TEXT_WIDTH // (width + 1)))


def contact_sheet(cards: Sequence[Card], caption: Caption, scale: float = 1) -> Canvas:
    """Return all cards in a nearly square grid, row by row, under a caption."""
    shape = _Shape.of(cards, scale, caption.room)
    ratio = (shape.height + CARD_GAP) / (shape.width + CARD_GAP)
    columns = max(1, min(len(cards), round(math.sqrt(len(cards) * ratio * 1.3))))
    if caption.room:
        columns = _in_a_line(caption.room)
    rows = -(-len(cards) // columns)
    width = max(columns * (shape.width + CARD_GAP) - CARD_GAP, 0 if caption.room else WIDEST)
    canvas, head = begun(caption, width, rows * (shape.height + CARD_GAP))
    for number, card in enumerate(cards):
        row, column = divmod(number, columns)
        top = head + row * (shape.height + CARD_GAP)
        _draw_card(canvas, card, shape, (top, MARGIN + column * (shape.width + CARD_GAP)))
    return canvas


def _in_a_line(room: int) -> int:
    """Return the cards side by side in a column of a paper."""
    return max(1, (room + CARD_GAP) // (CARD_TEXT_WIDTH + CARD_GAP))


def rows_sheet(
    rows: Sequence[tuple[str, Sequence[Card]]], caption: Caption, scale: float = 1
) -> Canvas:
    """Return one line of cards per title: sweeps of several parameters, below each other."""
    shape = _Shape.of([card for _, cards in rows for card in cards], scale, caption.room)
    most = max(len(cards) for _, cards in rows)
    line = min(most, _in_a_line(caption.room)) if caption.room else most
    width = max(line * (shape.width + CARD_GAP) - CARD_GAP, 0 if caption.room else WIDEST)
    lines = -(-most // line)
    pitch = TITLE + 8 + lines * (shape.height + CARD_GAP)
    canvas, head = begun(caption, width, len(rows) * pitch)
    for number, (title, cards) in enumerate(rows):
        top = head + number * pitch
        canvas.text(title, top, MARGIN, TITLE - 2)
        for place, card in enumerate(cards):
            row, column = divmod(place, line)
            left = MARGIN + column * (shape.width + CARD_GAP)
            below = top + TITLE + 8 + row * (shape.height + CARD_GAP)
            _draw_card(canvas, card, shape, (below, left))
    return canvas


def cards_on_a_page(cards: Sequence[Card], scale: float = 1) -> int:
    """Return the number of cards of this size on a page."""
    shape = _Shape.of(cards, scale)
    return max(1, PAGE // ((shape.height + CARD_GAP) * (shape.width + CARD_GAP)))


def _draw_card(canvas: Canvas, card: Card, shape: _Shape, place: tuple[int, int]) -> None:
    """Draw one card with its upper left corner at a place (top, left)."""
    top, left = place
    for number, line in enumerate(wrapped(card.heading, shape.width)):
        canvas.text(line, top + number * CARD_LINE, left, SMALL)
    top += shape.heading * CARD_LINE + 2
    canvas.tile(block(card.pictures, shape.columns), top, left, shape.scale)
    top += shape.picture + 4
    lines = [part for line in card.lines for part in wrapped(line, shape.width)]
    for number, line in enumerate(lines):
        canvas.text(line, top + number * CARD_LINE, left, SMALL, FAINT)
