"""An image with the maps of several methods: pure functions from arrays to a canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.figure.canvas import FAINT, INK, WHITE, Canvas, scaled, shortened, text_size
from cnnvis_cli.figure.heat import colour_bar
from cnnvis_cli.figure.lines import INKS
from cnnvis_cli.figure.sheets import LINE, MARGIN, SMALL, Caption, begun
from cnnvis_cli.figure.words import percent
from cnnvis_cli.nouns import Box

COLUMN_GAP = 8  # pixels between columns
LEGEND_WIDTH = 132  # least width in pixels of a line of text
BAR, PITCH = 3, 22  # of a class: its bar's height, and the distance in pixels to the next
FILLED, EMPTY = INKS[0], (228, 228, 228)
LEAST_COLUMN = 110  # least width of a column of pictures in a column of a paper
COLOUR_BAR = 10  # height of the colour bar


@dataclass(frozen=True)
class MethodPicture:
    """One method's map alone, and over the photograph: (h, w, 3) each."""

    title: str
    raw: Pixels
    over: Pixels


@dataclass(frozen=True)
class Subject:
    """The image as the network sees it, its predicted classes, and the unit's field in it."""

    photograph: Pixels  # (h, w, 3)
    guesses: tuple[tuple[str, float], ...]  # class and probability, the highest first
    seen: Box | None = None


def saliency_sheet(
    subject: Subject, columns: Sequence[MethodPicture], caption: Caption, scale: float = 1
) -> Canvas:
    """Return the image in the first column, then one column per method, map above overlay."""
    across = len(columns) + 1
    if caption.room:
        across = min(across, (caption.room + COLUMN_GAP) // (LEAST_COLUMN + COLUMN_GAP))
        pitch = (caption.room + COLUMN_GAP) // across
        scale = (pitch - COLUMN_GAP) / subject.photograph.shape[1]
    height, width = (scaled(side, scale) for side in subject.photograph.shape[:2])
    if not caption.room:
        pitch = max(width, LEGEND_WIDTH) + COLUMN_GAP
    below = max(height, _text_height(subject))
    down = 2 * LINE + height + 2 * COLUMN_GAP + below
    rows = -(-(len(columns) + 1) // across)
    canvas, top = begun(caption, across * pitch - COLUMN_GAP, rows * down - COLUMN_GAP)
    lower = LINE + height + COLUMN_GAP
    _subject(canvas, subject, (top, MARGIN), scale)
    _draw_predicted(canvas, subject, (top + lower, MARGIN), pitch - COLUMN_GAP)
    for number, column in enumerate(columns, 1):
        y, left = top + number // across * down, MARGIN + number % across * pitch
        title = shortened(column.title, SMALL, pitch - COLUMN_GAP)
        _pane(canvas, title, column.raw, (y, left), scale)
        _pane(canvas, "over the image", column.over, (y + lower, left), scale)
    return canvas


def _pane(canvas: Canvas, title: str, pixels: Pixels, place: tuple[int, int], scale: float) -> None:
    """Draw a picture under its title, at a place (top, left)."""
    canvas.text(title, *place, SMALL, INK)
    canvas.tile(pixels, place[0] + LINE, place[1], scale)


def _subject(canvas: Canvas, subject: Subject, place: tuple[int, int], scale: float) -> None:
    """Draw the photograph, with the unit's field framed."""
    title = "what the unit sees" if subject.seen else "image"
    _pane(canvas, title, subject.photograph, place, scale)
    if subject.seen is None:
        return
    top, left, bottom, right = (round(edge * scale) for edge in subject.seen)
    y, x = place[0] + LINE, place[1]
    corners = ((left, top), (right - 1, top), (right - 1, bottom - 1), (left, bottom - 1))
    points = [(x + a, y + b) for a, b in (*corners, corners[0])]
    canvas.line(points, WHITE, 3)
    canvas.line(points, INK, 1)


def _text_height(subject: Subject) -> int:
    """Return the height in pixels of the classes and the legend."""
    return len(subject.guesses) * PITCH + 2 * LINE + COLOUR_BAR


def _draw_predicted(canvas: Canvas, subject: Subject, place: tuple[int, int], width: int) -> None:
    """Draw the classes with their probabilities, and the legend of the colours, at a place."""
    top, left = place
    if subject.guesses:
        canvas.text("predicted", top, left, SMALL, INK)
        top += LINE
    for name, probability in subject.guesses:
        share = percent(probability)
        room = width - text_size(share, SMALL)[0]
        canvas.text(shortened(name, SMALL, room - COLUMN_GAP), top, left, SMALL, FAINT)
        canvas.text(share, top, left + room, SMALL, FAINT)
        filled = round(width * probability)
        _draw_bar(canvas, (top + LINE, left), filled, FILLED)
        _draw_bar(canvas, (top + LINE, left + filled), width - filled, EMPTY)
        top += PITCH
    top += COLUMN_GAP
    canvas.tile(colour_bar(COLOUR_BAR, width), top, left)
    canvas.text("0", top + COLOUR_BAR + 2, left, SMALL, FAINT)
    canvas.text("strongest", top + COLOUR_BAR + 2, _right("strongest", left, width), SMALL, FAINT)


def _right(text: str, left: int, width: int) -> int:
    """Return where a right-aligned text begins."""
    return left + width - text_size(text, SMALL)[0]


def _draw_bar(
    canvas: Canvas, place: tuple[int, int], width: int, ink: tuple[int, int, int]
) -> None:
    if width:
        canvas.tile(np.full((BAR, width, 3), ink, np.uint8), *place)
