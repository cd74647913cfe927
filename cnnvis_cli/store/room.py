"""How much room results and the parts between will take, in bytes.

HDF5's compression depends on the content: the shares here are measured (docs/measurements.md), and
estimates are within a fifth of what is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

PIXEL = 3 * 2  # bytes of a pixel in half precision
IMAGES = 0.88  # of optimized images; what percentiles set to 0 takes a fifth
ZEROED = 0.7
PROJECTIONS = 0.58
PER_FILE = 10_000  # bytes of HDF5 around the arrays of a file


class Room(NamedTuple):
    """Bytes that some work will take: its results, and its parts at the most."""

    results: int
    parts: int

    @property
    def whole(self) -> int:
        return self.results + self.parts


def joined_room(layers: Sequence[Room]) -> Room:
    """Return the room of layers of which each is published before the next."""
    return Room(
        sum(each.results for each in layers), max((each.parts for each in layers), default=0)
    )


def images_room(images: int, size: tuple[int, int], percentile: float, history: int) -> Room:
    """Return the room of optimized images, which percentiles up to one (0..100) make sparse."""
    pixels = images * size[0] * size[1] * PIXEL
    share = IMAGES - ZEROED * percentile / 100
    return Room(int(pixels * share) + images * 4 * history + PER_FILE, pixels)


def projections_room(places: int, size: tuple[int, int]) -> Room:
    """Return the room of projections."""
    pixels = places * size[0] * size[1] * PIXEL
    return Room(int(pixels * PROJECTIONS) + PER_FILE, pixels)


def topk_room(channels: int, layers: int, k: int, parts: int, at_work: int) -> Room:
    """Return the room of a top-k of so many channels and parts, `k` places of either end each.

    At most, 7 groups of each size wait for the next one, and 7 parts and one of each process.
    """
    places = 10 * k
    result = channels * (places + 360) + layers * 22_000
    single = channels * (16 * k + 32 + 8 * 132)
    group = channels * (places + 140 + 8 * 23)
    large = channels * (places + 190 + 64 * 23)
    waiting = (min(parts, 7 + at_work), min(parts // 8, 7), parts // 64)
    return Room(
        result, sum(n * each for n, each in zip(waiting, (single, group, large), strict=True))
    )


def free_bytes(path: Path) -> int:
    """Return the free bytes where a folder is, or will be; 1 << 62 if that is not known."""
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        return shutil.disk_usage(there).free
    except OSError:
        return 1 << 62


def in_words(size: float) -> str:
    """Return bytes for a person: ``1.3 GB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
