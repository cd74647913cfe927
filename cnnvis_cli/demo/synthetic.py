"""Images drawn by code: 24 classes of patterns and objects, any number of images per class.

The bundled network is trained and run on them, so that everything can be tried without a download.
An image is an object or a pattern before some clutter, lit from one side, seen by a noisy camera.
"""

from __future__ import annotations

import functools
import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.demo.drawings import DRAWINGS, Drawing
from cnnvis_cli.demo.shapes import (
    Colour,
    Field,
    Plane,
    Sheet,
    disc,
    ellipse,
    gathered,
    line,
    oklch,
    spread,
    stripes,
)

CLASSES: tuple[str, ...] = tuple(sorted(DRAWINGS))


def draw(name: str, seed: int, size: int = 112) -> NDArray[np.uint8]:
    """Return an image of a class, (size, size, 3) RGB, determined by name, seed and size."""
    if name not in DRAWINGS:
        raise ValueError(f"no drawing is called {name!r}; there are {', '.join(CLASSES)}")
    digest = hashlib.sha256(f"{name}/{seed}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    light = float(rng.uniform(0, 360))
    behind, lightness = backdrop(rng, size)
    plane, lit = posed(rng, DRAWINGS[name], frame(size), light)
    sheet = Sheet(plane, rng, lightness, lit)
    DRAWINGS[name].paint(sheet)
    picture = behind * (1 - shadow(sheet, light)) * (1 - sheet.ink[3]) + sheet.ink[:3]
    picture = seen(rng, illuminated(rng, picture, light))
    return np.asarray(picture * 255 + 0.5, np.uint8).transpose(1, 2, 0).copy()


@functools.lru_cache(maxsize=8)
def frame(size: int) -> Plane:
    """Return the image's own plane: its edges are at -1 and 1."""
    ticks = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    x, y = np.meshgrid(ticks, ticks)
    return Plane(x, y, 2 / size)


def posed(
    rng: np.random.Generator, drawing: Drawing, image: Plane, light: float
) -> tuple[Plane, Field]:
    """Return an object's plane, moved, rotated, sheared, perhaps mirrored; and its lit side."""
    scale = float(rng.uniform(0.64, 1.02))
    room = 1.1 - scale * 0.85  # how far the centre may move while most of the object stays inside
    across, down = (float(rng.uniform(-0.7, 0.7)) * room for _ in "xy")
    turned = image.at(across, down, float(rng.uniform(-drawing.turn, drawing.turn)))
    shear, flip = float(rng.uniform(-0.15, 0.15)), float(rng.choice([-1.0, 1.0]))
    x = (turned.x + turned.y * shear) * (flip / scale)
    y = turned.y * (float(rng.uniform(0.92, 1.08)) / scale)
    return Plane(x, y, image.pixel / scale), image.at(across, down, light).x / scale


def backdrop(rng: np.random.Generator, size: int) -> tuple[Field, float]:
    """Return the background, (3, size, size), and its mean lightness."""
    lightness = float(rng.uniform(0.35, 0.9))
    sheet = Sheet(frame(size), rng, lightness, frame(size).x)
    hue = float(rng.uniform(0, 360))
    near = (max(lightness - 0.14, 0.1), min(lightness + 0.14, 0.97))
    first, second = (
        sheet.colour((hue + turn - 30, hue + turn + 30), (0.02, 0.12), near)
        for turn in (0, sheet.between(-90, 90))
    )
    across = sheet.plane.at(0, 0, sheet.between(60, 120)).x * np.float32(sheet.between(0.5, 6))
    share = np.clip(0.5 + 0.5 * (across + sheet.between(-0.5, 0.5)), 0, 1)
    sheet.ink[:3] = first[:, None, None] * (1 - share) + second[:, None, None] * share
    sheet.ink[:3] += spread(rng.standard_normal((1, 6, 6), np.float32), size) * 0.05
    sheet.ink[:3] += spread(rng.standard_normal((3, 14, 14), np.float32), size) * 0.015
    if sheet.chance(0.6):
        clutter(sheet, near)
    return np.clip(sheet.ink[:3], 0, 1), lightness


def faint(sheet: Sheet, distance: Field, colour: Colour) -> None:
    """Return a shape of the background: flat and half transparent."""
    sheet.paint(distance, colour, 0.0, sheet.between(0.15, 0.6))


def clutter(sheet: Sheet, lightness: tuple[float, float]) -> None:
    """Scatter a few faint shapes over the background: spots, strokes, blobs, stripes."""
    if sheet.chance(0.25):
        plane = sheet.plane.at(0, 0, sheet.between(0, 180))
        bands = stripes(plane.x, sheet.between(0.1, 0.4), sheet.between(0.2, 0.6))
        faint(sheet, bands, oklch(sheet.between(*lightness), 0.03, sheet.between(0, 360)))
    for _ in range(sheet.count(1, 5)):
        across, down = sheet.between(-1.1, 1.1), sheet.between(-1.1, 1.1)
        place = sheet.plane.at(across, down, sheet.between(0, 180))
        reach, slim = sheet.between(0.1, 0.6), sheet.between(0.02, 0.08)
        shapes = (
            lambda p, r=reach: disc(p, r),
            lambda p, r=reach, s=slim: line(p, (-r, 0), (r, 0), (s, s)),
            lambda p, r=reach: ellipse(p, r, r / 2),
        )
        distance = shapes[sheet.count(0, 2)](place)
        faint(sheet, distance, sheet.colour(chroma=(0.0, 0.12), lightness=lightness))


def shadow(sheet: Sheet, light: float) -> Field:
    """Return the object's soft shadow away from the light: how much it darkens, (H, W)."""
    size = sheet.plane.x.shape[-1]
    soft = spread(gathered(sheet.ink[3], max(size // 5, 4)), size)
    reach, angle = round(size * 0.04), math.radians(light)
    down, right = round(math.sin(angle) * reach), round(math.cos(angle) * reach)
    padded = np.pad(soft, reach, mode="edge")
    window = padded[reach + down : reach + down + size, reach + right : reach + right + size]
    return window * np.float32(0.45)


def illuminated(rng: np.random.Generator, picture: Field, light: float) -> Field:
    """Return an image with light from one side, and its exposure: brightness, contrast, warmth."""
    slope = frame(picture.shape[-1]).at(0, 0, light).x
    picture = picture * (1 + slope * np.float32(rng.uniform(0.0, 0.28)))
    warmth = float(rng.uniform(-0.06, 0.06))
    tint = np.array([1 + warmth, 1, 1 - warmth], np.float32)[:, None, None]
    contrast, bright = float(rng.uniform(0.85, 1.15)), float(rng.uniform(-0.08, 0.08))
    return (picture * tint - 0.5) * contrast + 0.5 + bright


def seen(rng: np.random.Generator, picture: Field) -> Field:
    """Return the camera's image: a little blur, a little noise, values clipped to [0, 1]."""
    side = float(rng.uniform(0, 0.22))  # weight of each neighbour
    padded = np.pad(picture, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, 1:-1] * (1 - 2 * side) + (padded[:, :-2] + padded[:, 2:]) * side
    picture = rows[..., 1:-1] * (1 - 2 * side) + (rows[..., :-2] + rows[..., 2:]) * side
    noise = rng.standard_normal(picture.shape, np.float32)
    return np.clip(picture + noise * np.float32(rng.uniform(0.002, 0.018)), 0, 1)
