"""Line plots of activations against steps, one small plot a unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.figure.canvas import FAINT, INK, Canvas, text_size
from cnnvis_cli.figure.sheets import MARGIN, PAGE, SMALL, TITLE, Caption, draw_caption, wrapped

FINE = 4  # curves are drawn so many times larger, then reduced
HEIGHT, WIDTH = 96, 170  # of a plot's frame, in pixels
GUTTER = 46  # for the numbers of the value axis
PITCH = (HEIGHT + 2 * SMALL + 26, WIDTH + GUTTER + 18)
RULE = (225, 225, 225)
INKS = ((31, 119, 180), (214, 96, 40), (60, 145, 80), (150, 80, 160), (120, 120, 120))


@dataclass(frozen=True)
class Plot:
    """One unit: its label, the steps (T,), values (R, T) of each run, and best steps (R,)."""

    label: str
    steps: NDArray[np.integer[Any]]
    values: NDArray[np.floating[Any]]  # NaN where a run had ended
    best: NDArray[np.integer[Any]]


def plots(panels: Sequence[Plot], caption: Caption, scale: int = 1) -> Canvas:
    """Small plots in a grid as square as it gets; a dot marks the best step of each run."""
    down, across = (side * scale for side in PITCH)
    columns = max(1, min(len(panels), round(math.sqrt(len(panels) * down / across * 1.3))))
    rows = -(-len(panels) // columns)
    width = max(columns * across, 360)
    notes = wrapped(caption.note, width)
    head = MARGIN + TITLE + 6 + len(notes) * (SMALL + 4) + 8
    title, _ = text_size(caption.title, TITLE)
    canvas = Canvas(head + rows * down + MARGIN, max(width, title) + 2 * MARGIN)
    draw_caption(canvas, caption.title, notes)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        _draw(canvas, panel, (head + row * down, MARGIN + column * across), scale)
    return canvas


def plots_on_a_page(scale: int = 1) -> int:
    """How many plots a page holds."""
    return max(1, PAGE // (PITCH[0] * PITCH[1] * scale * scale))


def _draw(canvas: Canvas, panel: Plot, place: tuple[int, int], scale: int) -> None:
    top, left = place[0] + SMALL + 6, place[1] + GUTTER
    height, width = HEIGHT * scale, WIDTH * scale
    known = panel.values[np.isfinite(panel.values)]
    ticks = round_numbers(float(known.min()), float(known.max())) if known.size else [0.0, 1.0]
    last = max(int(panel.steps[-1]), int(panel.best.max()), 1)
    low, high = ticks[0], ticks[-1]

    def point(step: float, value: float, fine: int = 1) -> tuple[float, float]:
        """Where a step and a value are in the frame: x, y."""
        y = (height - 1) * (high - value) / (high - low)
        return (width - 1) * step / last * fine, y * fine

    frame = Canvas(height * FINE, width * FINE)
    for tick in ticks:
        frame.line([point(0, tick, FINE), point(last, tick, FINE)], RULE, FINE)
    for run in range(len(panel.values)):
        _curve(frame, panel, run, point)
    canvas.tile(frame.reduced(FINE), top, left)
    canvas.text(panel.label, place[0], left, SMALL, INK)
    for tick in ticks:
        text = f"{tick:g}"
        y = top + point(0, tick)[1] - SMALL / 2 - 1
        canvas.text(text, round(y), left - 5 - text_size(text, SMALL)[0], SMALL, FAINT)
    for step in (0, last):
        text = str(step)
        x = left + point(step, low)[0] - (text_size(text, SMALL)[0] if step else 0)
        canvas.text(text, top + height + 3, round(x), SMALL, FAINT)


Point = Callable[[float, float, int], tuple[float, float]]


def _curve(frame: Canvas, panel: Plot, run: int, point: Point) -> None:
    """One run's values and the dot of its best step."""
    ink, values = INKS[run % len(INKS)], panel.values[run]
    known = np.isfinite(values)
    steps, heights = panel.steps[known], values[known]
    if not len(steps):
        return
    points = [point(s, v, FINE) for s, v in zip(steps, heights, strict=True)]
    frame.line(points if len(points) > 1 else points * 2, ink, FINE)
    best = int(panel.best[run])
    x, y = point(best, float(np.interp(best, steps, heights)), FINE)
    frame.dot(x, y, 2.5 * FINE, ink)


def round_numbers(low: float, high: float) -> list[float]:
    """Three to six numbers a step of 1, 2 or 5 times a power of ten apart that enclose a range."""
    span = high - low if high > low else abs(high) or 1.0
    size = 10 ** math.floor(math.log10(span / 3))
    step = next(k * size for k in (1, 2, 5, 10) if span / (k * size) <= 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]
