"""What the class drawings share: their registry, hues, and a few parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cnnvis_cli.demo.shapes import (
    Colour,
    Plane,
    Sheet,
    disc,
    oklch,
)

GREENS, WARM, BLUES, METAL = (115.0, 155.0), (20.0, 105.0), (225.0, 275.0), (200.0, 280.0)  # hues
BLACK, WHITE = oklch(0.18, 0.01, 260), oklch(0.97, 0.01, 100)


@dataclass(frozen=True)
class Drawing:
    """How a class is drawn, and how far the scene may rotate it (degrees, both ways)."""

    paint: Callable[[Sheet], None]
    turn: float


DRAWINGS: dict[str, Drawing] = {}


def drawing(
    name: str, turn: float = 18
) -> Callable[[Callable[[Sheet], None]], Callable[[Sheet], None]]:
    """Register a function under the name of the class that it draws."""

    def enter(paint: Callable[[Sheet], None]) -> Callable[[Sheet], None]:
        DRAWINGS[name] = Drawing(paint, turn)
        return paint

    return enter


def cover(sheet: Sheet, colour: Colour) -> None:
    """Fill the whole sheet."""
    sheet.paint(np.full_like(sheet.plane.x, -9), colour, 0.0)


def pair(sheet: Sheet) -> tuple[Colour, Colour]:
    """Return two colours, one light and one dark, in either order."""
    first = sheet.colour(lightness=(0.25, 0.55), chroma=(0.02, 0.16))
    second = sheet.colour(lightness=(0.68, 0.95), chroma=(0.01, 0.14))
    return (first, second) if sheet.chance(0.5) else (second, first)


def eye(sheet: Sheet, plane: Plane, radius: float, iris: Colour, white: Colour = WHITE) -> None:
    """Paint a round eye with iris, pupil and a glint."""
    sheet.paint(disc(plane, radius), white, 0.3)
    sheet.paint(disc(plane, radius * 0.66), iris, 0.4)
    sheet.paint(disc(plane, radius * 0.36), BLACK, 0.0)
    sheet.paint(disc(plane.at(radius * 0.25, -radius * 0.28), radius * 0.17), WHITE, 0.0)
