"""Animals, faces and plants, composed from their parts."""

from __future__ import annotations

import math

import numpy as np

from cnnvis_cli.demo.drawings.entry import (
    BLACK,
    BLUES,
    GREENS,
    WARM,
    WHITE,
    drawing,
    eye,
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
    lens,
    lighter,
    line,
    mixed,
    oklch,
    stripes,
)


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
    sheet.paint(edge_line(socket, 0.03), darker(fur, 0.8), 0.0)
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
    sheet.paint(edge_line(almond, 0.018), darker(skin, 0.8), 0.0)
    brow = sheet.between(-0.24, -0.16)
    sheet.paint(
        line(both, (0.12, brow), (0.4, brow + 0.02), (0.035, 0.022)), darker(hair, 0.3), 0.0
    )
    sheet.paint(line(plane, (0, 0), (0, 0.24), (0.03, 0.08)), darker(skin, 0.14), 0.2)
    lips = sheet.colour((5, 30), (0.1, 0.16), (0.4, 0.6))
    if sheet.chance(0.3):
        sheet.paint(ellipse(plane.at(0, 0.52), 0.15, 0.1), darker(lips, 0.5), 0.0)
        sheet.paint(edge_line(ellipse(plane.at(0, 0.52), 0.15, 0.1), 0.03), lips, 0.0)
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
        scale = edge_line(disc(Plane(x + 0.05, y, plane.pixel), 0.09), 0.018)
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
