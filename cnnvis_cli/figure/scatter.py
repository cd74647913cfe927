"""A scatter plot: a pure function from arrays to a canvas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.figure.canvas import FAINT, INK, Canvas, Ink, PlotArea, text_size
from cnnvis_cli.figure.lines import INKS, RULE, round_numbers
from cnnvis_cli.figure.sheets import MARGIN, SMALL, Caption, begun
from cnnvis_cli.nouns import Point

HEIGHT, WIDTH = 330, 560  # of the frame, in pixels
HEAD, FOOT = SMALL + 14, 2 * SMALL + 18  # room for the names of the axes and the numbers
FRAME_MARGIN = 10  # margin inside the frame, so that no dot is cut
AXIS_ROOM = 0.03  # of an axis's range, beyond the largest number
DOT_RADIUS = 3.5  # radius
FRAME_INK = (90, 90, 90)

Numbers = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Band:
    """Some of the dots in their own colour, with a bar at their mean and a text above all."""

    members: NDArray[np.integer[Any]]
    text: str
    ink: Ink


@dataclass(frozen=True)
class Scatter:
    """Dots (n,) against two axes, rings where `hollow`, and a line through `trend` (m,)."""

    x: Numbers
    y: Numbers
    names: tuple[str, str]  # of the axes
    hollow: NDArray[np.bool_]
    trend: tuple[Numbers, Numbers]
    bands: tuple[Band, ...] = ()


def scatter(plot: Scatter, caption: Caption) -> Canvas:
    """Return a plot with one dot per pair of numbers; both axes begin at 0 or below."""
    xs, ys = _ticks(plot.x), _ticks(plot.y)
    gutter = max(text_size(f"{tick:g}", SMALL)[0] for tick in ys) + 8
    size = (HEIGHT, WIDTH)
    if caption.room:
        size = ((caption.room - gutter) * HEIGHT // WIDTH, caption.room - gutter)
    lines = _band_lines(plot, size[1])
    head = HEAD + (SMALL + 4) * len(lines)
    canvas, top = begun(caption, gutter + size[1], head + size[0] + FOOT)
    frame = canvas.frame(top + head, MARGIN + gutter, *size)
    axes = _ScatterAxes(frame, _axis_range(plot.x, xs), _axis_range(plot.y, ys))
    _draw_grid(canvas, axes, xs, ys)
    _draw_axis_names(canvas, axes, plot.names, top + HEAD - SMALL - 6 if not lines else top)
    _dots(axes, plot)
    if lines:
        for number, band in enumerate(lines, 1):
            y = top + number * (SMALL + 4)
            canvas.text(band.text, y, MARGIN + gutter - 2, SMALL, band.ink)
        return canvas
    _draw_bands(canvas, axes, plot.bands)
    return canvas


def _band_lines(plot: Scatter, width: int) -> tuple[Band, ...]:
    """Return the bands, if their texts need lines of their own below the name of the y axis."""
    texts = (plot.names[1], *(band.text for band in plot.bands))
    together = sum(text_size(text, SMALL)[0] + 16 for text in texts)
    return plot.bands if together > width else ()


def _ticks(values: Numbers) -> list[float]:
    """Return round numbers from 0, or below, up to the values; at least two."""
    low, high = min(0.0, float(values.min())), float(values.max())
    first, second, *_ = round_numbers(low, (low + high) / 2)
    step = second - first
    count = max(1, math.floor((high - first) / step + 1e-9))
    return [round(first + i * step, 12) for i in range(count + 1)]


def _axis_range(values: Numbers, ticks: list[float]) -> tuple[float, float]:
    """Return the lowest and the highest value of an axis."""
    high = float(values.max())
    return ticks[0], max(ticks[-1], high + AXIS_ROOM * (high - ticks[0]))


@dataclass(frozen=True)
class _ScatterAxes:
    """The position of points in the frame."""

    frame: PlotArea
    across: tuple[float, float]  # the range of x
    up: tuple[float, float]  # and of y

    def point(self, x: float, y: float) -> Point:
        """Return the position of two numbers in the frame, in pixels."""
        right = (x - self.across[0]) / (self.across[1] - self.across[0])
        down = (self.up[1] - y) / (self.up[1] - self.up[0])
        _, _, width, height = self.frame.box
        x_in = FRAME_MARGIN + right * (width - 2 * FRAME_MARGIN)
        return x_in, FRAME_MARGIN + down * (height - 2 * FRAME_MARGIN)

    def on_sheet(self, x: float, y: float) -> Point:
        """Return the position of two numbers on the sheet, in pixels."""
        left, top, _, _ = self.frame.box
        right, down = self.point(x, y)
        return left + right, top + down


def _draw_grid(canvas: Canvas, axes: _ScatterAxes, xs: list[float], ys: list[float]) -> None:
    """Draw fine lines at round numbers, and the numbers."""
    left, top, _, height = axes.frame.box
    for tick in ys:
        axes.frame.line([axes.point(x, tick) for x in axes.across], RULE)
        text, y = f"{tick:g}", axes.on_sheet(0, tick)[1] - SMALL / 2 - 1
        canvas.text(text, round(y), left - 2 - text_size(text, SMALL)[0], SMALL, FAINT)
    for tick in xs:
        axes.frame.line([axes.point(tick, y) for y in axes.up], RULE)
        text, x = f"{tick:g}", axes.on_sheet(tick, ys[0])[0]
        canvas.text(text, top + height, round(x - text_size(text, SMALL)[0] / 2), SMALL, FAINT)


def _draw_axis_names(
    canvas: Canvas, axes: _ScatterAxes, names: tuple[str, str], above: int
) -> None:
    """Draw the names of the axes: x below on the right, y on the left at a height `above`."""
    left, top, width, height = axes.frame.box
    right = left + width - FRAME_MARGIN - text_size(names[0], SMALL)[0]
    canvas.text(names[0], top + height + SMALL + 8, right, SMALL, INK)
    canvas.text(names[1], above, left - 2, SMALL, INK)


def _dots(axes: _ScatterAxes, plot: Scatter) -> None:
    inks = [INKS[0]] * len(plot.x)
    for band in plot.bands:
        for member in band.members.tolist():
            inks[member] = band.ink
    for x, y, ink, ring in zip(plot.x, plot.y, inks, plot.hollow, strict=True):
        axes.frame.dot(*axes.point(x, y), DOT_RADIUS, ink, filled=not ring)
    points = [axes.point(x, y) for x, y in zip(*plot.trend, strict=True)]
    if len(points) > 1:
        axes.frame.line(points, FRAME_INK, 1.5)
    for band in plot.bands:
        x, mean = plot.x[band.members], float(plot.y[band.members].mean())
        (start, y), (end, _) = axes.point(float(x.min()), mean), axes.point(float(x.max()), mean)
        axes.frame.line([(start - 2 * DOT_RADIUS, y), (end + 2 * DOT_RADIUS, y)], band.ink, 2)


def _draw_bands(canvas: Canvas, axes: _ScatterAxes, bands: tuple[Band, ...]) -> None:
    """Draw the bands' texts above the frame, the last one at its right end."""
    left, top, width, _ = axes.frame.box
    right = left + width - FRAME_MARGIN
    for band in reversed(bands):
        right -= text_size(band.text, SMALL)[0]
        canvas.text(band.text, top - SMALL - 6, right, SMALL, band.ink)
        right -= 16
