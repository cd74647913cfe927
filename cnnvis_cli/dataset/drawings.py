"""One small function for every class of the drawn images: eight patterns and sixteen objects.

A drawing paints its object upright into [-1, 1] of the sheet's plane; where it ends up in the
image, how large and how much turned, is the scene's affair. A new class is one decorated function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cnnvis_cli.dataset.shapes import (
    Colour,
    Plane,
    Sheet,
    arc,
    box,
    cell,
    convex,
    darker,
    disc,
    ellipse,
    length,
    lens,
    lighter,
    line,
    lottery,
    mixed,
    oklch,
    outline,
    stripes,
)

GREENS, WARM, BLUES, METAL = (115.0, 155.0), (20.0, 105.0), (225.0, 275.0), (200.0, 280.0)  # hues
BLACK, WHITE = oklch(0.18, 0.01, 260), oklch(0.97, 0.01, 100)


@dataclass(frozen=True)
class Drawing:
    """How a class is drawn, and how far the scene may turn it (degrees, both ways)."""

    paint: Callable[[Sheet], None]
    turn: float


DRAWINGS: dict[str, Drawing] = {}


def drawing(
    name: str, turn: float = 18
) -> Callable[[Callable[[Sheet], None]], Callable[[Sheet], None]]:
    """Enters a function under the name of the class that it draws."""

    def enter(paint: Callable[[Sheet], None]) -> Callable[[Sheet], None]:
        DRAWINGS[name] = Drawing(paint, turn)
        return paint

    return enter


def cover(sheet: Sheet, colour: Colour) -> None:
    """Fills the whole sheet."""
    sheet.paint(np.full_like(sheet.plane.x, -9), colour, 0.0)


def pair(sheet: Sheet) -> tuple[Colour, Colour]:
    """Two colours, one light and one dark, either of them first."""
    first = sheet.colour(lightness=(0.25, 0.55), chroma=(0.02, 0.16))
    second = sheet.colour(lightness=(0.68, 0.95), chroma=(0.01, 0.14))
    return (first, second) if sheet.chance(0.5) else (second, first)


def eye(sheet: Sheet, plane: Plane, radius: float, iris: Colour, white: Colour = WHITE) -> None:
    """A round eye with iris, pupil and a glint."""
    sheet.paint(disc(plane, radius), white, 0.3)
    sheet.paint(disc(plane, radius * 0.66), iris, 0.4)
    sheet.paint(disc(plane, radius * 0.36), BLACK, 0.0)
    sheet.paint(disc(plane.at(radius * 0.25, -radius * 0.28), radius * 0.17), WHITE, 0.0)


# --- patterns ---------------------------------------------------------------------------------


@drawing("bricks", turn=25)
def bricks(sheet: Sheet) -> None:
    """A wall: staggered rows of bricks in mortar, every brick a little different."""
    high = sheet.between(0.2, 0.4)
    wide = high * sheet.between(1.9, 2.6)
    plane = sheet.rippled(0.02)
    y, row = cell(plane.y, high)
    x, column = cell(plane.x + (row % 2) * np.float32(wide / 2), wide)
    warm = sheet.chance(0.7)
    brick = sheet.colour((25, 55) if warm else (0, 360), (0.05, 0.13), (0.4, 0.65))
    mortar = sheet.colour((40, 110), (0.0, 0.03), sheet.pick([(0.75, 0.9), (0.2, 0.3)]))
    cover(sheet, mortar)
    tone = (0.8 + 0.4 * lottery(column, row)) * brick[:, None, None]
    gap = high * sheet.between(0.04, 0.09)
    sheet.paint(box(Plane(x, y, plane.pixel), wide / 2 - gap, high / 2 - gap, 0.03), tone, 0.5)


@drawing("checks", turn=180)
def checks(sheet: Sheet) -> None:
    """A chessboard."""
    plane, side = sheet.rippled(sheet.between(0, 0.12)), sheet.between(0.36, 0.8)
    across, down = stripes(plane.x, side, 0.5), stripes(plane.y, side, 0.5)
    first, second = pair(sheet)
    cover(sheet, first)
    sheet.paint(np.maximum(np.minimum(across, down), -np.maximum(across, down)), second, 0.0)


@drawing("dots", turn=180)
def dots(sheet: Sheet) -> None:
    """Round spots in rows, sometimes staggered, of one colour or many."""
    plane, step = sheet.rippled(sheet.between(0, 0.08)), sheet.between(0.26, 0.6)
    y, row = cell(plane.y, step)
    x, column = cell(plane.x + (row % 2) * np.float32(step / 2 * sheet.count(0, 1)), step)
    ground, spot = pair(sheet)
    cover(sheet, ground)
    share = lottery(column, row) * np.float32(sheet.chance(0.5))
    other = mixed(sheet.colour(chroma=(0.08, 0.2), lightness=(0.4, 0.8)), spot, 0.3)
    tone = spot[:, None, None] * (1 - share) + other[:, None, None] * share
    spots = disc(Plane(x, y, plane.pixel), step * sheet.between(0.24, 0.36))
    sheet.paint(spots, tone, sheet.between(0, 0.7))


@drawing("grating", turn=180)
def grating(sheet: Sheet) -> None:
    """Parallel stripes, hard-edged or soft."""
    plane, period = sheet.rippled(sheet.between(0, 0.1)), sheet.between(0.16, 0.55)
    first, second = pair(sheet)
    cover(sheet, first)
    if sheet.chance(0.5):
        sheet.paint(stripes(plane.x, period, sheet.between(0.3, 0.6)), second, 0.0)
        return
    wave = 0.5 + 0.5 * np.sin(plane.x * np.float32(2 * math.pi / period))
    cover(sheet, first[:, None, None] * (1 - wave) + second[:, None, None] * wave)


@drawing("honeycomb", turn=180)
def honeycomb(sheet: Sheet) -> None:
    """Six-sided cells with walls between them."""
    plane, step = sheet.rippled(sheet.between(0, 0.05)), sheet.between(0.3, 0.6)
    high = step * math.sqrt(3)
    x0, column0 = cell(plane.x, step)
    y0, row0 = cell(plane.y, high)
    x1, column1 = cell(plane.x + np.float32(step / 2), step)
    y1, row1 = cell(plane.y + np.float32(high / 2), high)
    nearer = x0 * x0 + y0 * y0 < x1 * x1 + y1 * y1
    x, y = np.abs(np.where(nearer, x0, x1)), np.abs(np.where(nearer, y0, y1))
    number = np.where(nearer, lottery(column0, row0), lottery(column1, row1 + 50))
    inside = np.maximum(x, 0.5 * x + math.sqrt(0.75) * y) - step * sheet.between(0.38, 0.46)
    golden = sheet.chance(0.5)
    wax = sheet.colour((55, 95) if golden else (0, 360), (0.06, 0.16), (0.5, 0.85))
    cover(sheet, darker(wax, 0.6) if sheet.chance(0.6) else lighter(wax, 0.75))
    sheet.paint(inside, wax[:, None, None] * (0.75 + 0.45 * number), sheet.between(0.2, 0.9))


@drawing("plaid", turn=180)
def plaid(sheet: Sheet) -> None:
    """Woven cloth: translucent bands of several widths, crossing at right angles."""
    plane, period = sheet.rippled(sheet.between(0, 0.1)), sheet.between(0.6, 1.1)
    cover(sheet, sheet.colour(chroma=(0.02, 0.14), lightness=(0.35, 0.85)))
    bands = [(0.0, sheet.between(0.3, 0.5)), (0.5, 0.1), (sheet.between(0.3, 0.7), 0.05)]
    for start, share in bands:
        colour = sheet.colour(chroma=(0.02, 0.2), lightness=sheet.pick([(0.1, 0.4), (0.8, 0.97)]))
        for position in (plane.x, plane.y):
            band = stripes(position + np.float32(start * period), period, share)
            sheet.paint(band, colour, 0.0, 0.55)


@drawing("rings", turn=180)
def rings(sheet: Sheet) -> None:
    """Circles around one centre, like a target or a wave in water."""
    plane = sheet.rippled(sheet.between(0, 0.12)).at(
        sheet.between(-0.5, 0.5), sheet.between(-0.5, 0.5)
    )
    period = sheet.between(0.22, 0.6)
    first, second = pair(sheet)
    radius = length(plane.x, plane.y * np.float32(sheet.between(1, 1.3)))
    cover(sheet, first)
    sheet.paint(stripes(radius, period, sheet.between(0.35, 0.6)), second, 0.0)


@drawing("zigzag", turn=180)
def zigzag(sheet: Sheet) -> None:
    """Stripes that turn sharply back and forth."""
    plane, period = sheet.rippled(sheet.between(0, 0.05)), sheet.between(0.3, 0.6)
    wide = sheet.between(0.4, 0.8)
    tooth = np.abs(plane.x / wide % 1 - 0.5) * (2 * sheet.between(0.25, 0.45))
    first, second = pair(sheet)
    cover(sheet, first)
    sheet.paint(stripes(plane.y + tooth, period, sheet.between(0.35, 0.6)), second, 0.0)
    if sheet.chance(0.4):
        sheet.paint(stripes(plane.y + tooth, period, 0.12), sheet.colour(chroma=(0.1, 0.2)), 0.0)


# --- animals and plants -----------------------------------------------------------------------


@drawing("bird")
def bird(sheet: Sheet) -> None:
    """A bird from the side: beak, eye, wing with feathers, tail, thin legs."""
    plane, hue = sheet.plane, sheet.pick([BLUES, WARM, (0, 360)])
    coat = sheet.colour(hue, (0.05, 0.17))
    belly, horn = lighter(coat, 0.55), sheet.colour((50, 85), (0.12, 0.17), (0.65, 0.8))
    for foot in (-0.02, 0.2):
        sheet.paint(line(plane, (foot, 0.4), (foot + 0.05, 0.85), (0.03, 0.03)), darker(horn), 0.2)
        sheet.paint(
            line(plane, (foot - 0.05, 0.87), (foot + 0.2, 0.87), (0.03, 0.02)), darker(horn)
        )
    tail = sheet.between(-0.25, 0.2)
    sheet.paint(
        convex(plane, (-0.4, -0.1), (-0.35, 0.3), (-1, tail + 0.25), (-1, tail)), darker(coat)
    )
    sheet.paint(convex(plane, (0.75, -0.62), (1, -0.47), (0.7, -0.36)), horn)
    body = np.minimum(ellipse(plane.at(0, 0.1, 25), 0.62, 0.4), disc(plane.at(0.48, -0.46), 0.32))
    body = np.minimum(body, line(plane, (0.2, 0), (0.45, -0.4), (0.42, 0.3)))
    sheet.paint(body, coat, 0.8)
    sheet.glaze(ellipse(plane.at(0.32, 0.25, -50), 0.45, 0.28), belly, 0.8, body)
    wing = lens(plane.at(-0.2, 0.08, -12), 0.55, 0.26)
    sheet.paint(wing, darker(coat, 0.35), 0.9)
    sheet.glaze(stripes(plane.x + plane.y * 0.4, 0.17, 0.25), lighter(coat, 0.3), 0.7, wing)
    eye(sheet, plane.at(0.56, -0.52), 0.1, darker(horn, 0.5))


@drawing("butterfly", turn=60)
def butterfly(sheet: Sheet) -> None:
    """A butterfly from above: two pairs of patterned wings, body, feelers."""
    plane = sheet.plane.mirrored()
    ink = sheet.colour(lightness=(0.15, 0.35), chroma=(0, 0.06))
    upper, lower = sheet.colour(chroma=(0.1, 0.22)), sheet.colour(chroma=(0.1, 0.22))
    lower = mixed(upper, lower, sheet.between(0, 1))
    rear = ellipse(plane.at(0.36, 0.38, 50), 0.46, sheet.between(0.3, 0.38))
    front = ellipse(plane.at(0.5, -0.34, -35), 0.56, sheet.between(0.36, 0.46))
    for wing, colour in ((rear, lower), (front, upper)):
        sheet.paint(wing, ink, 0.3)
        sheet.paint(wing + 0.08, colour, 0.6)
    spot, size = sheet.colour(lightness=(0.8, 0.97), chroma=(0.02, 0.16)), sheet.between(0.08, 0.16)
    for place in (plane.at(0.66, -0.45), plane.at(0.45, 0.5)):
        sheet.paint(disc(place, size), ink, 0.0)
        sheet.paint(disc(place, size * 0.65), spot, 0.0)
    sheet.paint(disc(plane.at(0.35, -0.2), size * 0.7), spot, 0.0)
    sheet.paint(line(plane, (0.02, -0.45), (0.25, -0.9), (0.025, 0.02)), ink, 0.0)
    sheet.paint(disc(plane.at(0.25, -0.9), 0.05), ink, 0.0)
    sheet.paint(ellipse(plane, 0.1, 0.58), mixed(ink, upper, 0.15), 0.7)


@drawing("cat")
def cat(sheet: Sheet) -> None:
    """A cat's head: pointed ears, slit pupils, nose, whiskers, often stripes."""
    plane, both = sheet.plane, sheet.plane.mirrored()
    fur = sheet.colour((45, 85), (0.01, 0.11), sheet.pick([(0.3, 0.45), (0.55, 0.75), (0.8, 0.93)]))
    pink = oklch(0.72, 0.09, 15)
    tip = sheet.between(0.5, 0.75)
    ear = convex(both, (0.1, -0.5), (tip, -0.98), (0.8, -0.1))
    sheet.paint(ear, fur, 0.8)
    sheet.paint(convex(both, (0.35, -0.5), (tip - 0.03, -0.82), (0.7, -0.25)), pink, 0.4)
    head = np.minimum(ellipse(plane.at(0, 0.1), 0.82, 0.68), disc(both.at(0.4, 0.3), 0.42))
    sheet.paint(head, fur, 0.8)
    if sheet.chance(0.6):
        for across in (-0.22, 0, 0.22):
            stripe = line(plane, (across, -0.55), (across * 0.7, -0.25), (0.06, 0.03))
            sheet.glaze(stripe, darker(fur, 0.55), 0.9, head)
        flank = np.maximum(head, 0.56 - both.x)
        sheet.glaze(stripes(both.y - both.x * 0.3, 0.2, 0.35), darker(fur, 0.5), 0.8, flank)
    sheet.paint(ellipse(both.at(0.17, 0.4), 0.22, 0.17), lighter(fur, 0.6), 0.3)
    iris = sheet.colour(sheet.pick([(95, 150), (60, 90), BLUES]), (0.1, 0.17), (0.65, 0.85))
    socket = lens(both.at(0.36, 0, -15), 0.24, sheet.between(0.12, 0.16))
    sheet.paint(outline(socket, 0.03), darker(fur, 0.8), 0.0)
    sheet.paint(socket, iris, 0.3)
    sheet.glaze(ellipse(both.at(0.36, 0), sheet.between(0.035, 0.08), 0.15), BLACK, 1.0, socket)
    sheet.paint(disc(plane.at(0.42, -0.05), 0.035), WHITE, 0.0)
    sheet.paint(convex(plane, (-0.12, 0.22), (0.12, 0.22), (0, 0.35)), darker(pink, 0.2), 0.3)
    sheet.paint(arc(both.at(0.11, 0.38), 0.11, 0.02, 80), darker(fur, 0.8), 0.0)
    whisker = WHITE if sheet.ground < 0.6 else BLACK
    for end in (0.25, 0.42, 0.6):
        sheet.paint(line(both, (0.3, 0.4), (1, end), (0.016, 0.012)), whisker, 0.0, 0.8)


