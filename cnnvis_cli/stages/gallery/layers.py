"""A gallery's content for one layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Pixels, Units
from cnnvis_cli.ascent.climb import Outcome
from cnnvis_cli.digests import digest
from cnnvis_cli.figure import sprites
from cnnvis_cli.figure.tone import TONE_RULES
from cnnvis_cli.measures.unit_facts import (
    digits,
    plain_numbers,
    searched_classes,
)
from cnnvis_cli.nouns import Layer, Size, Unit
from cnnvis_cli.stages.common.lists import in_groups
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.data import (
    OptimizedImages,
    TopImages,
    image_labels,
    unit_label,
)
from cnnvis_cli.stages.gallery.panes import (
    Photographs,
    PicturePane,
    methods_held,
    optimized_pane,
    patches_pane,
    projections_pane,
    styles_held,
    top_of,
)
from cnnvis_cli.stages.gallery.sampled import Sampled
from cnnvis_cli.stages.numbers.unit_tables import UnitTables
from cnnvis_cli.stages.optimize.preference import preference_of
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.seals import content_digest
from cnnvis_cli.store.topk_file import Images, LayerTopK, TopKFile

THUMB, SMALL, ICON = 112, 80, 40  # side in pixels of a picture in the grid, the strip, a list
SHARP = 32  # side in pixels up to which those are lossless
SEARCHED = 4  # classes per unit that a search knows
NAV, NAV_UNITS = 46, 4  # side in pixels of a picture beside a layer's name, and how many
STRIP = 14  # units in a layer's strip
UNIT_PIXELS = 2_000_000  # pixels of a unit's pictures: well below a megabyte, even if noisy
WINDOW = 160  # most pixels per side of a patch: enlarged, it comes from the whole photograph
SHEET_BYTES = 350_000  # of a file of several units' pictures, roughly: all are loaded for one
CHUNK, COLUMNS = 64, 8  # units whose grid pictures share a file, and those per row
SHARES = (0.5, 0.99)  # quantiles that are shown
# What the files depend on besides their sources; the first number counts their versions.
_SIZES = (THUMB, SMALL, ICON, SHARP, STRIP, NAV, UNIT_PIXELS, WINDOW, SHEET_BYTES)
_FILES = (sprites.LOSSLESS_SIDE, sprites.QUALITY, sprites.SMALL_QUALITY, *sprites.BYTES.values())
PAGE_FORM = (12, *_SIZES, *_FILES, CHUNK, COLUMNS, SHARES)


def gallery_folder(session: Session) -> Path:
    return session.run.path / "gallery"


@dataclass(frozen=True)
class Dataset:
    """The known facts on the images of topk."""

    images: Images
    classes: list[str]  # names by label

    def name(self, index: int) -> str:
        return self.images.name(index)

    def labels(self, indices: Sequence[int]) -> list[int]:
        """Return the class of each image, -1 without a class or an image."""
        return image_labels(self.images, indices)


class Face(NamedTuple):
    """How a unit is shown in the grid: by the first picture of a pane."""

    pane: PicturePane
    size: Size
    suffix: str

    @classmethod
    def of(cls, pane: PicturePane, most: int) -> Face:
        size = sprites.within(pane.size, most)
        return cls(pane, size, sprites.suffix([size], SHARP))

    @property
    def record(self) -> Record:
        return {
            "kind": self.pane.kind,
            "name": self.pane.name,
            "suffix": self.suffix,
            "tile": self.size,
            "cell": sprites.padded(self.size),
        }


def covered(layer: Layer) -> list[float]:
    """Return the window of the input over which a layer's map is laid: top, left, bottom, right."""
    starts, ends = [], []
    for axis, cells in zip((layer.local.rows, layer.local.columns), layer.map, strict=True):
        start = axis.start + (axis.size - axis.stride) / 2
        starts.append(start)
        ends.append(start + axis.stride * cells)
    return [*starts, *ends]


