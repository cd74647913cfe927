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
from cnnvis_cli.figure.sheets import LINE, MARGIN, SMALL, Caption, Pane, begun, scale_to
from cnnvis_cli.figure.words import percent

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
    """Return five panels, (a) to (e), each above its explanation: in a row, or as fit a column."""
    grid = _PanelGrid.of(panels, caption.room, scale)
    canvas, top = begun(caption, grid.width, grid.height)
    for number, (title, picture) in enumerate(_titled_pictures(panels)):
        y, left = top + grid.tops[number], MARGIN + grid.lefts[number]
        words = shortened(f"({'abcde'[number]}) {title}", SMALL, grid.room)
        canvas.text(words, y, left, SMALL, INK)
        canvas.tile(picture, y + LINE, left, grid.scale)
    place = [(top + grid.tops[n] + grid.lower, MARGIN + grid.lefts[n]) for n in range(PANELS)]
    _square(canvas, panels, place[0], grid)
    _draw_colour_bar(canvas, panels.total, place[1], grid.picture)
    _draw_panes(canvas, panels.top, place[2], grid.zoom)
    _draw_colour_bar(canvas, panels.probability, place[3], grid.picture)
    _draw_classes(canvas, panels.legend, place[4], grid.room)
    return canvas


PANELS = 5
LEAST_PANEL = 140  # least width of a panel in a column of a paper


@dataclass(frozen=True)
class _PanelGrid:
    """The places of the panels on the sheet, in pixels from the corner below the caption."""

    scale: float  # of the panels' pictures
    zoom: float  # of the strongest images
    picture: int  # width of a panel's picture
    room: int  # width of a panel
    lower: int  # from the top of a panel to the explanation below its picture
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    width: int
    height: int

    @classmethod
    def of(cls, panels: Panels, column: int, scale: float) -> _PanelGrid:
        """Return the places in one row, or as many per row as fit in a column of this width."""
        across, tall = PANELS, panels.photograph.shape[0]
        if column:
            across = min(PANELS, (column + PANEL_GAP) // (LEAST_PANEL + PANEL_GAP))
            scale = ((column + PANEL_GAP) // across - PANEL_GAP) / panels.photograph.shape[1]
        picture = scaled(panels.photograph.shape[1], scale)
        room = picture if column else max(picture, TEXT_WIDTH)
        zoom = _fitting_zoom(panels.top, room) if column else _tile_zoom(panels.top, picture)
        middle = max(room, _panes_width(panels.top, zoom))
        lower = LINE + 6 + scaled(tall, scale) + 6
        below = [
            len(panels.said) * LINE + 4 + scaled(panels.square.shape[0], scale),
            3 * LINE,
            max((pane.size(zoom)[0] for pane in panels.top), default=0),
            3 * LINE,
            len(panels.legend) * LINE,
        ]
        tops, lefts, top, left = list[int](), list[int](), 0, 0
        for number in range(PANELS):
            if number and number % across == 0:
                top += lower + max(below[number - across : number]) + PANEL_GAP
                left = 0
            tops.append(top)
            lefts.append(left)
            left += (middle if number == 2 else room) + PANEL_GAP
        height = top + lower + max(below[PANELS - (PANELS % across or across) :])
        width = column or middle + 4 * (room + PANEL_GAP)
        return cls(scale, zoom, picture, room, lower, tuple(tops), tuple(lefts), width, height)


def _titled_pictures(panels: Panels) -> list[tuple[str, Pixels]]:
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


def _square(canvas: Canvas, panels: Panels, place: tuple[int, int], grid: _PanelGrid) -> None:
    """Draw the texts on the image, and the square at the image's scale."""
    top, left = place
    for line in panels.said:
        canvas.text(shortened(line, SMALL, grid.room), top, left, SMALL, FAINT)
        top += LINE
    canvas.tile(panels.square, top + 4, left, grid.scale)


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


def _panes_width(top: Sequence[Pane], zoom: float) -> int:
    """Return the width of the strongest images, side by side."""
    return sum(pane.size(zoom)[1] + PANEL_GAP for pane in top) - PANEL_GAP if top else 0


def _fitting_zoom(top: Sequence[Pane], room: int) -> float:
    """Return the scale at which the strongest images fill a width."""
    return scale_to(lambda zoom: _panes_width(top, zoom), room) if top else 1.0


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
        share = percent(each.share)
        right = left + width - text_size(share, SMALL)[0]
        name = shortened(each.name, SMALL, right - left - LEGEND - 12)
        canvas.text(name, top, left + LEGEND + 6, SMALL, FAINT)
        canvas.text(share, top, right, SMALL, FAINT)
        top += LINE