@drawing("face")
def face(sheet: Sheet) -> None:
    """A person's face: hair, eyes, brows, nose and a mouth in some mood."""
    plane, both = sheet.plane, sheet.plane.mirrored()
    skin = sheet.colour((45, 70), (0.05, 0.09), sheet.pick([(0.45, 0.6), (0.65, 0.78), (0.8, 0.9)]))
    tone = sheet.pick([(0.15, 0.25), (0.25, 0.4), (0.25, 0.4), (0.5, 0.6), (0.75, 0.85)])
    hair = sheet.colour((40, 80), (0.04, 0.11), tone)
    wide, long = sheet.between(0.56, 0.68), sheet.chance(0.5)
    sheet.paint(box(plane.at(0, 1.9), 0.82, 1.02, 0.45), sheet.colour(chroma=(0.04, 0.18)), 0.8)
    sheet.paint(box(plane.at(0, 0.78), 0.2, 0.25, 0.05), darker(skin, 0.2), 0.3)
    if long:
        sheet.paint(box(plane.at(0, 0), wide + 0.2, 0.85, 0.6), darker(hair, 0.15), 0.6)
    else:
        sheet.paint(ellipse(both.at(wide, 0.05), 0.11, 0.17), darker(skin, 0.1), 0.4)
    head = ellipse(plane.at(0, 0.05), wide, 0.82)
    sheet.paint(head, skin, 0.5)
    crown = np.maximum(ellipse(plane.at(0, -0.08), wide + 0.09, 0.88), plane.y + 0.12)
    brim = ellipse(plane.at(sheet.between(-0.3, 0.3), 0.2), wide * 0.98, sheet.between(0.55, 0.68))
    sheet.paint(np.maximum(crown, -brim), hair, 0.6)
    glance, iris = (
        sheet.between(-0.03, 0.03),
        sheet.colour(lightness=(0.3, 0.6), chroma=(0.03, 0.1)),
    )
    sheet.glaze(disc(both.at(0.36, 0.3), 0.15), oklch(0.65, 0.15, 20), 0.25, head)
    almond = lens(both.at(0.25, 0), 0.16, sheet.between(0.08, 0.11))
    sheet.paint(almond, WHITE, 0.2)
    sheet.glaze(disc(both.at(0.25 + glance, 0), 0.085), iris, 1.0, almond)
    sheet.glaze(disc(both.at(0.25 + glance, 0), 0.045), BLACK, 1.0, almond)
    sheet.paint(outline(almond, 0.018), darker(skin, 0.8), 0.0)
    brow = sheet.between(-0.24, -0.16)
    sheet.paint(
        line(both, (0.12, brow), (0.4, brow + 0.02), (0.035, 0.022)), darker(hair, 0.3), 0.0
    )
    sheet.paint(line(plane, (0, 0), (0, 0.24), (0.03, 0.08)), darker(skin, 0.14), 0.2)
    lips = sheet.colour((5, 30), (0.1, 0.16), (0.4, 0.6))
    if sheet.chance(0.3):
        sheet.paint(ellipse(plane.at(0, 0.52), 0.15, 0.1), darker(lips, 0.5), 0.0)
        sheet.paint(outline(ellipse(plane.at(0, 0.52), 0.15, 0.1), 0.03), lips, 0.0)
    else:
        sheet.paint(arc(plane.at(0, 0.25), 0.28, 0.04, sheet.between(35, 65)), lips, 0.2)


