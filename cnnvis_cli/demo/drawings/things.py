"""Man-made objects, composed from their parts."""

from __future__ import annotations

import math

import numpy as np

from cnnvis_cli.demo.drawings.entry import (
    BLACK,
    METAL,
    WARM,
    WHITE,
    drawing,
)
from cnnvis_cli.demo.shapes import (
    Plane,
    Sheet,
    arc,
    box,
    cell,
    convex,
    darker,
    disc,
    edge_line,
    ellipse,
    lighter,
    line,
    oklch,
    stripes,
)


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
    pillar = edge_line(plane.x - (front + rear) / 2, 0.04)
    sheet.glaze(cabin + 0.09, glass, 1.0, np.maximum(plane.y + 0.06, -pillar))
    body = np.minimum(
        box(plane.at(0, 0.14), 0.97, 0.2, 0.12), box(plane.at(-0.1, 0.02), 0.8, 0.14, 0.1)
    )
    sheet.paint(body, paint, 0.9)
    sheet.glaze(edge_line(plane.y - 0.08, 0.02), lighter(paint, 0.6), 0.7, body)
    sheet.glaze(edge_line(pillar, 0.01), darker(paint, 0.5), 0.8, body)
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
    handle = edge_line(ellipse(plane.at(0.6, 0.18), 0.3, 0.27), 0.065)
    sheet.paint(handle, glaze, 0.8)
    base, top = sheet.between(0.32, 0.52), sheet.between(0.6, 0.68)
    wall = convex(plane, (-top, -0.25), (top, -0.25), (base, 0.8), (-base, 0.8))
    wall = np.minimum(np.maximum(wall, plane.y - 0.7), ellipse(plane.at(0, 0.7), base + 0.02, 0.12))
    sheet.paint(wall, glaze, 0.9)
    kind, mark = sheet.count(0, 3), sheet.colour(chroma=(0.05, 0.2))
    if kind == 1:
        sheet.glaze(edge_line(plane.y - 0.2 + plane.x**2 * 0.2, 0.12), mark, 0.9, wall)
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
        curl = edge_line(curl, 0.035)
        sheet.glaze(curl, WHITE, steam, edge_line(plane.y + 0.68, 0.25))


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
        sheet.paint(edge_line(shape, 0.03), darker(colour, 0.6), 0.0)
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
    sheet.glaze(edge_line(panel, 0.012), darker(first, 0.6), 0.7, dome)


@drawing("wheel", turn=180)
def wheel(sheet: Sheet) -> None:
    """A wheel: tyre, rim, spokes, hub with bolts."""
    plane, times = sheet.plane, sheet.count(5, 12)
    tyre = sheet.colour(chroma=(0.0, 0.05), lightness=(0.18, 0.4))
    metal = sheet.colour(chroma=(0.0, 0.15), lightness=(0.55, 0.9))
    thick, slim = sheet.between(0.1, 0.17), sheet.between(0.03, 0.3 / times + 0.03)
    if sheet.chance(0.3):
        tyre, metal = sheet.colour((40, 70), (0.05, 0.1), (0.35, 0.55)), oklch(0.6, 0.09, 60)
    sheet.paint(edge_line(disc(plane, 0.96 - thick), thick), tyre, 1.0)
    sheet.paint(edge_line(disc(plane, 0.92 - thick * 2), 0.05), metal, 0.6)
    reach = 0.9 - thick * 2
    sheet.paint(line(plane.folded(times), (0.1, 0), (reach, 0), (slim * 1.5, slim)), metal, 0.9)
    hub = sheet.between(0.16, 0.26)
    sheet.paint(disc(plane, hub), darker(metal, 0.15), 1.0)
    sheet.paint(disc(plane.folded(5).at(hub * 0.6, 0), hub * 0.15), BLACK, 0.0)
    sheet.paint(disc(plane, hub * 0.3), darker(tyre, 0.2), 0.4)
