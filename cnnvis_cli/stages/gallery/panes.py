"""The pictures that a gallery shows of units: optimized, patches, projections."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Floats, Pixels, Units
from cnnvis_cli.ascent.styles import ordered_styles
from cnnvis_cli.digests import file_digest
from cnnvis_cli.errors import CnnvisError, Gone, StorageError
from cnnvis_cli.figure.tone import common_divisor, toned
from cnnvis_cli.figure.windows import OUTSIDE, crop
from cnnvis_cli.nouns import Layer, Size
from cnnvis_cli.stages.common.dataset_images import image_reader
from cnnvis_cli.stages.common.lists import in_groups
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.data import (
    SQUARE,
    STRONGEST_SHOWN,
    OptimizedImages,
    TopImages,
)
from cnnvis_cli.stages.figures.montages import UNITS_AT_ONCE
from cnnvis_cli.stages.figures.selection import Held
from cnnvis_cli.store.optimized import OptimizedFile
from cnnvis_cli.store.projected import ProjectedFile
from cnnvis_cli.store.topk_file import LayerTopK, TopKFile

TRIED_IMAGES = 16  # images that are tried before patches are given up


@dataclass(frozen=True)
class PicturePane:
    """Pictures of one kind, of those units of a layer that have them."""

    kind: Literal["optimized", "patches", "projections", "lowest", "intervals"]
    name: str  # of the style or the method
    size: Size
    count: int  # number of pictures per unit
    held: Held
    draw: Callable[[Units], Pixels]  # (n, count, h, w, 3)

    def pictures(self, units: Units) -> Pixels:
        """Return the units' pictures (n, count, h, w, 3), grey if a unit has none."""
        found = np.full((len(units), self.count, *self.size, 3), OUTSIDE, np.uint8)
        held = np.isin(units, self.held)
        if held.any():
            found[held] = self.draw(np.asarray(units)[held].tolist())
        return found


def optimized_pane(images: OptimizedImages) -> PicturePane:
    """Return a pane of the best images of each run in one style, the best of all first."""
    plan, mean = images.session.plan.figure, images.session.network.preprocessing.mean
    tone = "true" if images.is_accent else plan.tone
    tops: list[float] = []  # the divisor of a whole sheet, once it is known

    def draw(units: Units) -> Pixels:
        if tone == "sheet" and not tops:
            tops.append(_best_of_images(images))
        return toned(_run_pictures(images, units), tone, mean, *tops)

    count = min(images.count, SQUARE)
    return PicturePane("optimized", images.style, images.size, count, images.held, draw)


def _best_of_images(images: OptimizedImages) -> float:
    some = in_groups(images.held.tolist(), UNITS_AT_ONCE)
    return max(common_divisor(_run_pictures(images, few)) for few in some)


def best_first(activation: NDArray[np.float32]) -> list[int]:
    """Return the runs of one unit that are shown: the best, then the others by number."""
    best = int(activation.argmax())
    return [best, *(run for run in range(len(activation)) if run != best)][:SQUARE]


def _run_pictures(images: OptimizedImages, units: Units) -> Floats:
    """Return the runs of some units (n, count, h, w, 3); neighbouring units are read together."""
    rows = np.searchsorted(images.held, units)
    first, last = int(rows.min()), int(rows.max())
    if last - first > 2 * len(rows):
        return np.concatenate([_run_pictures(images, [unit]) for unit in units])
    read = slice(first, last + 1)
    pictures = images.file.read(images.style, "image", read)
    values = images.file.read(images.style, "activation", read)
    found = [pictures[row][best_first(values[row])] for row in rows - first]
    return np.stack(found).astype(np.float32)


def projections_pane(images: TopImages) -> PicturePane:
    """Return a pane of what caused the strongest places, by one method."""
    tone = images.session.plan.figure.tone
    tops: list[float] = []

    def draw(units: Units) -> Pixels:
        if tone == "sheet" and not tops:
            some = (images.projections([unit]) for unit in images.held.tolist())
            tops.append(max(map(common_divisor, some)))
        return toned(images.projections(units), tone, top=tops[0] if tops else None)

    places = images.top.places.image
    held = images.held[(places[images.held] >= 0).any(axis=1)]
    return PicturePane("projections", images.method, images.size, images.shown, held, draw)


def patches_pane(layer: Layer, top: LayerTopK, photographs: Photographs) -> PicturePane:
    """Return a pane of the image patches of the strongest places."""
    size = layer.tile_size(photographs.size)
    count = min(STRONGEST_SHOWN, top.places.image.shape[1])

    def draw(units: Units) -> Pixels:
        found = np.full((len(units), count, *size, 3), OUTSIDE, np.uint8)
        for i, unit in enumerate(units):
            for rank in np.flatnonzero(top.places.image[unit, :count] >= 0).tolist():
                image = photographs.read(int(top.places.image[unit, rank]))
                if image is not None:
                    found[i, rank] = crop(image, top.tile(unit, rank, photographs.size))
        return found

    held = np.flatnonzero((top.places.image >= 0).any(axis=1))
    return PicturePane("patches", "", size, count, held, draw)


@dataclass(frozen=True)
class Photographs:
    """The dataset's images, as far as they can still be read."""

    session: Session
    lost: set[int]  # images that could not be read

    @property
    def size(self) -> Size:
        return self.session.network.size

    @cached_property
    def _read(self) -> Callable[[int], Pixels]:
        return image_reader(self.session)

    def read(self, index: int) -> Pixels | None:
        """Return an image's pixels; None if it is missing or has changed.

        Raise `StorageError` for one that may be read another time.
        """
        if index in self.lost:
            return None
        try:
            return self._read(index)
        except CnnvisError as error:
            if isinstance(error, StorageError) and not isinstance(error, Gone):
                raise
            self.lost.add(index)
            return None

    def are_there(self, wanted: Held) -> bool:
        """Return whether any of a few of the wanted images can be read."""
        step = max(1, len(wanted) // TRIED_IMAGES)
        return any(self.read(index) is not None for index in wanted[::step].tolist())


def styles_held(session: Session, layer: Layer) -> list[OptimizedImages]:
    """Return the styles with images of units, the planned ones first (no sums or directions)."""
    file = OptimizedFile(session.run.optimized(layer.alias))
    planned = session.plan.optimize.style
    names = sorted(ordered_styles(file.styles()), key=lambda name: name not in planned)
    found = [OptimizedImages(session, layer, name) for name in names]
    return [images for images in found if not images.made.get("targets") and len(images.held)]


def methods_held(session: Session, layer: Layer) -> Iterator[TopImages]:
    """Yield the projections of the places in this topk.h5; others are reported and left out."""
    path = session.run.projected(layer.alias)
    for name, made in ProjectedFile(path).methods().items():
        if not session.run.topk.is_file() or made["topk"] != file_digest(session.run.topk):
            session.report.note(f"{path}: {name} is of another topk.h5; left out")
            continue
        yield TopImages(session, layer, name)


def top_of(session: Session, layer: Layer) -> LayerTopK | None:
    """Return a layer's strongest places; None if topk did not include it."""
    file = TopKFile(session.run.topk)
    if file.identity() is None or layer.alias not in file.layers():
        return None
    return file.layer(layer.alias)