@drawing("fish")
def fish(sheet: Sheet) -> None:
    """A fish from the side: fins, forked tail, gill, eye, scales or stripes."""
    plane, hue = sheet.plane, sheet.pick([WARM, BLUES, (0, 360)])
    skin, fin = sheet.colour(hue, (0.08, 0.2)), sheet.colour(hue, (0.1, 0.2), (0.4, 0.75))
    tall = sheet.between(0.36, 0.52)
    fork = np.minimum(
        lens(plane.at(-0.8, -0.2, 50), 0.34, 0.16), lens(plane.at(-0.8, 0.2, -50), 0.34, 0.16)
    )
    sheet.paint(fork, fin, 0.7)
    sheet.paint(convex(plane, (-0.3, -0.3), (-0.2, -0.3 - tall), (0.35, -0.3), (0, 0)), fin, 0.6)
    sheet.paint(convex(plane, (-0.1, 0.2), (0.2, 0.2), (-0.2, 0.35 + tall)), fin, 0.6)
    body = lens(plane.at(0.08, 0), 0.86, tall)
    sheet.paint(body, skin, 0.9)
    sheet.glaze(plane.y * -1 + tall * 0.3, lighter(skin, 0.6), 0.45, body)
    mark = sheet.colour(chroma=(0.02, 0.18))
    behind = np.maximum(body + 0.03, plane.x - 0.42)
    if sheet.chance(0.5):
        sheet.glaze(stripes(plane.x + plane.y * plane.y * 0.5, 0.3, 0.4), mark, 0.85, behind)
    else:
        y, row = cell(plane.y, 0.14)
        x, _ = cell(plane.x + (row % 2) * np.float32(0.08), 0.16)
        scale = outline(disc(Plane(x + 0.05, y, plane.pixel), 0.09), 0.018)
        sheet.glaze(scale, darker(skin, 0.5), 0.7, behind)
    sheet.glaze(arc(plane.at(0.36, 0, 90), 0.24, 0.03, 50), darker(skin, 0.55), 0.9, body)
    sheet.paint(lens(plane.at(0.1, 0.12, 20), 0.2, 0.08), darker(fin, 0.2), 0.6)
    eye(sheet, plane.at(0.58, -0.08), 0.11, sheet.colour((60, 100), (0.08, 0.15), (0.5, 0.8)))


