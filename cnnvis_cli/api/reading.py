"""A run directory opened from Python: its results, and pictures of its units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli import histogram
from cnnvis_cli.arrays import Floats, Pixels
from cnnvis_cli.digests import file_digest
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure import sheets
from cnnvis_cli.figure.canvas import Canvas, Picture, resized, scaled
from cnnvis_cli.figure.grid import columns_of
from cnnvis_cli.figure.tone import TONE_RULES, toned
from cnnvis_cli.figure.windows import crop
from cnnvis_cli.nouns import Box, Layer, Size, Unit
from cnnvis_cli.report import Report
from cnnvis_cli.settings import MontagePlan, Plan
from cnnvis_cli.stages.common.class_names import class_names, classes_of
from cnnvis_cli.stages.common.dataset_images import image_reader
from cnnvis_cli.stages.common.network_loading import bare_network, planned_for
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.data import (
    OptimizedImages,
    TopImages,
    projected_of,
    style_of,
    unit_label,
)
from cnnvis_cli.stages.figures.montage import KINDS
from cnnvis_cli.stages.figures.selection import Held
from cnnvis_cli.stages.gallery.panes import (
    Photographs,
    PicturePane,
    optimized_pane,
    patches_pane,
    projections_pane,
    styles_held,
)
from cnnvis_cli.store.hdf5 import Array
from cnnvis_cli.store.inside import check_inside
from cnnvis_cli.store.optimized import OptimizedFile
from cnnvis_cli.store.projected import ProjectedFile
from cnnvis_cli.store.run import Run
from cnnvis_cli.store.topk_file import Images, LayerTopK, TopKFile, box_of

TITLES = {
    "optimized": "preferred, style {}",
    "patches": "strongest in images",
    "projections": "{} projections",
}
SEEN = 64  # least size in pixels of a tile on the screen, reached by a whole factor


@dataclass(frozen=True)
class Strongest:
    """One of the places that activate a unit most.

    `path` is the image's, relative to the dataset; `class_name` that of its class folder, empty
    without one. `activation` is the unit's value, before any ReLU, at `place` (row, column) of its
    layer's map. `box` (top, left, bottom, right) is the field of the place, in pixels of the
    preprocessed image: half-open, not clipped, so it may reach outside.
    """

    path: str
    class_name: str
    activation: float
    place: tuple[int, int]
    box: Box


def look(plan: Plan) -> Session:
    """Open a run directory for reading: nothing is computed, written or locked.

    Raise `UsageError` if there is no run.
    """
    run = Run(plan.folder)
    check_inside(run.path)
    if not run.read():
        raise UsageError(f"{run.path} holds no run; begin one with cnnvis_cli.begin(model=...)")
    plan = planned_for(plan)
    return Session(plan, bare_network(plan, run), run, Report(quiet=True))


@dataclass(frozen=True)
class Places:
    """The content of one topk.h5, each part read when it is first needed."""

    session: Session
    digest: str
    _layers: dict[str, LayerTopK] = field(default_factory=dict)

    @property
    def file(self) -> TopKFile:
        return TopKFile(self.session.run.topk)

    @cached_property
    def images(self) -> Images:
        return self.file.images()

    @cached_property
    def photographs(self) -> Photographs:
        return Photographs(self.session, set())

    @cached_property
    def classes(self) -> list[str]:
        """The names of the class folders."""
        own, file = self.session.network.classes, self.session.plan.figure.classes
        return class_names(classes_of(self.session.run, self.images), own, file)

    def layer(self, alias: str) -> LayerTopK:
        """Return a layer's places; raise `UsageError` if topk did not include it."""
        if alias not in self._layers:
            self._layers[alias] = self.file.layer(alias)
        return self._layers[alias]

    def class_name(self, image: int) -> str:
        """Return the class of an image, empty if it has none."""
        label = int(self.images.label[image]) if image >= 0 else -1
        return self.classes[label] if label >= 0 else ""


