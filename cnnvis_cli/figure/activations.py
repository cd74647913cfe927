"""Figures of one image's activations: pure functions from arrays to a canvas."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Floats
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.canvas import (
    FAINT,
    INK,
    WHITE,
    Canvas,
    reduced,
    scaled,
    shortened,
    text_size,
)
from cnnvis_cli.figure.grid import Grey, Grid, in_colour
from cnnvis_cli.figure.lines import GUTTER, INKS, RULE, round_numbers
from cnnvis_cli.figure.sheets import LINE, MARGIN, PAGE, SHEET_GAP, SMALL, TITLE, room_of, wrapped
from cnnvis_cli.figure.words import percent
from cnnvis_cli.nouns import Column

SIDE, SMALLER = 860, 640  # largest size of an enlarged sheet in pixels, alone and beside others
LEAST_SHEET = 70  # least width of a sheet in a column of a paper
PICTURE = 150  # side of an image above its sheet
CAPTION_WIDTH = 560  # least width of captions
CLASS_TEXT = 13  # height of the classes' text
STRONG = INKS[1]


@dataclass(frozen=True)
class Heading:
    """The heading: what is shown, the predicted classes, and how to read it."""

    title: str
    classes: tuple[str, ...]  # one line each
    note: str
    column: Column | None = None  # of a paper, in which the heading is not on the sheet

    @property
    def room(self) -> int:
        """The width of the column in pixels of the sheet; 0 where there is none."""
        return room_of(self.column)


def headed(heading: Heading, width: int, height: int) -> tuple[Canvas, int]:
    """Return a sheet with `height` x `width` pixels under a heading, and where these begin."""
    if heading.room:
        canvas = Canvas(height + 2 * MARGIN, width + 2 * MARGIN)
        said = (heading.title, *heading.classes, heading.note)
        canvas.caption = " ".join(f"{line.rstrip('.')}." for line in said if line)
        return canvas, MARGIN
    title, _ = text_size(heading.title, TITLE)
    room = max(width, title, CAPTION_WIDTH)
    notes = wrapped(heading.note, room)
    head = MARGIN + TITLE + 6
    lines = [(shortened(line, CLASS_TEXT, room), CLASS_TEXT, INK) for line in heading.classes]
    lines += [(line, SMALL, FAINT) for line in notes]
    tall = sum(size + 4 for _, size, _ in lines)
    canvas = Canvas(head + tall + 10 + height + MARGIN, room + 2 * MARGIN)
    canvas.text(heading.title, MARGIN, MARGIN, TITLE, INK)
    for line, size, ink in lines:
        canvas.text(line, head, MARGIN, size, ink)
        head += size + 4
    return canvas, head + 10


@dataclass(frozen=True)
class Panel:
    """One image's tiles (C, h, w), already toned; beside others, under its name and picture."""

    tiles: Grey
    name: str
    picture: Grey