@drawing("flower", turn=40)
def flower(sheet: Sheet) -> None:
    """A blossom with one or two rings of petals around a seeded centre, on a stem."""
    green, hue = sheet.colour(GREENS, (0.08, 0.16), (0.4, 0.65)), sheet.between(-80, 110)
    petal = sheet.colour((hue, hue), (0.06, 0.22), (0.55, 0.93))
    core = sheet.colour((50, 100), (0.09, 0.17), sheet.pick([(0.3, 0.45), (0.75, 0.88)]))
    stem = sheet.plane.at(0, -0.15)
    sheet.paint(line(stem, (0, 0), (sheet.between(-0.2, 0.2), 1.4), (0.05, 0.06)), green)
    sheet.paint(lens(stem.at(0.28, 0.85, -35), 0.36, 0.13), green, 0.8)
    head = sheet.plane.at(0, -0.2, sheet.between(0, 90))
    times, pointed = sheet.count(5, 10), sheet.chance(0.4)
    across = sheet.between(0.75, 1.1) * 0.5 * math.tan(math.pi / times)
    rounds = ((180 / times, 0.8, darker(petal, 0.25)), (0.0, 0.76, petal))
    for turn, reach, colour in rounds[sheet.count(0, 1) :]:
        blade = head.at(0, 0, turn).folded(times).at(reach * 0.56, 0)
        shape = (lens if pointed else ellipse)(blade, reach * 0.46, across)
        sheet.paint(shape, colour, 0.7)
        sheet.glaze(lens(blade.at(-0.1, 0), 0.24, 0.025), darker(colour, 0.35), 0.6, shape)
    size = sheet.between(0.18, 0.27)
    sheet.paint(disc(head, size), core, 0.9)
    seed = disc(head.folded(sheet.count(7, 10)).at(size * 0.65, 0), 0.035)
    sheet.paint(np.minimum(seed, disc(head, 0.06)), darker(core, 0.5), 0.0)


