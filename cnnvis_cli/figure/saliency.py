"""An image with the maps of several methods: pure functions from arrays to a canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.figure.canvas import FAINT, INK, WHITE, Canvas, scaled, shortened, text_size
from cnnvis_cli.figure.heat import colour_bar
from cnnvis_cli.figure.lines import INKS
from cnnvis_cli.figure.sheets import LINE, MARGIN, SMALL, Caption, begun
from cnnvis_cli.nouns import Box

Pixels = NDArray[np.uint8]
GAP = 8  # pixels between columns
NARROWEST = 132  # pixels of width that a line of text needs
BAR, PITCH = 3, 22  # of a class: its bar's height, and pixels from one to the next
FILLED, EMPTY = INKS[0], (228, 228, 228)
LEAST = 0.001  # probability that is written out
LEGEND = 10  # height of the colour bar


@dataclass(frozen=True)
class Explained:
    """One method's map on its own, and over the photograph: (h, w, 3) each."""

    title: str
    raw: Pixels
    over: Pixels


@dataclass(frozen=True)
class Subject:
    """The image as the network is shown it, what it is taken for, and what the unit sees of it."""

    photograph: Pixels  # (h, w, 3)
    guesses: tuple[tuple[str, float], ...]  # class and probability, the highest first
    seen: Box | None = None


def saliency_sheet(
    subject: Subject, columns: Sequence[Explained], caption: Caption, scale: float = 1
) -> Canvas:
    """The image in the first column, then a column a method, raw above overlay."""
    height, width = (scaled(side, scale) for side in subject.photograph.shape[:2])
    pitch = max(width, NARROWEST) + GAP
    below = max(height, _text_height(subject))
    canvas, top = begun(caption, (len(columns) + 1) * pitch - GAP, 2 * LINE + height + GAP + below)
    lower = top + LINE + height + GAP
    _subject(canvas, subject, (top, MARGIN), scale)
    _guesses(canvas, subject, (lower, MARGIN), pitch - GAP)
    for number, column in enumerate(columns, 1):
        left = MARGIN + number * pitch
        _pane(canvas, column.title, column.raw, (top, left), scale)
        _pane(canvas, "over the image", column.over, (lower, left), scale)
    return canvas


def _pane(canvas: Canvas, title: str, pixels: Pixels, place: tuple[int, int], scale: float) -> None:
    """A picture under its title, at a place (top, left)."""
    canvas.text(title, *place, SMALL, INK)
    canvas.tile(pixels, place[0] + LINE, place[1], scale)


def _subject(canvas: Canvas, subject: Subject, place: tuple[int, int], scale: float) -> None:
    """The photograph, framed where the unit looks."""
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
    """Pixels that the classes and the legend take."""
    return len(subject.guesses) * PITCH + 2 * LINE + LEGEND


def _guesses(canvas: Canvas, subject: Subject, place: tuple[int, int], width: int) -> None:
    """The classes with their probabilities, and what the colours mean, at a place (top, left)."""
    top, left = place
    if subject.guesses:
        canvas.text("taken for", top, left, SMALL, INK)
        top += LINE
    for name, probability in subject.guesses:
        share = f"{probability:.1%}" if probability >= LEAST else f"< {LEAST:.1%}"
        room = width - text_size(share, SMALL)[0]
        canvas.text(shortened(name, SMALL, room - GAP), top, left, SMALL, FAINT)
        canvas.text(share, top, left + room, SMALL, FAINT)
        filled = round(width * probability)
        _bar(canvas, (top + LINE, left), width, EMPTY)
        _bar(canvas, (top + LINE, left), filled, FILLED)
        top += PITCH
    top += GAP
    canvas.tile(colour_bar(LEGEND, width), top, left)
    canvas.text("0", top + LEGEND + 2, left, SMALL, FAINT)
    canvas.text("strongest", top + LEGEND + 2, _right("strongest", left, width), SMALL, FAINT)


def _right(text: str, left: int, width: int) -> int:
    """Where a text begins that ends on the right."""
    return left + width - text_size(text, SMALL)[0]


def _bar(canvas: Canvas, place: tuple[int, int], width: int, ink: tuple[int, int, int]) -> None:
    if width:
        canvas.tile(np.full((BAR, width, 3), ink, np.uint8), *place)