def fitting_scale(size: tuple[int, int], count: int = 1) -> int:
    """Return the largest whole number that enlarges sheets of this size to a convenient size."""
    return max(1, (SIDE if count == 1 else SMALLER) // max(size))


def sheets(panels: Sequence[Panel], heading: Heading, scale: float) -> Canvas:
    """Return square sheets of the same channels side by side, numbered row by row."""
    tiles = panels[0].tiles
    grid = Grid(len(tiles), (tiles.shape[1], tiles.shape[2]))
    gutter = text_size(str(grid.count - 1), SMALL)[0] + 8
    if heading.room:
        own = (heading.room + SHEET_GAP) // len(panels) - SHEET_GAP - gutter
        if own < LEAST_SHEET:
            raise UsageError(
                f"{len(panels)} images side by side do not fit in the column; give --columns 2, a "
                "larger --width, or fewer images"
            )
        scale = own / grid.size[1]
    height, width = (scaled(side, scale) for side in grid.size)
    names = LINE + PICTURE + 12 if len(panels) > 1 else 0
    top_rule = SMALL + 5
    whole = len(panels) * (gutter + width + SHEET_GAP) - SHEET_GAP
    canvas, top = headed(heading, whole, names + top_rule + height)
    for number, panel in enumerate(panels):
        left = MARGIN + number * (gutter + width + SHEET_GAP) + gutter
        if len(panels) > 1:
            canvas.text(shortened(panel.name, SMALL, width), top, left, SMALL, INK)
            side = min(PICTURE, width) if heading.room else PICTURE
            canvas.tile(fitted(panel.picture, side), top + LINE, left)
        y = top + names + top_rule
        canvas.tile(in_colour(grid.picture(panel.tiles)), y, left, scale)
        _draw_numbers(canvas, grid, scale, (y, left))
    return canvas


def _draw_numbers(canvas: Canvas, grid: Grid, scale: float, place: tuple[int, int]) -> None:
    """Write the first channel of each row beside it, and each column's offset above it."""
    (top, left), (down, across) = place, (side * scale for side in grid.pitch)
    height, width = (side * scale for side in grid.tile)
    each = max(1, math.ceil((SMALL + 3) / down))
    for row in range(0, grid.rows, each):
        text = str(row * grid.columns)
        y = top + row * down + (height - SMALL) / 2 - 1
        canvas.text(text, round(y), left - 6 - text_size(text, SMALL)[0], SMALL, FAINT)
    last = f"+{grid.columns - 1}"
    each = max(1, math.ceil((text_size(last, SMALL)[0] + 5) / across))
    for column in range(0, grid.columns, each):
        text = f"+{column}"
        x = left + column * across + (width - text_size(text, SMALL)[0]) / 2
        x = min(x, left + grid.size[1] * scale - text_size(text, SMALL)[0])  # within the sheet
        canvas.text(text, top - SMALL - 5, round(x), SMALL, FAINT)


# ---- one value per channel

BARS, FOOT = 190, SMALL + 8  # height of a plot, and of the numbers under it
WIDE = 780  # width of a plot; a bar takes at least a pixel
SMALL_LIST = 140  # in a column of a paper
LIST = 250  # width of the list of the strongest channels


@dataclass(frozen=True)
class Values:
    """One value per channel (C,), under a name; the strongest have labels, strongest first."""

    name: str
    values: Floats
    strongest: tuple[tuple[int, str], ...]
    shares: bool = False  # whether values are probabilities


def bars(plots: Sequence[Values], heading: Heading, scale: float = 1) -> Canvas:
    """Return bars by channel number, all plots on one value axis, the strongest of each named."""
    height, width = scaled(BARS, scale), scaled(WIDE, scale)
    names = LIST
    if heading.room:
        names = SMALL_LIST
        height, width = BARS, heading.room - GUTTER - 16 - names
    low = min(0.0, *(float(plot.values.min()) for plot in plots))
    ticks = round_numbers(low, max(0.0, *(float(plot.values.max()) for plot in plots)))
    pitch = LINE + height + FOOT + 10
    canvas, top = headed(heading, GUTTER + width + 16 + names, len(plots) * pitch)
    for number, plot in enumerate(plots):
        y = top + number * pitch
        axis = text_size("value", SMALL)[0]
        name = shortened(plot.name, SMALL, width - axis - 6)
        canvas.text(name, y, MARGIN + GUTTER, SMALL, INK)
        canvas.text("value", y, MARGIN + GUTTER + width - axis, SMALL, FAINT)
        box = (y + LINE, MARGIN + GUTTER, height, width)
        _bars(canvas, plot, ticks, box)
        _list_strongest(canvas, plot, (y + LINE, MARGIN + GUTTER + width + 16), names)
    return canvas


def _bars(canvas: Canvas, plot: Values, ticks: list[float], box: tuple[int, int, int, int]) -> None:
    top, left, height, width = box
    low, span, count = ticks[0], ticks[-1] - ticks[0], len(plot.values)

    def up(value: float) -> float:
        return (height - 1) * (1 - (value - low) / (span or 1))

    def across(channel: float) -> float:
        return (channel + 0.5) * width / count

    frame = canvas.frame(top, left, height, width)
    for tick in ticks:
        frame.line([(0, up(tick)), (width - 1, up(tick))], RULE)
        text = f"{tick:g}"
        y = round(top + up(tick) - SMALL / 2 - 1)
        canvas.text(text, y, left - 6 - text_size(text, SMALL)[0], SMALL, FAINT)
    wide = max(1.0, 0.8 * width / count)
    for channel, value in enumerate(plot.values.tolist()):
        frame.line([(across(channel), up(0)), (across(channel), up(value))], INKS[0], wide)
    for channel, _ in plot.strongest:
        value = float(plot.values[channel])
        frame.line([(across(channel), up(0)), (across(channel), up(value))], STRONG, wide + 0.5)
    for channel in dict.fromkeys((0, count - 1)):
        x = left + across(channel) - text_size(str(channel), SMALL)[0] / 2
        canvas.text(str(channel), top + height + 3, round(x), SMALL, FAINT)
    x = left + (width - text_size("channel", SMALL)[0]) / 2
    if count > 1:
        canvas.text("channel", top + height + 3, round(x), SMALL, FAINT)


def _list_strongest(canvas: Canvas, plot: Values, place: tuple[int, int], width: int) -> None:
    """List the strongest channels with their values."""
    top, left = place
    canvas.text("value", top - LINE, left + 44 - text_size("value", SMALL)[0], SMALL, FAINT)
    canvas.text("channel", top - LINE, left + 52, SMALL, FAINT)
    largest = float(plot.values[plot.strongest[0][0]])
    decimals = int(np.clip(3 - math.floor(math.log10(abs(largest) or 1)), 0, 4))
    for number, (channel, label) in enumerate(plot.strongest):
        value = float(plot.values[channel])
        text = percent(value) if plot.shares else f"{value:.{decimals}f}"
        y = top + number * LINE
        canvas.text(text, y, left + 44 - text_size(text, SMALL)[0], SMALL, STRONG)
        canvas.text(shortened(label, SMALL, width - 52), y, left + 52, SMALL, INK)


def small_bars(values: Floats, side: int) -> Grey:
    """Return values (C,) as bars in a square picture for an overview: (side, side, 3)."""
    low, high = min(0.0, float(values.min())), max(0.0, float(values.max()))
    span = (high - low) or 1.0
    edges = np.arange(side) * len(values) // side
    tops = np.maximum.reduceat(values, edges)
    bottoms = np.minimum.reduceat(values, edges)
    rows = high - (np.arange(side)[:, None] + 0.5) / side * span  # the value of each row of pixels
    inked = ((rows <= tops) & (rows >= 0)) | ((rows >= bottoms) & (rows < 0))
    return np.where(inked[..., None], np.array(INKS[0], np.uint8), np.uint8(245))


# ---- all layers


@dataclass(frozen=True)
class Stop:
    """A layer in the overview: its name, its size, and its picture (h, w, 3)."""

    name: str
    detail: str
    picture: Grey


STOP = (96, 200)  # range of a picture's side
STOP_GAP = 18  # pixels between pictures


def stop_side(count: int) -> int:
    """Return the side at which this number of pictures fits on one page."""
    return int(np.clip(math.sqrt(0.6 * PAGE / max(count, 1)), *STOP))


def fitted(picture: Grey, side: int) -> Grey:
    """Return a picture (h, w, 3) that fills a square, enlarged or averaged."""
    times = -(-side // max(picture.shape[:2]))
    large = picture.repeat(times, axis=0).repeat(times, axis=1)
    return reduced(large, side / max(large.shape[:2]))


def walk(stops: Sequence[Stop], heading: Heading) -> Canvas:
    """Return all layers as small pictures in the order of the forward pass."""
    side = stop_side(len(stops))
    across, down = side + STOP_GAP, side + 2 * LINE + 14
    columns = max(1, round(math.sqrt(len(stops) * 1.4 * down / across)))
    if heading.room:
        columns = max(1, (heading.room + STOP_GAP) // (STOP[0] + STOP_GAP))
        side = (heading.room + STOP_GAP) // columns - STOP_GAP
        across, down = side + STOP_GAP, side + 2 * LINE + 14
    rows = -(-len(stops) // columns)
    canvas, top = headed(heading, min(columns, len(stops)) * across - STOP_GAP, rows * down)
    for number, stop in enumerate(stops):
        row, column = divmod(number, columns)
        y, x = top + row * down, MARGIN + column * across
        canvas.text(path_end(stop.name, side), y, x, SMALL, INK)
        details = (stop.detail, stop.detail.partition(", ")[2])  # without the kind, if that helps
        detail = next((d for d in details if text_size(d, SMALL)[0] <= side), stop.detail)
        canvas.text(shortened(detail, SMALL, side), y + LINE - 2, x, SMALL, FAINT)
        canvas.tile(fitted(stop.picture, side), y + 2 * LINE, x)
    return canvas


def path_end(name: str, width: int) -> str:
    """Return a module's path in so many pixels, without its first parts where it has no room."""
    ends = [f"...{name[found.end() :]}" for found in re.finditer(r"[._]", name)]
    fitting = (text for text in (name, *ends) if text_size(text, SMALL)[0] <= width)
    return next(fitting, "") or shortened(name, SMALL, width)


# ---- one channel over the image


@dataclass(frozen=True)
class OverImage:
    """An image (H, W, 3) with a channel laid over it (H, W), smooth and as squares.

    `grey` is the tone of the squares; `box` is the field of the strongest place: left, top, width,
    height.
    """

    name: str
    image: Grey
    smooth: Floats
    grey: Grey
    box: tuple[int, int, int, int] | None


INACTIVE_BRIGHTNESS = 0.3  # brightness that the image keeps where the channel is inactive
IMAGE_WIDTH = 420  # approximate width of an image in pixels


def spotlight(image: Grey, values: NDArray[Any], top: float) -> Grey:
    """Return an image as bright as the channel is active, unchanged at `top`."""
    share = np.clip(values / top, 0, 1) if top > 0 else np.zeros_like(values)
    lit = image * (INACTIVE_BRIGHTNESS + (1 - INACTIVE_BRIGHTNESS) * share)[..., None]
    return np.rint(lit).astype(np.uint8)


def over_images(rows: Sequence[OverImage], heading: Heading, scale: float, top: float) -> Canvas:
    """Return each image, the channel's map over it, and the image lit by it, fully at `top`."""
    if heading.room:
        scale = ((heading.room + 12) // 3 - 12) / rows[0].image.shape[1]
    height, width = (scaled(side, scale) for side in rows[0].image.shape[:2])
    pitch = height + LINE + 12
    canvas, begin = headed(heading, 3 * (width + 12) - 12, len(rows) * pitch)
    for number, row in enumerate(rows):
        y = begin + number * pitch + LINE
        panes = (row.image, in_colour(row.grey), spotlight(row.image, row.smooth, top))
        names = (row.name, "the channel's map", "where it is active")
        for place, (pane, name) in enumerate(zip(panes, names, strict=True)):
            x = MARGIN + place * (width + 12)
            canvas.text(shortened(name, SMALL, width), y - LINE, x, SMALL, INK)
            canvas.tile(pane, y, x, scale)
        _frame_field(canvas, row.box, scale, (y, MARGIN))
    return canvas


def _frame_field(
    canvas: Canvas, box: tuple[int, int, int, int] | None, scale: float, corner: tuple[int, int]
) -> None:
    """Frame the field of the strongest place, visible on any colour: orange on a white edge."""
    if box is None:
        return
    left, top, width, height = (round(n * scale) for n in box)
    y, x = corner[0] + top, corner[1] + left
    right, bottom = x + width - 1, y + height - 1
    for ink, wide in ((WHITE, 4), (STRONG, 2)):
        canvas.line([(x, y), (right, y), (right, bottom), (x, bottom), (x, y)], ink, wide)