@drawing("leaf", turn=180)
def leaf(sheet: Sheet) -> None:
    """A leaf with midrib and side veins, smooth or toothed; mostly green, some in autumn."""
    hue = GREENS if sheet.chance(0.7) else (25, 100)
    blade, plane = sheet.colour(hue, (0.08, 0.17), (0.38, 0.75)), sheet.plane
    bent = Plane(
        plane.x, plane.y - np.float32(sheet.between(-0.25, 0.25)) * plane.x**2, plane.pixel
    )
    wide, slant = sheet.between(0.32, 0.55), sheet.between(0.5, 1.0)
    ribs = bent.x - np.abs(bent.y) * np.float32(slant)
    shape = lens(bent.at(0.1, 0), 0.88, wide)
    if sheet.chance(0.45):
        shape = shape + np.abs(ribs / 0.14 % 1 - 0.5) * 0.12
    vein = lighter(blade, 0.45) if sheet.chance(0.7) else darker(blade, 0.5)
    sheet.paint(line(bent, (-0.98, 0), (-0.5, 0), (0.045, 0.03)), vein)
    sheet.paint(shape, blade, 0.7)
    sheet.glaze(bent.y, darker(blade, 0.5), 0.25, shape)
    sheet.glaze(stripes(ribs, 0.24, 0.14), vein, 0.8, np.maximum(shape + 0.05, -0.8 - bent.x))
    sheet.glaze(line(bent, (-0.8, 0), (0.9, 0), (0.04, 0.008)), vein, 1.0, shape)


@drawing("mushroom")
def mushroom(sheet: Sheet) -> None:
    """A mushroom: domed cap with spots, gills below, stalk with a ring."""
    plane, tall = sheet.plane, sheet.between(0.5, 0.85)
    cap = sheet.colour(sheet.pick([(20, 40), (20, 80), (0, 360)]), (0.06, 0.2), (0.4, 0.7))
    flesh = sheet.colour((60, 100), (0.01, 0.05), (0.8, 0.95))
    slim = sheet.between(0.15, 0.22)
    sheet.paint(line(plane, (0, 0), (0, 0.78), (slim, slim + 0.06)), flesh, 0.9)
    sheet.paint(ellipse(plane.at(0, 0.32), slim + 0.12, 0.08), darker(flesh, 0.15), 0.8)
    under = ellipse(plane.at(0, 0.02), 0.78, 0.2)
    sheet.paint(under, darker(flesh, 0.25), 0.5)
    sheet.glaze(stripes(plane.x / (1.2 + plane.y), 0.11, 0.3), darker(flesh, 0.6), 0.6, under)
    dome = np.maximum(
        ellipse(plane.at(0, 0.02), 0.86, tall + 0.1), plane.y - 0.02 + plane.x**2 * 0.1
    )
    sheet.paint(dome, cap, 0.9)
    if sheet.chance(0.8):
        for x, y, size in ((-0.45, 0.32, 0.13), (-0.05, 0.62, 0.15), (0.4, 0.45, 0.14),
                           (0.1, 0.2, 0.11), (-0.62, 0.1, 0.08), (0.68, 0.12, 0.08)):  # fmt: skip
            spot = ellipse(
                plane.at(x + sheet.between(-0.08, 0.08), -y * tall * 1.4), size, size * 0.8
            )
            sheet.glaze(spot, flesh, 0.95, dome + 0.02)


