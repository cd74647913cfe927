"""The elements of the generated images: planes, shapes as distances, colours, painted sheets.

A shape is a distance field: for every pixel the distance from the shape's outline, negative inside.
Union is `np.minimum`, intersection `np.maximum`, complement a minus sign, and an outline is
`outline(distance, width)`. All lengths are in units of the plane, where an object fills [-1, 1].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.nouns import Point

Field = NDArray[np.floating[Any]]  # (H, W) float32, one number per pixel
Colour = NDArray[
    np.floating[Any]
]  # (3,) RGB in [0, 1], or (3, H, W) where it changes over the plane
Span = tuple[float, float]  # from, to

WHEEL: Span = (0.0, 360.0)  # every hue, in degrees


@dataclass(frozen=True)
class Plane:
    """The position of each pixel relative to one object: x to the right, y downwards."""

    x: Field
    y: Field
    pixel: float  # side of a pixel, in units of the plane

    def at(self, x: float, y: float, degrees: float = 0.0) -> Plane:
        """Return the plane with its origin moved to (x, y) and its axes rotated clockwise."""
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        right, down = self.x - x, self.y - y
        return Plane(right * cos + down * sin, down * cos - right * sin, self.pixel)

    def mirrored(self) -> Plane:
        """Return the plane folded along its vertical axis: a drawing on the right appears twice."""
        return Plane(np.abs(self.x), self.y, self.pixel)

    def folded(self, times: int) -> Plane:
        """Return the plane folded around its origin: a drawing along +x appears `times` times."""
        sector = 2 * math.pi / times
        angle = np.arctan2(self.y, self.x)
        angle -= sector * np.round(angle / sector)
        radius = length(self.x, self.y)
        return Plane(radius * np.cos(angle), radius * np.sin(angle), self.pixel)


def length(x: Field, y: Field) -> Field:
    """Return the distance from the origin."""
    return np.sqrt(x * x + y * y)


def disc(plane: Plane, radius: float) -> Field:
    """Return a round spot."""
    return length(plane.x, plane.y) - radius


def ellipse(plane: Plane, across: float, down: float) -> Field:
    """Return an oval of the given half axes (the distance is exact on the outline only)."""
    return (length(plane.x / across, plane.y / down) - 1) * min(across, down)


def box(plane: Plane, across: float, down: float, corner: float = 0.0) -> Field:
    """Return a rectangle of the given half sides, with rounded corners."""
    x, y = np.abs(plane.x) - (across - corner), np.abs(plane.y) - (down - corner)
    return length(np.maximum(x, 0), np.maximum(y, 0)) + np.minimum(np.maximum(x, y), 0) - corner


def line(plane: Plane, start: Point, end: Point, widths: Span) -> Field:
    """Return a stroke with round ends; the half widths are those at its start and at its end."""
    along = (end[0] - start[0], end[1] - start[1])
    x, y = plane.x - start[0], plane.y - start[1]
    square = along[0] ** 2 + along[1] ** 2
    t = np.clip((x * along[0] + y * along[1]) / square, 0, 1)
    return length(x - along[0] * t, y - along[1] * t) - (widths[0] + (widths[1] - widths[0]) * t)


def arc(plane: Plane, radius: float, width: float, degrees: float) -> Field:
    """Return part of a ring around the origin, `degrees` to both sides of straight down."""
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    x, y = np.abs(plane.x), plane.y
    end = length(x - sin * radius, y - cos * radius)
    return np.where(cos * x > sin * y, end, np.abs(length(x, y) - radius)) - width


def convex(plane: Plane, *corners: Point) -> Field:
    """Return a convex polygon; its corners are given clockwise as seen on the screen."""
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        reach = math.hypot(x1 - x0, y1 - y0)
        sides.append(((plane.x - x0) * (y1 - y0) - (plane.y - y0) * (x1 - x0)) / reach)
    return functools.reduce(np.maximum, sides)


def lens(plane: Plane, long: float, short: float) -> Field:
    """Return a pointed oval along x, of given half length and width: two equal discs overlap."""
    radius = (long**2 + short**2) / (2 * short)
    return length(plane.x, np.abs(plane.y) + (radius - short)) - radius


def edge_line(distance: Field, width: float) -> Field:
    """Return the line along a shape's edge, `width` to both sides."""
    return np.abs(distance) - width


def stripes(position: Field, period: float, share: float) -> Field:
    """Return periodic bands, each as wide as the given share of the period."""
    distance: Field = (np.abs(position / period % 1 - 0.5) - share / 2) * period
    return distance


def cell(position: Field, period: float) -> tuple[Field, Field]:
    """Cut an axis into equal cells; return the offset from the cell's centre and its number."""
    number = np.floor(position / period)
    return position - (number + 0.5) * period, number


