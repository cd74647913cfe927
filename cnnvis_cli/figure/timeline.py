"""The strongest unit of each layer over time: a pure function from arrays to a canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.figure.activations import Heading, headed
from cnnvis_cli.figure.canvas import FAINT, INK, Canvas, PlotArea, shortened, text_size
from cnnvis_cli.figure.lines import INKS, RULE, round_numbers
from cnnvis_cli.figure.sheets import LINE, MARGIN, SMALL
from cnnvis_cli.figure.words import percent

UNITS, VALUES = 110, 56  # heights of the two plots of a layer
WIDE, GUTTER, LIST = 700, 60, 200
SMALL_LIST, SHARE = 110, 46  # the list's width in a column of a paper; of a share in it
NAMED_UNITS = 6  # units of a layer that are named: those that lead longest
LEADER_RADIUS = 1.6


@dataclass(frozen=True)
class Lead:
    """A layer's strongest unit (T,) and its value (T,) at each of T moments."""

    name: str
    channels: int
    unit: NDArray[np.integer[Any]]
    value: NDArray[np.floating[Any]]
    labels: dict[int, str]  # of units that have a name besides their number


def timeline(seconds: NDArray[np.floating[Any]], leads: Sequence[Lead], heading: Heading) -> Canvas:
    """Return a plot per layer: a dot per moment at the leading unit, and its value as a line."""
    pitch = LINE + UNITS + 10 + VALUES + 22
    list_width = LIST if not heading.room else SMALL_LIST
    wide = WIDE if not heading.room else heading.room - GUTTER - 20 - list_width
    canvas, top = headed(heading, GUTTER + wide + 20 + list_width, len(leads) * pitch + LINE)
    last = max(float(seconds[-1]), 1e-9)
    x = (wide - 1) * seconds / last
    for number, lead in enumerate(leads):
        y = top + number * pitch
        canvas.text(lead.name, y, MARGIN + GUTTER, SMALL, INK)
        _draw_units(canvas, lead, x, (y + LINE, wide, list_width))
        _values(canvas, lead, x, (y + LINE + UNITS + 10, wide))
    bottom = top + len(leads) * pitch - 18
    for at, text in ((0, "0"), (wide, f"{last:.4g} s")):
        left = MARGIN + GUTTER + at - (text_size(text, SMALL)[0] if at else 0)
        canvas.text(text, bottom, left, SMALL, FAINT)
    return canvas


def _draw_units(
    canvas: Canvas, lead: Lead, x: NDArray[np.floating[Any]], box: tuple[int, int, int]
) -> None:
    """Draw the leading units in a frame, and the list of those that lead longest beside it.

    `box` is the top of the frame, its width and the list's.
    """
    top, wide, room = box
    frame = canvas.frame(top, MARGIN + GUTTER, UNITS, wide)
    canvas.text("unit", top - LINE, MARGIN, SMALL, FAINT)
    ticks = (0, lead.channels // 2, lead.channels - 1)

    def up(unit: NDArray[Any] | float) -> Any:
        return (UNITS - 5) * (1 - unit / max(lead.channels - 1, 1)) + 2

    _draw_rules(canvas, frame, {str(tick): up(tick) for tick in ticks}, top)
    units, counts = np.unique(lead.unit, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:NAMED_UNITS]
    inks = {int(units[i]): INKS[n % len(INKS)] for n, i in enumerate(order)}
    for at, unit in zip(x.tolist(), lead.unit.tolist(), strict=True):
        frame.dot(at, up(unit), LEADER_RADIUS, inks.get(unit, FAINT))
    left = MARGIN + GUTTER + wide + 20
    for n, i in enumerate(order):
        unit, share = int(units[i]), counts[i] / len(lead.unit)
        text = f"{unit} {lead.labels.get(unit, '')}".strip()
        y = top + n * LINE
        canvas.text(percent(float(share)), y, left, SMALL, inks[unit])
        canvas.text(shortened(text, SMALL, room - SHARE), y, left + SHARE, SMALL, inks[unit])


def _values(canvas: Canvas, lead: Lead, x: NDArray[np.floating[Any]], box: tuple[int, int]) -> None:
    """Draw the leading value in a frame; `box` is its top and its width."""
    top, wide = box
    frame = canvas.frame(top, MARGIN + GUTTER, VALUES, wide)
    canvas.text("value", top + VALUES // 2 - 6, MARGIN, SMALL, FAINT)
    ticks = round_numbers(min(0.0, float(lead.value.min())), max(0.0, float(lead.value.max())))
    low, span = ticks[0], ticks[-1] - ticks[0]

    def up(value: Any) -> Any:
        return (VALUES - 3) * (1 - (value - low) / span) + 1

    _draw_rules(canvas, frame, {f"{tick:g}": up(tick) for tick in (ticks[0], ticks[-1])}, top)
    points = list(zip(x.tolist(), up(lead.value).tolist(), strict=True))
    frame.line(points if len(points) > 1 else points * 2, INKS[4])


def _draw_rules(canvas: Canvas, frame: PlotArea, rules: dict[str, float], top: int) -> None:
    """Draw fine lines with a text beside each."""
    for text, y in rules.items():
        frame.line([(0, y), (frame.box[2] - 1, y)], RULE)
        left = MARGIN + GUTTER - 6 - text_size(text, SMALL)[0]
        canvas.text(text, round(top + y - SMALL / 2 - 1), left, SMALL, FAINT)