@drawing("tree", turn=9)
def tree(sheet: Sheet) -> None:
    """A tree: a round crown, perhaps with fruit, or the tiers of a fir, on a trunk."""
    plane, autumn = sheet.plane, sheet.chance(0.25)
    green = sheet.colour((30, 100) if autumn else GREENS, (0.07, 0.15), (0.38, 0.68))
    bark = sheet.colour((40, 75), (0.02, 0.07), (0.28, 0.45))
    thick = sheet.between(0.09, 0.16)
    sheet.paint(line(plane, (0, 1), (0, 0), (thick * 1.4, thick * 0.8)), bark, 0.8)
    if sheet.chance(0.4):
        for tier in (0, 1, 2):
            top, foot, wide = -1 + tier * 0.42, -0.3 + tier * 0.46, 0.42 + tier * 0.17
            sheet.paint(convex(plane, (0, top), (wide, foot), (-wide, foot)), green, 0.9)
        return
    for end in (-0.35, 0.35):
        sheet.paint(line(plane, (0, 0.35), (end, -0.1), (0.06, 0.04)), bark, 0.5)
    for index in range(11, -1, -1):
        angle, far = index * 2.4, 0.05 + 0.045 * index  # the golden angle spreads the tufts
        place = plane.at(math.cos(angle) * far * 1.15, math.sin(angle) * far * 0.85 - 0.4)
        tone = mixed(darker(green, 0.35), lighter(green, 0.2), sheet.between(0, 1))
        sheet.paint(disc(place, sheet.between(0.26, 0.36)), tone, 0.7)
    if sheet.chance(0.35):
        fruit = sheet.colour((10, 60), (0.15, 0.2), (0.5, 0.65))
        for index in range(6):
            place = plane.at(math.cos(index * 2.1) * 0.45, math.sin(index * 1.7) * 0.4 - 0.38)
            sheet.paint(disc(place, 0.075), fruit, 0.7)


# --- things -----------------------------------------------------------------------------------


@drawing("car", turn=12)
def car(sheet: Sheet) -> None:
    """A car from the side: cabin with windows, body, lamps, two wheels."""
    plane, paint = sheet.plane, sheet.colour(chroma=(0.04, 0.2))
    roof, front, rear = (
        sheet.between(-0.62, -0.42),
        sheet.between(0.2, 0.4),
        sheet.between(-0.5, -0.2),
    )
    cabin = convex(plane, (rear, roof), (front, roof), (front + 0.33, 0), (rear - 0.28, 0))
    sheet.paint(cabin, paint, 0.6)
    glass = sheet.colour((200, 250), (0.02, 0.06), sheet.pick([(0.3, 0.45), (0.75, 0.9)]))
    pillar = outline(plane.x - (front + rear) / 2, 0.04)
    sheet.glaze(cabin + 0.09, glass, 1.0, np.maximum(plane.y + 0.06, -pillar))
    body = np.minimum(
        box(plane.at(0, 0.14), 0.97, 0.2, 0.12), box(plane.at(-0.1, 0.02), 0.8, 0.14, 0.1)
    )
    sheet.paint(body, paint, 0.9)
    sheet.glaze(outline(plane.y - 0.08, 0.02), lighter(paint, 0.6), 0.7, body)
    sheet.glaze(outline(pillar, 0.01), darker(paint, 0.5), 0.8, body)
    sheet.paint(ellipse(plane.at(0.9, 0.05), 0.07, 0.08), oklch(0.93, 0.1, 100), 0.2)
    sheet.paint(box(plane.at(-0.92, 0.05), 0.05, 0.08, 0.03), oklch(0.55, 0.2, 27), 0.2)
    tyre, hub = sheet.between(0.22, 0.29), sheet.colour(METAL, (0.0, 0.02), (0.7, 0.9))
    for place in (plane.at(-0.54, 0.34), plane.at(0.54, 0.34)):
        sheet.paint(disc(place, tyre), BLACK, 0.2)
        sheet.paint(disc(place, tyre * 0.58), hub, 0.6)
        sheet.paint(disc(place.folded(5).at(tyre * 0.33, 0), tyre * 0.11), darker(hub, 0.6), 0.0)


