"""The five panels of an occlusion: pure functions from arrays to a canvas."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Floats, Pixels
from cnnvis_cli.figure.canvas import FAINT, INK, Canvas, Ink, scaled, shortened, text_size
from cnnvis_cli.figure.heat import colour_bar, coloured, over_range
from cnnvis_cli.figure.sheets import LINE, MARGIN, SMALL, Caption, Pane, begun

Classes = NDArray[np.integer[Any]]

# The colours of M. Okabe and K. Ito 2008, distinct for the colour-blind too, with a lighter
# violet instead of their black. The first is that of the whole image's class.
CLASS_INKS: tuple[Ink, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (213, 94, 0),
    (240, 228, 66),
    (170, 150, 230),
)
OTHER: Ink = (205, 205, 205)
PANEL_GAP = 14  # pixels between panels
LEGEND = 10  # height of a colour bar, side of a swatch
TEXT_WIDTH = 224  # least width in pixels of a panel's texts


@dataclass(frozen=True)
class ClassShare:
    """A class in panel (e): its colour, and its share of the positions."""

    name: str
    ink: Ink
    share: float


@dataclass(frozen=True)
class Heat:
    """Non-negative values (rows, columns), that of the whole image, and where colours begin."""

    title: str
    values: Floats
    whole: float
    form: Callable[[float], str]
    zero: bool = False  # colours begin at 0, not at the lowest value

    @property
    def low(self) -> float:
        """The value of the first colour."""
        return 0.0 if self.zero else float(self.values.min())


@dataclass(frozen=True)
class Panels:
    """The content of the five panels; `rows` (h,) and `columns` (w,) are the nearest square's."""

    photograph: Pixels  # (h, w, 3)
    square: Pixels  # (size, size, 3), as the network sees it
    said: tuple[str, ...]  # texts on the whole image and on the square
    total: Heat
    projection: Pixels  # (h, w, 3)
    projected: str
    top: tuple[Pane, ...]  # projections and patches of the strongest images
    probability: Heat
    predicted: Classes  # (rows, columns)
    inks: Mapping[int, Ink]
    legend: tuple[ClassShare, ...]
    rows: Classes
    columns: Classes


def inks_of(predicted: Classes, whole: int) -> dict[int, Ink]:
    """Return a colour per class: the whole image's own first, then the most frequent ones."""
    classes, counts = np.unique(predicted, return_counts=True)
    order = classes[np.lexsort((classes, -counts))].tolist()
    ranked = [whole, *(label for label in order if label != whole)]
    colours = dict(zip(ranked, CLASS_INKS, strict=False))
    return {label: colours.get(label, OTHER) for label in ranked}


def legend_of(
    predicted: Classes, inks: Mapping[int, Ink], name: Callable[[int], str]
) -> tuple[ClassShare, ...]:
    """Return the classes by their share of the positions; those without a colour as one entry."""
    shares = {label: float((predicted == label).mean()) for label in inks}
    named = [ClassShare(name(i), ink, shares[i]) for i, ink in inks.items() if ink != OTHER]
    found = sorted((each for each in named if each.share), key=lambda each: -each.share)
    others = [shares[label] for label, ink in inks.items() if ink == OTHER]
    if others:
        found.append(ClassShare(f"{len(others)} other classes", OTHER, sum(others)))
    return tuple(found)