def lottery(column: Field, row: Field) -> Field:
    """Return a number in [0, 1) per cell that looks random and is always the same."""
    return np.sin(column * 12.9898 + row * 78.233) * 437.585 % 1  # a customary shader hash


@functools.lru_cache(maxsize=64)
def spline(size: int, knots: int) -> Field:
    """Return cubic B-spline weights from `knots` values to `size` pixels: (size, knots)."""
    away = np.linspace(0.5, knots - 1.5, size)[:, None] - np.arange(knots)[None, :]
    near, far = np.abs(away), np.maximum(2 - np.abs(away), 0)
    weights = np.where(near < 1, 2 / 3 - near**2 + near**3 / 2, far**3 / 6)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def spread(values: Field, size: int) -> Field:
    """Enlarge a small grid smoothly to an image: (..., k, k) -> (..., size, size)."""
    weights = spline(size, values.shape[-1])
    return weights @ values @ weights.T


def gathered(values: Field, knots: int) -> Field:
    """Reduce an image smoothly to a small grid, the counterpart of `spread`."""
    weights = spline(values.shape[-1], knots)
    weights = weights / weights.sum(0)
    small: Field = weights.T @ values @ weights
    return small


def oklch(lightness: float, chroma: float, hue: float) -> Colour:
    """Return a colour by its lightness, chroma and hue (degrees): RGB, (3,).

    The matrices: Björn Ottosson, "A perceptual color space for image processing" (2020).
    """
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    return np.array([min(max(value, 0.0), 1.0) ** (1 / 2.2) for value in linear], np.float32)


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """Return the first colour with a share of the second."""
    return first + (second - first) * np.float32(share)


def lighter(colour: Colour, share: float = 0.4) -> Colour:
    """Return the colour with some white."""
    return mixed(colour, np.ones_like(colour), share)


def darker(colour: Colour, share: float = 0.4) -> Colour:
    """Return the colour with some black."""
    return mixed(colour, np.zeros_like(colour), share)


@dataclass
class Sheet:
    """A transparent sheet on which one object is painted, stroke by stroke."""

    plane: Plane
    rng: np.random.Generator
    ground: float  # lightness of the background, in [0, 1]
    lit: Field  # (H, W), each pixel's distance toward the light, in units of the plane
    ink: Field = field(init=False)  # (4, H, W): red, green, blue times cover, and cover

    def __post_init__(self) -> None:
        self.ink = np.zeros((4, *self.plane.x.shape), np.float32)

    def paint(
        self, distance: Field, colour: Colour, relief: float = 0.5, opacity: float = 1.0
    ) -> None:
        """Fill a shape; with relief, its edge darkens and the side toward the light brightens."""
        cover = np.clip(0.5 - distance / self.plane.pixel, 0, 1) * opacity
        if colour.ndim == 1:
            colour = colour[:, None, None]
        if relief:
            edge = np.clip(1 + distance * 5, 0, 1)  # the last 0.2 units before the outline
            colour = colour * (1 + relief * (0.3 * self.lit - 0.5 * edge * edge))
        self.ink *= 1 - cover
        self.ink[:3] += colour * cover
        self.ink[3] += cover

    def glaze(self, distance: Field, colour: Colour, opacity: float, inside: Field) -> None:
        """Tint, without relief, the part of a shape that lies inside another one."""
        self.paint(np.maximum(distance, inside), colour, 0.0, opacity)

    def between(self, low: float, high: float) -> float:
        """Return a number drawn uniformly between two others."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return bool(self.rng.random() < probability)

    def count(self, low: int, high: int) -> int:
        """Return a whole number from low to high, inclusive."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, spans: Sequence[Span]) -> Span:
        """Return one of several spans."""
        return spans[int(self.rng.integers(len(spans)))]

    def colour(
        self, hue: Span = WHEEL, chroma: Span = (0.05, 0.2), lightness: Span | None = None
    ) -> Colour:
        """Return a random colour; without a lightness, one that stands out from the background."""
        if lightness is None:
            light, dark = (self.ground + 0.2, 0.92), (0.3, self.ground - 0.2)
            rooms = [span for span in (light, dark) if span[1] - span[0] > 0.05]
            lightness = self.pick(rooms or [(0.4, 0.8)])
        return oklch(self.between(*lightness), self.between(*chroma), self.between(*hue))

    def rippled(self, depth: float) -> Plane:
        """Return the plane rippled like cloth: points moved smoothly, by about `depth` units."""
        size = self.plane.x.shape[-1]
        push = spread(self.rng.standard_normal((2, 5, 5), np.float32) * np.float32(depth), size)
        return Plane(self.plane.x + push[0], self.plane.y + push[1], self.plane.pixel)
