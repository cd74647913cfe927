"""The toolbox's screen for one image and unit: pure functions from arrays to a canvas.

Yosinski et al. 2015, Fig. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter

from cnnvis_cli.arrays import Floats, Pixels
from cnnvis_cli.figure.activations import fitted
from cnnvis_cli.figure.canvas import FAINT, INK, Canvas, scaled, shortened, text_size
from cnnvis_cli.figure.grid import Grid, Scale, grid_of, in_colour
from cnnvis_cli.figure.heat import capped, in_grey
from cnnvis_cli.figure.lines import INKS
from cnnvis_cli.figure.sheets import LINE, MARGIN, SMALL, Caption, Pane, begun, scale_to
from cnnvis_cli.figure.tone import toned
from cnnvis_cli.figure.words import percent

SIDE, GAP = 210, 10  # of a pane, and between panes, in pixels
ACROSS = 4  # panes per row
MARK = INKS[1]
NORM_BLUR = 4.0  # pixels of deviation: the toolbox's caffevis_grad_norm_blur_radius
BACK_FILTERS = {
    "raw": "its colours",
    "gray": "the mean of its colours",
    "norm": "the length of its colours, white from the 99th percentile",
    "blur": "the length of its colours, blurred by 4 pixels, white from the 99th percentile",
}


def back_filtered(values: Floats, how: str, tone: str) -> Pixels:
    """Return a projection (h, w, 3) by one of the `BACK_FILTERS`, signed ones in a tone."""
    if how in ("raw", "gray"):
        grey = np.repeat(values.mean(axis=2, keepdims=True), 3, axis=2)
        found: Pixels = toned((values if how == "raw" else grey)[None, None], tone)[0, 0]
        return found
    length = np.sqrt(np.square(values.astype(np.float32)).sum(axis=2))
    if how == "blur":
        length = gaussian_filter(length, NORM_BLUR)
    return in_grey(capped(length))


def boosted(maps: Floats, gamma: float) -> Floats:
    """Return maps with |x| to the power of gamma, which below 1 shows weak activations."""
    found: Floats = (np.sign(maps) * np.abs(maps) ** np.float32(gamma)).astype(np.float32)
    return maps if gamma == 1 else found


@dataclass(frozen=True)
class ScreenContent:
    """What the screen shows: an image and its classes, a layer's maps (C, h, w), one unit."""

    image: Pixels  # (h, w, 3), as the network sees it
    classes: tuple[tuple[str, float], ...]  # name and probability, the highest first
    layer: str
    maps: Floats
    scale: Scale  # of the maps
    unit: int
    strongest: float  # its largest value
    back: Pixels  # the way back from the unit, in its filter
    back_title: str
    panes: tuple[Pane, ...]  # optimized images, strongest images, their projections


def screen_sheet(look: ScreenContent, caption: Caption, scale: float = 1) -> Canvas:
    """Return the screen: the layer's sheet, with the unit marked, between image and map."""
    side = scaled(SIDE, scale)
    if caption.room:
        side = (caption.room + GAP) // ACROSS - GAP
    below = [replace(pane, title=_short_title(pane.title, side)) for pane in look.panes]
    pitch = LINE + side + GAP
    lower = [_across(pane, side) for pane in below]
    tall = max([0, *(height for height, _ in lower)])
    height = 2 * pitch + (-(-len(below) // ACROSS) * (LINE + tall + GAP)) - GAP
    canvas, top = begun(caption, ACROSS * (side + GAP) - GAP, height)
    lefts = [MARGIN + number * (side + GAP) for number in range(ACROSS)]
    _draw_titled(canvas, "input", look.image, (top, lefts[0]), side)
    _draw_titled(canvas, look.back_title, look.back, (top + pitch, lefts[0]), side)
    _sheet(canvas, look, (top, lefts[1]), 2 * side + GAP)
    enlarged = in_colour(look.scale.grey(look.maps[look.unit : look.unit + 1])[0])
    _draw_titled(canvas, f"unit {look.unit}", enlarged, (top, lefts[3]), side)
    if look.classes:
        _write_classes(canvas, look.classes, (top + pitch, lefts[3]), side)
    begin = top + 2 * pitch
    for number, pane in enumerate(below):
        row, column = divmod(number, ACROSS)
        place = (begin + row * (LINE + tall + GAP), lefts[column])
        pane.draw(canvas, *place, lower[number][1])
    return canvas


def _short_title(title: str, side: int) -> str:
    """Return a title in so much room, first without the word that all styles share."""
    fits = text_size(title, SMALL)[0] <= side
    return title if fits else shortened(title.removeprefix("style "), SMALL, side)


def _across(pane: Pane, side: int) -> tuple[int, float]:
    """Return the height without its title and the scale at which a pane is so wide."""
    scale = scale_to(lambda scale: replace(pane, title="").size(scale)[1], side)
    return replace(pane, title="").size(scale)[0], scale


def _draw_titled(
    canvas: Canvas, title: str, pixels: Pixels, place: tuple[int, int], side: int
) -> None:
    """Draw a picture that fills a square below its title, at a place (top, left)."""
    top, left = place
    canvas.text(shortened(title, SMALL, side), top, left, SMALL, INK)
    canvas.tile(pixels, top + LINE, left, side / max(pixels.shape[:2]))


def _sheet(canvas: Canvas, look: ScreenContent, place: tuple[int, int], side: int) -> None:
    """Draw the layer's maps with the unit's framed, as the toolbox does."""
    top, left = place
    title = f"{look.layer}, {len(look.maps)} maps" if look.maps.shape[1] > 1 else look.layer
    canvas.text(shortened(title, SMALL, side), top, left, SMALL, INK)
    grid: Grid = grid_of(look.maps)
    sheet = in_colour(grid.picture(look.scale.grey(look.maps)))
    shown = fitted(sheet, side) if canvas.caption == "" else sheet
    canvas.tile(shown, top + LINE, left, side / max(shown.shape[:2]))
    each = side / max(grid.size)
    row, column = divmod(look.unit, grid.columns)
    y, x = row * grid.pitch[0] * each, column * grid.pitch[1] * each
    height, width = (max(2, round(length * each)) for length in grid.tile)
    canvas.border(top + LINE + round(y), left + round(x), height, width, MARK, 2)


def _write_classes(
    canvas: Canvas,
    classes: Sequence[tuple[str, float]],
    place: tuple[int, int],
    width: int,
) -> None:
    """Write the most probable classes with their probabilities."""
    top, left = place
    canvas.text("predicted", top, left, SMALL, INK)
    for number, (name, share) in enumerate(classes, 1):
        y, text = top + number * LINE, percent(share)
        x = left + width - text_size(text, SMALL)[0]
        canvas.text(shortened(name, SMALL, x - left - 6), y, left, SMALL, FAINT)
        canvas.text(text, y, x, SMALL, FAINT)