@drawing("clock", turn=25)
def clock(sheet: Sheet) -> None:
    """A clock: rim, dial with twelve ticks, hour, minute and sometimes second hand."""
    plane, rim = sheet.plane, sheet.colour(chroma=(0.02, 0.18))
    dark = sheet.chance(0.25)
    dial = sheet.colour(WARM, (0, 0.05), (0.25, 0.4) if dark else (0.85, 0.97))
    ink = WHITE if dark else darker(sheet.colour(chroma=(0, 0.06), lightness=(0.2, 0.35)), 0.2)
    width = sheet.between(0.1, 0.2)
    sheet.paint(disc(plane, 0.95), rim, 1.0)
    sheet.paint(disc(plane, 0.95 - width), darker(rim, 0.6), 0.0)
    sheet.paint(disc(plane, 0.92 - width), dial, 0.25)
    edge, tick = 0.84 - width, sheet.between(0.06, 0.15)
    sheet.paint(line(plane.folded(12), (edge - tick, 0), (edge, 0), (0.022, 0.022)), ink, 0.0)
    sheet.paint(line(plane.folded(4), (edge - tick, 0), (edge, 0), (0.045, 0.045)), ink, 0.0)
    hour, minute = sheet.between(0, 360), sheet.between(0, 360)
    sheet.paint(line(plane.at(0, 0, hour), (-0.1, 0), (0.4, 0), (0.06, 0.045)), ink, 0.0)
    sheet.paint(line(plane.at(0, 0, minute), (-0.12, 0), (edge - 0.1, 0), (0.045, 0.025)), ink, 0.0)
    red = oklch(0.58, 0.2, 28)
    if sheet.chance(0.6):
        second = plane.at(0, 0, sheet.between(0, 360))
        sheet.paint(line(second, (-0.2, 0), (edge, 0), (0.018, 0.018)), red, 0.0)
    sheet.paint(disc(plane, 0.07), red if sheet.chance(0.5) else ink, 0.3)


@drawing("cup")
def cup(sheet: Sheet) -> None:
    """A cup with a handle on a saucer, steaming; plain, banded or dotted."""
    plane, glaze = sheet.plane, sheet.colour(chroma=(0.02, 0.18))
    sheet.paint(ellipse(plane.at(0, 0.82), 0.88, 0.14), lighter(glaze, 0.3), 0.8)
    sheet.paint(ellipse(plane.at(0, 0.79), 0.5, 0.07), darker(glaze, 0.25), 0.2)
    handle = outline(ellipse(plane.at(0.6, 0.18), 0.3, 0.27), 0.065)
    sheet.paint(handle, glaze, 0.8)
    base, top = sheet.between(0.32, 0.52), sheet.between(0.6, 0.68)
    wall = convex(plane, (-top, -0.25), (top, -0.25), (base, 0.8), (-base, 0.8))
    wall = np.minimum(np.maximum(wall, plane.y - 0.7), ellipse(plane.at(0, 0.7), base + 0.02, 0.12))
    sheet.paint(wall, glaze, 0.9)
    kind, mark = sheet.count(0, 3), sheet.colour(chroma=(0.05, 0.2))
    if kind == 1:
        sheet.glaze(outline(plane.y - 0.2 + plane.x**2 * 0.2, 0.12), mark, 0.9, wall)
    elif kind == 2:
        x, _ = cell(plane.x, 0.28)
        y, _ = cell(plane.y, 0.28)
        sheet.glaze(disc(Plane(x, y, plane.pixel), 0.08), mark, 0.9, wall)
    sheet.paint(ellipse(plane.at(0, -0.25), top, 0.17), lighter(glaze, 0.25), 0.2)
    drink = sheet.colour((40, 110), (0.05, 0.1), (0.25, 0.6))
    sheet.paint(ellipse(plane.at(0, -0.23), top - 0.07, 0.12), drink, 0.5)
    steam = sheet.between(0.2, 0.6)
    for start in (-0.25, 0.0, 0.25):
        curl = plane.at(start, 0).x - 0.07 * np.sin(plane.y * 9 + 4 * start)
        curl = outline(curl, 0.035)
        sheet.glaze(curl, WHITE, steam, outline(plane.y + 0.68, 0.25))


@drawing("house", turn=8)
def house(sheet: Sheet) -> None:
    """A house: wall, gabled roof with tiles, chimney, door, crossed windows."""
    plane = sheet.plane
    wall = sheet.colour((30, 110), (0.01, 0.1)) if sheet.chance(0.6) else sheet.colour()
    tile = sheet.colour(sheet.pick([(20, 50), (0, 360)]), (0.03, 0.14), (0.3, 0.6))
    wide, peak = sheet.between(0.62, 0.78), sheet.between(-0.98, -0.75)
    stack = sheet.between(0.25, 0.45)
    sheet.paint(box(plane.at(stack, -0.6), 0.1, 0.34), darker(wall, 0.3), 0.5)
    sheet.paint(box(plane.at(0, 0.38), wide, 0.58), wall, 0.5)
    roof = convex(plane, (0, peak), (wide + 0.2, -0.1), (-wide - 0.2, -0.1))
    sheet.paint(roof, tile, 0.6)
    sheet.glaze(stripes(plane.y, 0.14, 0.2), darker(tile, 0.45), 0.7, roof)
    door, frame = sheet.colour(chroma=(0.04, 0.16), lightness=(0.25, 0.5)), lighter(wall, 0.8)
    place = sheet.between(-0.2, 0.2)
    entrance = box(plane.at(place, 0.62), 0.15, 0.34)
    sheet.paint(entrance - 0.03, frame, 0.0)
    sheet.paint(entrance, door, 0.4)
    sheet.paint(disc(plane.at(place + 0.08, 0.64), 0.03), oklch(0.85, 0.13, 90), 0.0)
    pane = sheet.colour((70, 100) if sheet.chance(0.3) else (210, 250), (0.03, 0.1), (0.4, 0.88))
    for x in (place - 0.46, place + 0.46):
        window = plane.at(min(max(x, 0.2 - wide), wide - 0.2), 0.3)
        sheet.paint(box(window, 0.17, 0.2), frame, 0.0)
        sheet.paint(box(window, 0.135, 0.165), pane, 0.3)
        cross = np.minimum(np.abs(window.x), np.abs(window.y)) - 0.018
        sheet.glaze(cross, frame, 1.0, box(window, 0.15, 0.18))


