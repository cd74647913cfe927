"""Line plots of activations against steps, one small plot per unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.figure.canvas import FAINT, INK, Canvas, PlotArea, scaled, shortened, text_size
from cnnvis_cli.figure.sheets import MARGIN, PAGE, SMALL, Caption, begun
from cnnvis_cli.nouns import Point

HEIGHT, WIDTH = 96, 170  # of a plot's frame, in pixels
GUTTER = 46  # room for the numbers of the value axis
APART_PLOTS = 18  # pixels between plots side by side
PITCH = (HEIGHT + 2 * SMALL + 26, WIDTH + GUTTER + APART_PLOTS)
LEAST_ACROSS = 170  # least width of a plot with its numbers in a column of a paper
RULE = (225, 225, 225)
INKS = ((31, 119, 180), (214, 96, 40), (60, 145, 80), (150, 80, 160), (120, 120, 120))


@dataclass(frozen=True)
class Plot:
    """Lines under a label: the steps (T,), values (R, T) of each, and best steps (R,) or none."""

    label: str
    steps: NDArray[np.integer[Any]]
    values: NDArray[np.floating[Any]]  # NaN after the end of a run
    best: NDArray[np.integer[Any]] | None
    axes: tuple[str, str] = ("step", "activation")


def plots(panels: Sequence[Plot], caption: Caption, scale: float = 1) -> Canvas:
    """Return small plots in a nearly square grid; a dot marks the best step of each run."""
    size = (scaled(HEIGHT, scale), scaled(WIDTH, scale))
    columns = 0
    if caption.room:
        columns = max(1, min(len(panels), caption.room // LEAST_ACROSS))
        width = caption.room // columns - GUTTER - APART_PLOTS
        size = (max(HEIGHT * 2 // 3, width * HEIGHT // WIDTH), width)
    down, across = size[0] + PITCH[0] - HEIGHT, size[1] + PITCH[1] - WIDTH
    if not columns:
        columns = max(1, min(len(panels), round(math.sqrt(len(panels) * down / across * 1.3))))
    rows = -(-len(panels) // columns)
    canvas, head = begun(caption, columns * across, rows * down)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        _draw_plot(canvas, panel, (head + row * down, MARGIN + column * across), size)
    return canvas


def plots_on_a_page(scale: float = 1) -> int:
    """Return the number of plots on a page."""
    down, across = (scaled(side, scale) for side in PITCH)
    return max(1, PAGE // (down * across))


@dataclass(frozen=True)
class _PlotAxes:
    """A plot's frame with its range of values: the position of points in it."""

    frame: PlotArea
    last: float  # the greatest step
    low: float
    high: float

    def point(self, step: float, value: float) -> Point:
        """Return the position of a step and a value in the frame: x, y."""
        _, _, width, height = self.frame.box
        y = (height - 1) * (self.high - value) / (self.high - self.low)
        return (width - 1) * step / self.last, y


def _draw_plot(canvas: Canvas, panel: Plot, place: tuple[int, int], size: tuple[int, int]) -> None:
    """Draw a plot with a frame of a size (height, width), its upper left corner at a place."""
    top, left = place[0] + SMALL + 6, place[1] + GUTTER
    height, width = size
    known = panel.values[np.isfinite(panel.values)]
    ticks = round_numbers(float(known.min()), float(known.max())) if known.size else [0.0, 1.0]
    dots = [] if panel.best is None else panel.best.tolist()
    last = max(int(panel.steps[-1]), *dots, 1)
    axes = _PlotAxes(canvas.frame(top, left, height, width), last, ticks[0], ticks[-1])
    for tick in ticks:
        axes.frame.line([axes.point(0, tick), axes.point(last, tick)], RULE)
        text, y = f"{tick:g}", top + axes.point(0, tick)[1] - SMALL / 2 - 1
        canvas.text(text, round(y), left - 5 - text_size(text, SMALL)[0], SMALL, FAINT)
    for run in range(len(panel.values)):
        _curve(axes, panel, run)
    across, up = (text_size(name, SMALL)[0] for name in panel.axes)
    canvas.text(shortened(panel.label, SMALL, width - up - 6), place[0], left, SMALL, INK)
    canvas.text(panel.axes[1], place[0], left + width - up, SMALL, FAINT)
    for step in (0, last):
        text = str(step)
        x = left + axes.point(step, ticks[0])[0] - (text_size(text, SMALL)[0] if step else 0)
        canvas.text(text, top + height + 3, round(x), SMALL, FAINT)
    canvas.text(panel.axes[0], top + height + 3, left + (width - across) // 2, SMALL, FAINT)


def _curve(axes: _PlotAxes, panel: Plot, run: int) -> None:
    """Draw one run's values and the dot of its best step."""
    ink, values = INKS[run % len(INKS)], panel.values[run]
    known = np.isfinite(values)
    steps, heights = panel.steps[known], values[known]
    if not len(steps):
        return
    points = [axes.point(s, v) for s, v in zip(steps, heights, strict=True)]
    axes.frame.line(points if len(points) > 1 else points * 2, ink)
    if panel.best is None:
        return
    best = int(panel.best[run])
    x, y = axes.point(best, float(np.interp(best, steps, heights)))
    axes.frame.dot(x, y, 2.5, ink)


def round_numbers(low: float, high: float) -> list[float]:
    """Return three to six numbers that enclose a range, 1, 2 or 5 times a power of ten apart."""
    span = high - low if high > low else abs(high) or 1.0
    size = 10 ** math.floor(math.log10(span / 3))
    step = next(k * size for k in (1, 2, 5, 10) if span / (k * size) <= 4)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]