class Reading:
    """A run's results as values. The content of topk.h5 is cached while the file is unchanged."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._places: Places | None = None

    @property
    def places(self) -> Places:
        """The content of topk.h5; raise `UsageError` before topk."""
        path = self.session.run.topk
        if not path.is_file():
            raise UsageError(f"{path.parent} has no topk.h5 yet; run topk first")
        digest = file_digest(path)
        if self._places is None or self._places.digest != digest:
            self._places = Places(self.session, digest)
        return self._places

    def strongest(self, layer: Layer, unit: int) -> list[Strongest]:
        """Return the unit's stored places, the strongest first; empty slots are left out."""
        return list(self._strongest(layer, unit))

    def _strongest(self, layer: Layer, unit: int) -> Iterator[Strongest]:
        known = self.places
        top = known.layer(layer.alias)
        for rank in _filled(top, unit):
            image = int(top.places.image[unit, rank])
            yield Strongest(
                known.images.name(image),
                known.class_name(image),
                float(top.places.activation[unit, rank]),
                (int(top.places.row[unit, rank]), int(top.places.column[unit, rank])),
                box_of(top.box[unit, rank]),
            )

    def patches(self, layer: Layer, unit: int) -> list[Pixels]:
        """Return the image patches of the strongest places, (h, w, 3) each.

        Raise `CnnvisError` for an image that is missing or has changed since.
        """
        known = self.places
        top = known.layer(layer.alias)
        found = []
        for rank in _filled(top, unit):
            shown = top.tile(unit, rank, known.photographs.size)
            found.append(crop(self._photograph(int(top.places.image[unit, rank])), shown))
        return found

    def _photograph(self, image: int) -> Pixels:
        found = self.places.photographs.read(image)
        return image_reader(self.session)(image) if found is None else found

    def stats(self, layer: Layer) -> dict[str, Array]:
        """Return a layer's statistics by name, (C,) each, quantiles (C, Q)."""
        return dict(self.places.layer(layer.alias).stats)

    def histogram(self, layer: Layer) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return bin edges (B + 1,), and the number of each unit's places in each bin (C, B)."""
        self.places.layer(layer.alias)  # raises its error
        return histogram.edges(), self.places.file.histogram(layer.alias)

    def optimized(self, layer: Layer, style: str | None) -> OptimizedImages:
        """Return a layer's optimized images in a style; raise `UsageError` if there are none."""
        return style_of(self._showing(MontagePlan(style=() if style is None else (style,))), layer)

    def _showing(self, montage: MontagePlan) -> Session:
        return replace(self.session, plan=replace(self.session.plan, montage=montage))

    def images_of(self, layer: Layer, unit: int, style: str | None) -> tuple[Floats, Floats]:
        """Return a unit's runs (R, h, w, 3), the best first, and their activations (R,)."""
        images = self.optimized(layer, style)
        _check_held(images.held, Unit(layer.alias, unit), f"optimized in style {images.style}")
        reached = images.read("activation", [unit])[0]
        best = int(reached.argmax())
        order = [best, *(run for run in range(len(reached)) if run != best)]
        return images.runs([unit], images.count)[0], reached[order]

    def projected(self, layer: Layer, method: str | None) -> TopImages:
        """Return a layer's projections by a method; raise `UsageError` if there are none."""
        return projected_of(self._showing(MontagePlan(method=method)), layer)

    def projections_of(self, layer: Layer, unit: int, method: str | None) -> Floats:
        """Return a unit's unscaled projections of its places (k, h, w, 3), the strongest first."""
        images = self.projected(layer, method)
        _check_held(images.held, Unit(layer.alias, unit), f"projected by {images.method}")
        values, scale = images.file.read(images.method, unit)
        ranks = _filled(images.top, unit)
        found: Floats = values[ranks].astype(np.float32) * scale[ranks][:, None, None, None]
        return found

    def styles(self, layer: Layer) -> dict[str, tuple[int, ...]]:
        """Return the styles with images, and the units of each."""
        file = OptimizedFile(self.session.run.optimized(layer.alias))
        return {name: tuple(file.units(name).tolist()) for name in file.styles()}

    def methods(self, layer: Layer) -> dict[str, tuple[int, ...]]:
        """Return the methods with projections, and the units of each."""
        file = ProjectedFile(self.session.run.projected(layer.alias))
        return {name: tuple(np.flatnonzero(file.done(name)).tolist()) for name in file.methods()}

    def tones(self, tiles: Floats) -> Pixels:
        """Return tiles of one unit (n, h, w, 3) as figures show them."""
        mean = self.session.network.preprocessing.mean
        found: Pixels = toned(tiles[None], self.session.plan.figure.tone, mean)[0]
        return found

    def label(self, layer: Layer, unit: int) -> str:
        return unit_label(self.session, layer, unit)

    def sheet(self, layer: Layer, montage: MontagePlan, units: str, page: int) -> Picture:
        """Return a page of a figure of ``cnnvis montage``, drawn but not saved."""
        session = self._showing(montage)
        session = replace(session, plan=replace(session.plan, units=units))
        pages = KINDS[montage.kind[0]].make(session, [layer])
        figures = [figure for each in pages for figure in each]
        if not 1 <= page <= len(figures):
            raise UsageError(f"{layer.alias}: this figure has pages 1 to {len(figures)}")
        return as_picture(figures[page - 1].draw().pixels)

    def portrait(
        self, layer: Layer, unit: int, style: str | None = None, method: str | None = None
    ) -> Canvas | None:
        """Return optimized images, patches and projections side by side, as far as available."""
        panes = list(self._panes(layer, unit, style, method))
        if not panes:
            return None
        shown = tuple(self._pane(layer, unit, pane) for pane in panes)
        rule = TONE_RULES[self.session.plan.figure.tone]
        note = f"Tone of all but patches: {rule}.{self._lost(panes)}"
        caption = sheets.Caption(self._title(layer, unit), note)
        return sheets.single(sheets.Cell("", shown), caption, _enlargement(panes[0].size))

    def _panes(
        self, layer: Layer, unit: int, style: str | None, method: str | None
    ) -> Iterator[PicturePane]:
        """Yield the available kinds of pictures of a unit; raise if a requested one is missing."""
        if style is not None or styles_held(self.session, layer):
            yield from _holding(unit, optimized_pane(self.optimized(layer, style)))
        if self._has_places(layer):
            top = self.places.layer(layer.alias)
            yield from _holding(unit, patches_pane(layer, top, self.places.photographs))
        if method is not None or self._is_projected(layer):
            yield from _holding(unit, projections_pane(self.projected(layer, method)))

    def _has_places(self, layer: Layer) -> bool:
        return self.session.run.topk.is_file() and layer.alias in self.places.file.layers()

    def _is_projected(self, layer: Layer) -> bool:
        """Return whether there are projections of the places in this topk.h5."""
        made = ProjectedFile(self.session.run.projected(layer.alias)).methods().values()
        known = self.places.digest if self._has_places(layer) else None
        return bool(made) and all(each["topk"] == known for each in made)

    def _pane(self, layer: Layer, unit: int, pane: PicturePane) -> sheets.Pane:
        """Return pictures with a title; all have room for class names, so that rows are level."""
        tiles = pane.pictures([unit])[0]
        names = self._names(layer, unit, len(tiles))
        title = TITLES[pane.kind].format(pane.name)
        if pane.kind != "patches":
            names = ("",) * len(tiles) if any(names) else ()
        return sheets.Pane(tiles, columns_of(len(tiles)), names, title)

    def _names(self, layer: Layer, unit: int, count: int) -> tuple[str, ...]:
        """Return the classes of a unit's strongest images; none if topk lacks its layer."""
        if not self._has_places(layer):
            return ()
        images = self.places.layer(layer.alias).places.image[unit, :count].tolist()
        return tuple(map(self.places.class_name, images))

    def _lost(self, panes: Sequence[PicturePane]) -> str:
        """Return a note if images can no longer be read."""
        if all(pane.kind != "patches" for pane in panes) or not self.places.photographs.lost:
            return ""
        return " Grey: images that can no longer be read; if they have moved, give dataset=..."

    def _title(self, layer: Layer, unit: int) -> str:
        _, _, called = self.label(layer, unit).partition(" ")
        title = f"{self.session.network.name} {Unit(layer.alias, unit)}"
        return f"{title} · {called}" if called else title


def as_picture(pixels: Pixels, scale: float = 1) -> Picture:
    """Return pixels (h, w, 3) as a Pillow image; enlarged, each becomes a square."""
    height, width = (scaled(side, scale) for side in pixels.shape[:2])
    return resized(np.ascontiguousarray(pixels), (width, height))


def _filled(top: LayerTopK, unit: int) -> list[int]:
    """Return the ranks of a unit's slots that are not empty."""
    ranks: list[int] = np.flatnonzero(top.places.image[unit] >= 0).tolist()
    return ranks


def _holding(unit: int, pane: PicturePane) -> list[PicturePane]:
    return [pane] if unit in pane.held else []


def _check_held(held: Held, unit: Unit, what: str) -> None:
    if unit.channel not in held:
        raise UsageError(f"{unit} is not {what} yet; {len(held)} other units of its layer are")


def _enlargement(size: Size) -> int:
    return max(1, SEEN // max(size))


def dataset_of(session: Session) -> Path | None:
    """Return where topk's images are, or were; None before topk."""
    told = session.plan.dataset
    if told in (None, "demo"):
        told = session.run.read().get("dataset", {}).get("path")
    return Path(told) if told else None
