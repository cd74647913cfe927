"""Strengths as colours, and as colours over a photograph."""

from __future__ import annotations

import numpy as np

from cnnvis_cli.arrays import Floats, Pixels

# The colour map inferno of matplotlib (S. van der Walt and N. Smith 2015, CC0), at every eighth
# of its range: perceptually uniform, in grey print too. It is interpolated linearly.
INFERNO = (
    (0, 0, 4),
    (33, 12, 74),
    (87, 16, 110),
    (138, 34, 106),
    (188, 55, 84),
    (227, 89, 51),
    (249, 140, 10),
    (249, 201, 50),
    (252, 255, 164),
)
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in a grey (ITU-R BT.601)
PHOTOGRAPH_BRIGHTNESS = (
    0.6  # brightness of a photograph under colours; brighter ones would hide them
)
CAP = 99  # percentile shown by the strongest colour (Smilkov et al. 2017, section 2.3)


def capped(magnitude: Floats) -> Floats:
    """Return magnitudes (h, w) as strengths: 1 is the 99th percentile of the non-zero ones."""
    on = magnitude[magnitude > 0]
    top = np.percentile(on, CAP) if on.size else 1
    strength: Floats = np.clip(magnitude / np.float32(top), 0, 1).astype(np.float32)
    return strength


def over_range(values: Floats, low: float) -> Floats:
    """Return values (h, w) as strengths: 0 is `low`, 1 the largest; 0 everywhere if all are low."""
    span = float(values.max()) - low
    return ((values - low) / (span if span > 0 else 1)).astype(np.float32)


def to_largest(values: Floats) -> Floats:
    """Return non-negative values (h, w) as strengths, 0 to 1: 1 is the largest."""
    top = values.max()
    return (values / top if top > 0 else values).astype(np.float32)


def coloured(strength: Floats) -> Pixels:
    """Return strengths (h, w) as colours from 0, black, to 1, pale yellow: (h, w, 3)."""
    at = np.linspace(0, 1, len(INFERNO))
    bands = [np.interp(strength, at, band) for band in zip(*INFERNO, strict=True)]
    colours: Pixels = np.rint(np.stack(bands, axis=-1)).astype(np.uint8)
    return colours


def in_grey(strength: Floats) -> Pixels:
    """Return strengths (h, w) as greys from 0, black, to 1, white: (h, w, 3)."""
    levels = np.rint(strength * 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=-1)


def over(photograph: Pixels, strength: Floats) -> Pixels:
    """Return a photograph (h, w, 3) in dim grey, covered by the colours of strengths (h, w)."""
    dim = (photograph @ np.array(LUMA) * PHOTOGRAPH_BRIGHTNESS)[..., None]
    opacity = strength[..., None]
    mixed: Pixels = np.rint((1 - opacity) * dim + opacity * coloured(strength)).astype(np.uint8)
    return mixed


def colour_bar(height: int, width: int) -> Pixels:
    """Return all colours from left to right, 0 to 1: (height, width, 3)."""
    row = np.linspace(0, 1, width, dtype=np.float32)
    return coloured(np.broadcast_to(row, (height, width)))
