"""Textures that fill the image."""

from __future__ import annotations

import math

import numpy as np

from cnnvis_cli.demo.drawings.entry import (
    cover,
    drawing,
    pair,
)
from cnnvis_cli.demo.shapes import (
    Plane,
    Sheet,
    box,
    cell,
    darker,
    disc,
    length,
    lighter,
    lottery,
    mixed,
    stripes,
)


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