@drawing("star", turn=40)
def star(sheet: Sheet) -> None:
    """A faceted star with five or six points, each half in light and half in shade."""
    times, plane = sheet.count(5, 6), sheet.plane.at(0, 0.03, -90)
    gold = sheet.chance(0.4)
    colour = sheet.colour(
        (75, 95) if gold else (0, 360), (0.1, 0.2), (0.55, 0.85) if gold else None
    )
    point, sector = plane.folded(times), math.pi / times
    inner = sheet.between(0.4, 0.55)
    corner = (inner * math.cos(sector), inner * math.sin(sector))
    slope = math.hypot(0.97 - corner[0], corner[1])
    shape = ((point.x - 0.97) * corner[1] + np.abs(point.y) * (0.97 - corner[0])) / slope
    sheet.paint(shape, colour, 0.3)
    sheet.glaze(-point.y, darker(colour, sheet.between(0.3, 0.5)), 0.9, shape)
    if sheet.chance(0.5):
        sheet.paint(outline(shape, 0.03), darker(colour, 0.6), 0.0)
    if sheet.chance(0.3):
        sheet.paint(disc(plane, 0.15), lighter(colour, 0.6), 0.6)


@drawing("umbrella", turn=25)
def umbrella(sheet: Sheet) -> None:
    """An open umbrella: panels in turn, scalloped hem, shaft and crook."""
    plane, first = sheet.plane.at(0, -0.05), sheet.colour(chroma=(0.06, 0.22))
    second = lighter(first, 0.7) if sheet.chance(0.5) else sheet.colour(chroma=(0.04, 0.2))
    wood = sheet.colour((40, 80), (0.02, 0.09), (0.25, 0.5))
    sheet.paint(box(plane.at(0, 0.2), 0.035, 0.65, 0.02), wood)
    sheet.paint(arc(plane.at(-0.14, 0.82), 0.14, 0.045, 90), wood)
    sheet.paint(line(plane, (0, -0.95), (0, -0.7), (0.02, 0.03)), wood)
    reach = sheet.between(0.75, 0.9)
    dome = np.maximum(ellipse(plane.at(0, 0.05), 0.96, reach), plane.y - 0.05)
    hem = np.abs((plane.x / 0.96 + 0.2) / 0.4 % 1 - 0.5)  # five panels; 0.5 at their seams
    dome = np.maximum(dome, plane.y + 0.08 - 0.13 * (1 - 4 * (0.5 - hem) ** 2))
    sheet.paint(dome, first, 0.8)
    height = np.sqrt(np.clip(1 - ((plane.y - 0.05) / reach) ** 2, 0.01, 1))
    panel = stripes(plane.x / (0.96 * height) + 0.2, 0.8, 0.5) * 0.5
    sheet.glaze(panel, second, 0.95, dome)
    sheet.glaze(outline(panel, 0.012), darker(first, 0.6), 0.7, dome)


@drawing("wheel", turn=180)
def wheel(sheet: Sheet) -> None:
    """A wheel: tyre, rim, spokes, hub with bolts."""
    plane, times = sheet.plane, sheet.count(5, 12)
    tyre = sheet.colour(chroma=(0.0, 0.05), lightness=(0.18, 0.4))
    metal = sheet.colour(chroma=(0.0, 0.15), lightness=(0.55, 0.9))
    thick, slim = sheet.between(0.1, 0.17), sheet.between(0.03, 0.3 / times + 0.03)
    if sheet.chance(0.3):
        tyre, metal = sheet.colour((40, 70), (0.05, 0.1), (0.35, 0.55)), oklch(0.6, 0.09, 60)
    sheet.paint(outline(disc(plane, 0.96 - thick), thick), tyre, 1.0)
    sheet.paint(outline(disc(plane, 0.92 - thick * 2), 0.05), metal, 0.6)
    reach = 0.9 - thick * 2
    sheet.paint(line(plane.folded(times), (0.1, 0), (reach, 0), (slim * 1.5, slim)), metal, 0.9)
    hub = sheet.between(0.16, 0.26)
    sheet.paint(disc(plane, hub), darker(metal, 0.15), 1.0)
    sheet.paint(disc(plane.folded(5).at(hub * 0.6, 0), hub * 0.15), BLACK, 0.0)
    sheet.paint(disc(plane, hub * 0.3), darker(tyre, 0.2), 0.4)
