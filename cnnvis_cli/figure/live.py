"""A frame beside a layer's activations, as in the toolbox's live view: arrays to pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from cnnvis_cli.figure.canvas import FAINT, INK, Canvas, reduced, shortened, text_size
from cnnvis_cli.figure.film import BRIGHTNESS, brightness
from cnnvis_cli.figure.grid import PAPER, Grey, Grid
from cnnvis_cli.figure.lines import INKS
from cnnvis_cli.figure.words import percent

EDGE = 10  # margin on all sides
SMALL, LARGE = 11, 13  # height of text
BAR = 4  # height of a class's bar
FULL = 0.85  # share of the room that a sheet must fill to be scaled by a whole number
SHARE_WIDTH = 52  # room for a probability
COLUMN = 180  # least width of the texts


class Guess(NamedTuple):
    """A class and its probability."""

    name: str
    share: float


@dataclass(frozen=True)
class Screen:
    """The layout of one layer's video: its name, its tiles, the frame's size, its own height."""

    title: str
    grid: Grid
    frame: tuple[int, int]
    height: int

    @property
    def sheet(self) -> float:
        """The scale of the tiles; a whole number if that fills the room."""
        room, size = self.height - 2 * EDGE, max(self.grid.size)
        whole = room // size
        return whole if whole * size > FULL * room else room / size

    @property
    def picture(self) -> float:
        """The scale of the frame: up to half of the height."""
        return _fitting(self.height // 2, self.frame[0])

    @property
    def column(self) -> int:
        """The width of the frame and the texts under it."""
        return max(COLUMN, round(self.frame[1] * self.picture))

    def shown(
        self, frame: Grey, tiles: Grey, guesses: Sequence[Guess], notes: Sequence[str]
    ) -> Shot:
        """Return one frame of the video, from the network's input and toned channels (C, h, w)."""
        return Shot(self._left(frame, guesses, notes), self._right(tiles))

    def _left(self, frame: Grey, guesses: Sequence[Guess], notes: Sequence[str]) -> Grey:
        """Return the frame with its texts: (height, w, 3)."""
        canvas = Canvas(self.height, _even(self.column + 2 * EDGE))
        canvas.tile(frame, EDGE, EDGE, self.picture)
        top = EDGE + round(self.frame[0] * self.picture) + 8
        canvas.text(_shortened_once(self.title, SMALL, self.column), top, EDGE, SMALL, INK)
        for line in notes:
            top += SMALL + 4
            _words(canvas, line, (top, EDGE), self.column)
        _draw_guesses(canvas, guesses, (top + SMALL + 12, EDGE), self.column)
        return canvas.pixels

    def _right(self, tiles: Grey) -> Grey:
        """Return the sheet, vertically centred, as brightness: (height, w)."""
        times = math.ceil(self.sheet)
        small = brightness(self.grid.picture(tiles))  # before it is enlarged: a quarter of the work
        sheet = small.repeat(times, axis=0).repeat(times, axis=1)
        if times != self.sheet:
            sheet = reduced(sheet, self.sheet / times)
        height, width = sheet.shape
        right = np.full((self.height, _even(width + EDGE)), BRIGHTNESS[PAPER], np.uint8)
        top = (self.height - height) // 2
        right[top : top + height, :width] = sheet
        return right


class Shot(NamedTuple):
    """One frame of the video: the coloured part at the left, (h, w, 3), and the grey rest, (h, w).

    Grey is drawn and encoded at a third of the cost.
    """

    left: Grey
    right: Grey


@lru_cache(maxsize=4096)
def _shortened_once(text: str, size: int, width: int) -> str:
    """Return a text cut to a width; cached, since all frames have the same few."""
    return shortened(text, size, width)


def _words(canvas: Canvas, line: str, place: tuple[int, int], width: int) -> None:
    """Return a line that changes between frames, word by word: most words stay and are cached."""
    top, left = place
    end = left + width
    for word in line.split():
        length = text_size(word, SMALL)[0]
        if left + length > end:
            return
        canvas.text(word, top, left, SMALL, FAINT)
        left += length + BLANK


BLANK = 3  # pixels between words


def _even(length: int) -> int:
    """Return an even length, as videos need."""
    return length + length % 2


def _fitting(room: int, size: int) -> float:
    """Return the largest whole factor at which so many pixels fit, or a fraction below 1."""
    return room // size if size <= room else room / size


def _draw_guesses(
    canvas: Canvas, guesses: Sequence[Guess], place: tuple[int, int], width: int
) -> None:
    """Return the classes' names and probabilities, each with a bar."""
    top, left = place
    for number, guess in enumerate(guesses):
        ink = INK if number == 0 else FAINT
        y = top + number * (LARGE + BAR + 7)
        if y + LARGE + BAR > canvas.height:
            return
        canvas.text(percent(guess.share), y, left, LARGE, ink)
        name = _shortened_once(guess.name, LARGE, width - SHARE_WIDTH)
        canvas.text(name, y, left + SHARE_WIDTH, LARGE, ink)
        length = max(1, round(width * min(guess.share, 1)))
        middle = y + LARGE + 3 + BAR // 2
        canvas.line([(left, middle), (left + length - 1, middle)], INKS[0], BAR - 1)