@dataclass(frozen=True)
class ShownLayer:
    """A layer as shown in the gallery, with the patches of `photographs` or without."""

    session: Session
    layer: Layer
    dataset: Dataset | None  # None if the run has no topk.h5
    photographs: Photographs | None
    tables: UnitTables

    @property
    def folder(self) -> Path:
        return gallery_folder(self.session) / self.layer.alias

    @cached_property
    def top(self) -> LayerTopK | None:
        return top_of(self.session, self.layer)

    @cached_property
    def lowest(self) -> LayerTopK | None:
        """The lowest places, with ``topk --min``."""
        return TopKFile(self.session.run.topk).lowest(self.layer.alias) if self.top else None

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Histograms of the channels' activations: (C, bins)."""
        return TopKFile(self.session.run.topk).histogram(self.layer.alias)

    @cached_property
    def styles(self) -> list[OptimizedImages]:
        return styles_held(self.session, self.layer)

    @cached_property
    def methods(self) -> list[TopImages]:
        return list(methods_held(self.session, self.layer)) if self.top else []

    @cached_property
    def panes(self) -> list[PicturePane]:
        panes = [optimized_pane(images) for images in self.styles]
        if self.top and self.photographs:
            panes.append(patches_pane(self.layer, self.top, self.photographs))
        panes += [projections_pane(images) for images in self.methods]
        if self.lowest and self.photographs:  # no face, like the last
            low = patches_pane(self.layer, self.lowest, self.photographs)
            panes.append(replace(low, kind="lowest"))
        if self.sampled and self.photographs:
            panes.append(self.sampled.pane(self.photographs))  # the last, and no face
        return panes

    @cached_property
    def sampled(self) -> Sampled | None:
        return Sampled.of(self.session, self.layer) if self.dataset else None

    @cached_property
    def units(self) -> list[int]:
        """The channels of topk, or those with a picture; limited to the requested ones."""
        every = range(self.layer.channels) if self.top else ()
        found = set(every).union(*(pane.held.tolist() for pane in self.panes))
        return sorted(found & set(self.session.units(self.layer)))

    @cached_property
    def labels(self) -> list[str]:
        """The names of the units besides their numbers: classes in the last layer, or found."""
        names = []
        for unit in self.units:
            own = unit_label(self.session, self.layer, unit).partition(" ")[2]
            names.append(own or self.tables.name(Unit(self.layer.alias, unit)))
        return names

    @cached_property
    def faces(self) -> list[Face]:
        shown = [pane for pane in self.panes if pane.kind not in ("lowest", "intervals")]
        return [Face.of(pane, THUMB) for pane in shown]

    @cached_property
    def icon(self) -> Face | None:
        """How a unit is shown in lists of several layers; None without pictures."""
        return Face.of(self.panes[self.usual], ICON) if self.panes else None

    @property
    def usual(self) -> int:
        """The number of the pane with most units, the first of equals."""
        counts = [np.isin(self.units, pane.held).sum() for pane in self.panes]
        return int(np.argmax(counts)) if counts else 0

    @cached_property
    def sizes(self) -> list[Size]:
        """The stored size of each pane's pictures: their own, as far as there is room."""
        sizes = []
        for pane in self.panes:
            whole = pane.kind in ("optimized", "projections")
            sizes.append(pane.size if whole else sprites.within(pane.size, WINDOW))
        pixels = self._pixels(sizes)
        share = min(1, math.sqrt(UNIT_PIXELS / pixels)) if pixels else 1
        return [sprites.within(size, share * max(size)) for size in sizes]

    def _pixels(self, sizes: Sequence[Size]) -> int:
        """Return the pixels of a unit's pictures of these sizes."""
        return sum(p.count * math.prod(s) for p, s in zip(self.panes, sizes, strict=True))

    @property
    def unit_bytes(self) -> float:
        """The bytes of a unit's pictures, roughly; 0 without any."""
        return self._pixels(self.sizes) * sprites.BYTES[self.suffix] if self.panes else 0.0

    @property
    def in_sheet(self) -> int:
        """The number of units whose pictures share a file."""
        return max(1, min(CHUNK, int(SHEET_BYTES / (self.unit_bytes or SHEET_BYTES))))

    @property
    def suffix(self) -> str:
        return sprites.suffix(self.sizes)

    @cached_property
    def key(self) -> str:
        """The digest of everything that the layer's files depend on."""
        run, alias = self.session.run, self.layer.alias
        sources = (run.topk, run.optimized(alias), run.projected(alias), run.sample)
        return digest(
            {
                "form": PAGE_FORM,
                "layer": [alias, self.layer.module],
                "units": self.units,
                "labels": self.labels,
                "tables": self.tables.key(alias),
                "classes": self.dataset.classes if self.dataset else [],
                "tone": TONE_RULES[self.session.plan.figure.tone],
                "panes": [[p.kind, p.name, p.size, p.count] for p in self.panes],
                "sources": [content_digest(path) for path in sources if path.is_file()],
            }
        )

    @property
    def chunks(self) -> int:
        return -(-len(self.units) // CHUNK)

    def chunk(self, number: int) -> list[int]:
        return self.units[number * CHUNK : (number + 1) * CHUNK]

    def sheets(self, number: int) -> list[list[int]]:
        """Return the units of a chunk, by the file of their pictures."""
        return list(map(list, in_groups(self.chunk(number), self.in_sheet)))

    def sheet_name(self, units: Units) -> str:
        """Return the name of the file with the pictures of some units: that of the first."""
        return f"{units[0]:04d}.{self.suffix}"

    def rows(self, pictures: Sequence[Pixels]) -> Pixels:
        """Return the pictures of a unit: one row of pictures (count, h, w, 3) per pane."""
        rows = []
        for tiles, size in zip(pictures, self.sizes, strict=True):
            rows.append(sprites.mosaic(tiles, size, len(tiles)))
        return sprites.stacked(rows)

    @property
    def plan(self) -> Record:
        """The places of a unit's pictures; `units` share a file, one below the other."""
        panes, below, width = [], 0, 0
        for pane, size in zip(self.panes, self.sizes, strict=True):
            cell = sprites.padded(size)
            panes.append(
                {
                    "kind": pane.kind,
                    "name": pane.name,
                    "top": below,
                    "tile": size,
                    "cell": cell,
                    "size": pane.size,
                    "count": pane.count,
                }
            )
            below, width = below + cell[0], max(width, pane.count * cell[1])
        units = self.in_sheet
        return {"suffix": self.suffix, "units": units, "size": (below, width), "panes": panes}

    def best(self) -> tuple[list[Face], list[int]]:
        """Return how the strip shows which units: the most selective ones with its pictures.

        These are patches beside optimized images, if any unit has both.
        """
        if not self.panes or not self.units:
            return [], []
        panes, rank = self._in_strip(), self._rank()
        held = set(self.units).intersection(*(pane.held.tolist() for pane in panes))
        units = sorted(held, key=lambda unit: (-rank[unit], unit))
        return [Face.of(pane, SMALL) for pane in panes], units[: STRIP // len(panes)]

    def _in_strip(self) -> list[PicturePane]:
        """Return patches and optimized images of one size, or the usual pane."""
        first, *others = sorted(self.panes, key=lambda pane: pane.kind != "patches")
        for pane in others if first.kind == "patches" else ():
            both = np.intersect1d(first.held, pane.held)
            if pane.kind == "optimized" and np.isin(both, self.units).any():
                return [first, pane]
        return [self.panes[self.usual]]

    def _rank(self) -> NDArray[np.float64]:
        """Return the rank of the channels: selectivity, or the largest value; (C,)."""
        rank = np.full(self.layer.channels, -np.inf)
        for name in ("max", "selectivity"):
            known = self.top.stats[name] if self.top else rank
            if np.isfinite(known).any():
                rank = np.where(np.isfinite(known), known, -np.inf)
        return rank

    @property
    def listed(self) -> Record:
        """Return what lists of units of several layers need: how to find an icon."""
        every = self.units == list(range(len(self.units)))
        found: Record = {"units": len(self.units) if every else self.units}
        if self.icon:
            found |= {"tile": self.icon.size, "suffix": self.icon.suffix}
        return found

    @property
    def searched(self) -> Record:
        """Return what a search knows of the units: names, and classes of their top images."""
        found: Record = {"labels": self.labels} if any(self.labels) else {}
        if self.top and self.dataset:
            images = self.top.places.image[self.units]
            found |= {"k": int(images.shape[1]), "classes": []}
            for row in images.tolist():
                found["classes"].append(searched_classes(self.dataset.labels(row), SEARCHED))
        return found

    @property
    def dead(self) -> int:
        return int(self.top.stats["dead"][self.units].sum()) if self.top else 0

    @property
    def record(self) -> Record:
        """Return the page's data for the grid: columns with one value per unit."""
        layer = self.layer
        return {
            "alias": layer.alias,
            "module": layer.module,
            "map": layer.map,
            "field": layer.field.size,
            "covers": covered(layer),
            "chunk": CHUNK,
            "columns": COLUMNS,
            "units": self.units,
            "labels": self.labels if any(self.labels) else None,
            "k": int(self.top.places.image.shape[1]) if self.top else 0,
            "sheet": self.plan,
            "usual": self.usual,
            "faces": [face.record | self._held_by(face.pane) for face in self.faces],
            **self._columns(),
        }

    def _held_by(self, pane: PicturePane) -> Record:
        """Return the places, in the list of units, of those without such a picture.

        Of optimized images also their ratios to the best photograph.
        """
        lacks = np.flatnonzero(~np.isin(self.units, pane.held)).tolist()
        ratios = self.ratios(pane)
        return {"lacks": lacks} | ({"ratios": list(map(ratios.get, self.units))} if ratios else {})

    def ratios(self, pane: PicturePane) -> dict[int, float]:
        """Return how many times the best photograph's value the units' optimized images reach.

        Units without an optimized image, or with no photograph above 0, are left out.
        """
        run, alias = self.session.run, self.layer.alias
        found = preference_of(run, alias, pane.name) if pane.kind == "optimized" else None
        if found is None:
            return {}
        pairs = zip(found.units.tolist(), found.ratio.tolist(), strict=True)
        return {unit: digits(ratio) for unit, ratio in pairs if math.isfinite(ratio)}

    def _columns(self) -> Record:
        columns: Record = {"outcome": self._outcomes()}
        if self.top and self.dataset:
            for name in ("max", "selectivity", "active"):
                columns[name] = plain_numbers(self.top.stats[name][self.units])
            columns["dead"] = np.flatnonzero(self.top.stats["dead"][self.units]).tolist()
            images = self.top.places.image[self.units]
            columns["classes"] = []
            for row in images.tolist():
                known = set(self.dataset.labels(row))
                columns["classes"].append(sorted(known - {-1}))
        return columns

    def _outcomes(self) -> list[int]:
        """Return the outcome of each unit's best ascent, in the first style shown."""
        found = np.full(self.layer.channels, int(Outcome.NOT_DONE))
        if self.styles:
            images = self.styles[0]
            best = images.file.read(images.style, "activation").argmax(axis=1)
            ends = images.file.read(images.style, "outcome")
            found[images.held] = ends[np.arange(len(best)), best]
        return list(found[self.units].tolist())