def occlusion_sheet(panels: Panels, caption: Caption, scale: float = 1) -> Canvas:
    """Return five panels in a row, (a) to (e), each above its explanation."""
    height, width = (scaled(side, scale) for side in panels.photograph.shape[:2])
    zoom = _tile_zoom(panels.top, width)
    blocks = [pane.size(zoom) for pane in panels.top]
    room = max([width, TEXT_WIDTH])
    middle = max(room, sum(across + PANEL_GAP for _, across in blocks) - PANEL_GAP)
    widths = [room, room, middle, room, room]
    below = max(
        [_square_height(panels, scale), 3 * LINE, len(panels.legend) * LINE]
        + [down for down, _ in blocks]
    )
    canvas, top = begun(caption, sum(widths) + 4 * PANEL_GAP, LINE + 6 + height + 6 + below)
    lefts = [MARGIN + sum(widths[:i]) + i * PANEL_GAP for i in range(5)]
    lower = top + LINE + 6 + height + 6
    for letter, left, (title, picture) in zip("abcde", lefts, _pictures(panels), strict=True):
        canvas.text(shortened(f"({letter}) {title}", SMALL, room), top, left, SMALL, INK)
        canvas.tile(picture, top + LINE, left, scale)
    _square(canvas, panels, (lower, lefts[0]), scale)
    _draw_colour_bar(canvas, panels.total, (lower, lefts[1]), width)
    _draw_panes(canvas, panels.top, (lower, lefts[2]), zoom)
    _draw_colour_bar(canvas, panels.probability, (lower, lefts[3]), width)
    _draw_classes(canvas, panels.legend, (lower, lefts[4]), room)
    return canvas


def _pictures(panels: Panels) -> list[tuple[str, Pixels]]:
    """Return the panels' titles and pictures (h, w, 3)."""
    places = np.ix_(panels.rows, panels.columns)
    colours = np.zeros((*panels.predicted.shape, 3), np.uint8)
    for label, ink in panels.inks.items():
        colours[panels.predicted == label] = ink
    heats = [
        coloured(over_range(heat.values, heat.low))[places]
        for heat in (panels.total, panels.probability)
    ]
    return [
        ("input image", panels.photograph),
        (panels.total.title, heats[0]),
        (panels.projected, panels.projection),
        (panels.probability.title, heats[1]),
        ("most probable class", colours[places]),
    ]


def _square_height(panels: Panels, scale: float) -> int:
    return len(panels.said) * LINE + 4 + scaled(panels.square.shape[0], scale)


def _square(canvas: Canvas, panels: Panels, place: tuple[int, int], scale: float) -> None:
    """Draw the texts on the image, and the square at the image's scale."""
    top, left = place
    for line in panels.said:
        canvas.text(shortened(line, SMALL, TEXT_WIDTH), top, left, SMALL, FAINT)
        top += LINE
    canvas.tile(panels.square, top + 4, left, scale)


def _draw_colour_bar(canvas: Canvas, heat: Heat, place: tuple[int, int], width: int) -> None:
    """Draw the colour bar with its values and that of the whole image."""
    top, left = place
    canvas.tile(colour_bar(LEGEND, width), top, left)
    high = heat.form(float(heat.values.max()))
    first = "0" if heat.zero else heat.form(heat.low)
    canvas.text(first, top + LEGEND + 2, left, SMALL, FAINT)
    canvas.text(high, top + LEGEND + 2, left + width - text_size(high, SMALL)[0], SMALL, FAINT)
    text = f"whole image {heat.form(heat.whole)}"
    if heat.zero:
        text = f"lowest {heat.form(float(heat.values.min()))}; {text}"
    canvas.text(text, top + LEGEND + 2 + LINE, left, SMALL, FAINT)


def _tile_zoom(top: Sequence[Pane], width: int) -> float:
    """Return the scale of the strongest images: five fit in the width of a panel."""
    return max(width, TEXT_WIDTH) / 5 / top[0].tiles.shape[2] if top else 1.0


def _draw_panes(canvas: Canvas, top: Sequence[Pane], place: tuple[int, int], zoom: float) -> None:
    left = place[1]
    for pane in top:
        pane.draw(canvas, place[0], left, zoom)
        left += pane.size(zoom)[1] + PANEL_GAP


def _draw_classes(
    canvas: Canvas, legend: Sequence[ClassShare], place: tuple[int, int], width: int
) -> None:
    top, left = place
    for each in legend:
        canvas.tile(np.full((LEGEND, LEGEND, 3), each.ink, np.uint8), top + 2, left)
        share = f"{each.share:.1%}"
        right = left + width - text_size(share, SMALL)[0]
        name = shortened(each.name, SMALL, right - left - LEGEND - 12)
        canvas.text(name, top, left + LEGEND + 6, SMALL, FAINT)
        canvas.text(share, top, right, SMALL, FAINT)
        top += LINE
