"""Windows of images: cut out, also where they reach outside, and put into each other."""

from __future__ import annotations

import numpy as np

from cnnvis_cli.arrays import Floats, Pixels
from cnnvis_cli.nouns import Box

OUTSIDE = 128  # the colour outside the image


def paste_window(tile: Floats, shown: Box, frame: Floats, held: Box) -> None:
    """Put the part of a stored frame that lies in a tile's window there."""
    top, left = max(shown.top, held.top), max(shown.left, held.left)
    bottom, right = min(shown.bottom, held.bottom), min(shown.right, held.right)
    if top < bottom and left < right:
        both = Box(top, left, bottom, right)
        there, here = both.within(shown), both.within(held)
        tile[there.top : there.bottom, there.left : there.right] = frame[
            here.top : here.bottom, here.left : here.right
        ]


def crop(image: Pixels, box: Box) -> Pixels:
    """Return a window of an image, (h, w, 3); grey outside the image."""
    patch = np.full((*box.size, 3), OUTSIDE, np.uint8)
    inside = box.clip((image.shape[0], image.shape[1]))
    top, left = inside.top - box.top, inside.left - box.left
    height, width = inside.size
    patch[top : top + height, left : left + width] = image[
        inside.top : inside.bottom, inside.left : inside.right
    ]
    return patch
