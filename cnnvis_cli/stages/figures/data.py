"""The sources of figures: optimized images, and projections with their patches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Bools, Floats, Pixels
from cnnvis_cli.ascent.climb import Outcome
from cnnvis_cli.ascent.starts import noise, seed_of, still_noise
from cnnvis_cli.ascent.styles import ordered_styles
from cnnvis_cli.digests import digest, file_digest
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.grid import columns_of
from cnnvis_cli.figure.sheets import Pane
from cnnvis_cli.figure.tone import faded, toned
from cnnvis_cli.figure.windows import crop, paste_window
from cnnvis_cli.measures.preference import Preference
from cnnvis_cli.nouns import Box, Layer, Size, Unit, size_text
from cnnvis_cli.registry import unknown
from cnnvis_cli.stages.common.class_names import class_names, classes_of, names_before
from cnnvis_cli.stages.common.dataset_images import image_reader
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.selection import Held
from cnnvis_cli.stages.numbers.unit_tables import UnitTables
from cnnvis_cli.stages.optimize.preference import preference_of
from cnnvis_cli.stages.project.job import group_of
from cnnvis_cli.store.optimized import OptimizedFile, style_columns
from cnnvis_cli.store.projected import ProjectedFile
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.seals import content_digest
from cnnvis_cli.store.topk_file import Images, LayerTopK, TopKFile, box_of

STRONGEST_SHOWN = 9
SQUARE = 9  # pictures of a 3x3 block
NOISE = "(noise)"  # what the label of a picture says that is still noise


def unit_label(session: Session, layer: Layer, unit: int) -> str:
    """Return the channel number, and a word for it if there is one.

    The class if the layer is the network's last, otherwise what ``cnnvis name`` found.
    """
    classes = session.network.classes
    if layer == session.network.layers[-1] and unit < len(classes) == layer.channels:
        return f"{unit} {classes[unit]}"
    return f"{unit} {UnitTables.of(session.run).name(Unit(layer.alias, unit))}".strip()


def labels_key(session: Session, layer: Layer, units: Sequence[int]) -> Record:
    """Return what a figure depends on by its labels; nothing where there are numbers alone."""
    tables = UnitTables.of(session.run)
    names = [tables.name(Unit(layer.alias, unit)) for unit in units]
    return {"names": digest(names)} if any(names) else {}


@dataclass(frozen=True)
class OptimizedImages:
    """A layer's optimized images in one style."""

    session: Session
    layer: Layer
    style: str

    @property
    def file(self) -> OptimizedFile:
        return OptimizedFile(self.session.run.optimized(self.layer.alias))

    @cached_property
    def made(self) -> Record:
        """The style's parameters in the file."""
        return self.file.styles()[self.style]

    @cached_property
    def held(self) -> Held:
        return self.file.units(self.style)

    @cached_property
    def size(self) -> Size:
        return self.file.canvas(self.style)

    @property
    def record(self) -> Record:
        fade = {"fade": True} if self.fades else {}
        best = {} if self.preference is None else {"ratio": digest(self.preference.ratio.tolist())}
        return {"style": self.style, "source": content_digest(self.file.path), **fade, **best}

    @cached_property
    def fades(self) -> bool:
        """Whether images are faded; raise `UsageError` if the style has not kept where."""
        fades = self.session.plan.montage.fade
        if fades and "transparency" not in style_columns(self.made):
            raise UsageError(
                f"--fade: style {self.style} keeps no gradients to fade by; leave it out, or give "
                "--style maco"
            )
        return fades

    @property
    def is_accent(self) -> bool:
        """Whether the images are an accentuated photograph."""
        return "photograph" in style_columns(self.made)

    @property
    def tone(self) -> str:
        """The rule by which the images are shown: a photograph as it is."""
        return "true" if self.is_accent else self.session.plan.figure.tone

    def toned(self, values: Floats) -> Pixels:
        """Return images (n, r, h, w, 3) of the style by its rule."""
        return toned(values, self.tone, self.session.network.preprocessing.mean)

    @property
    def every(self) -> int:
        """The steps from one value of the history to the next."""
        return int(self.made["history"])

    @property
    def what(self) -> str:
        """The description of the images."""
        least = self.made.get("minimise")
        what = "Least preferred images" if least else "Preferred images"
        what = "An accentuated photograph" if self.is_accent else what
        what += ", mean over the map" if self.made.get("objective") == "mean" else ""
        return what + (", faded where the gradient was small" if self.fades else "")

    def label(self, unit: int) -> str:
        names = self.made.get("targets", ())
        return names[unit] if names else unit_label(self.session, self.layer, unit)

    def title(self, unit: int) -> str:
        """Return the style, with the ratio to the best image of the dataset where it is known."""
        found = f"style {self.style}"
        if self.preference is not None:
            (ratio,) = self.preference.of([unit]).ratio.tolist()
            found += f", {ratio:.1f}x" if math.isfinite(ratio) else ""
        return found + (f" {NOISE}" if self.noisy([unit])[0] else "")

    @cached_property
    def preference(self) -> Preference | None:
        """How the images compare with those of the run's top-k, if it is known."""
        return preference_of(self.session.run, self.layer.alias, self.style)

    def compared(self, units: Sequence[int]) -> str:
        """Return how some units' images compare, as a sentence of a caption."""
        if self.preference is None:
            return ""
        found = self.preference.of(units).summary()
        return f" {found[0].upper()}{found[1:]}."

    def noisy(self, units: Sequence[int]) -> Bools:
        """Return which units' best images have not left the noise that they began with: (n,)."""
        drawn = self.made.get("start", "noise") == "noise"
        runs = self.read("activation", units).argmax(axis=1)
        step = np.take_along_axis(self.read("best_step", units), runs[:, None], axis=1)[:, 0]
        found: Bools = (step == 0) & drawn & ~self.dead(units)
        if drawn and self.made.get("image", {}).get("kind") in ("Pixels", None):
            both = zip(units, runs.tolist(), strict=True)
            begun = np.stack([self._first_noise(unit, run) for unit, run in both])
            found |= still_noise(self.best(units)[:, 0], begun) & ~self.dead(units)
        return found

    def _first_noise(self, unit: int, run: int) -> Floats:
        """Return the noise that an ascent in pixels began with, (h, w, 3)."""
        name = self.layer.alias + (" directions" if self.made.get("targets") else "")
        seed = seed_of(int(self.made["seed"]), Unit(name, unit), run)
        return np.asarray(noise(seed, self.size).permute(1, 2, 0).numpy())

    def read(self, name: str, units: Sequence[int]) -> NDArray[Any]:
        """Return one array of the file, the rows of these units."""
        rows: NDArray[np.intp] = np.searchsorted(self.held, units)
        if len(rows) > FEW_ROWS or (np.diff(rows) <= 0).any():
            return self.file.read(self.style, name)[rows]
        return self.file.read(self.style, name, rows)

    def dead(self, units: Sequence[int]) -> NDArray[np.bool_]:
        """Return whether no gradient reached the image in any run."""
        dead: NDArray[np.bool_] = (self.read("outcome", units) == int(Outcome.NO_GRADIENT)).all(1)
        return dead

    def best(self, units: Sequence[int]) -> Floats:
        """Return each unit's best run: (n, 1, h, w, 3)."""
        runs = self.read("activation", units).argmax(axis=1)
        rows = np.searchsorted(self.held, units)
        images = self.file.pick(self.style, rows.tolist(), runs.tolist())
        if self.fades:
            for i, row in enumerate(rows.tolist()):
                images[i] = self._shown(row, [int(runs[i])])[0]
        return images[:, None]

    def panes(self, unit: int, room: tuple[str, ...] = (), leads: bool = True) -> list[Pane]:
        """Return the block of a unit's runs, and that of the images where they first led.

        The second one where the file has it, and `leads`; `room` is that for names under pictures.
        """
        tiles = self.toned(self.runs([unit], SQUARE))[0]
        found = [Pane(tiles, columns_of(len(tiles)), room, self.title(unit))]
        if leads and self.made.get("majority"):
            first = self.toned(self.runs([unit], SQUARE, "majority"))[0]
            (steps,) = self.read("majority_step", [unit])
            step = int(steps[self._order(unit)[0]])
            title = f"{self.style}, leads from step {step}" if step >= 0 else "never leads"
            found.append(Pane(first, columns_of(len(first)), room, title))
        return found

    def _order(self, unit: int) -> list[int]:
        """Return a unit's runs, the best one first."""
        best = int(self.read("activation", [unit])[0].argmax())
        return [best, *(run for run in range(self.count) if run != best)]

    def runs(self, units: Sequence[int], most: int, name: str = "image") -> Floats:
        """Return each unit's first runs, the best of all of them first: (n, r, h, w, 3)."""
        count = min(most, self.count)
        found = np.empty((len(units), count, *self.size, 3), np.float32)
        rows = np.searchsorted(self.held, units).tolist()
        for i, (unit, row) in enumerate(zip(units, rows, strict=True)):
            found[i] = self._shown(row, self._order(unit)[:count], name)
        return found

    def _shown(self, row: int, runs: list[int], name: str = "image") -> Floats:
        """Return some runs of a row of the file: (r, h, w, 3)."""
        here = slice(row, row + 1)
        images: Floats = self.file.read(self.style, name, here)[0][runs].astype(np.float32)
        if not self.fades:
            return images
        return faded(images, self.file.read(self.style, "transparency", here)[0][runs])

    @cached_property
    def count(self) -> int:
        """The number of runs per unit."""
        return int(self.file.read(self.style, "activation", slice(0, 1)).shape[1])


def style_of(session: Session, layer: Layer) -> OptimizedImages:
    """Return the style to show: the requested one, the first planned one, or the first available.

    Raise `UsageError` if there is none, or if several are requested.
    """
    plan, file = session.plan, OptimizedFile(session.run.optimized(layer.alias))
    if len(plan.montage.style) > 1:
        raise UsageError("this kind of figure shows one style; give one --style")
    asked = plan.montage.style[0] if plan.montage.style else None
    held = ordered_styles(file.styles())
    style = _one_of("style", asked, held, plan.optimize.style, layer)
    return OptimizedImages(session, layer, style)


def styles_of(session: Session, layer: Layer) -> list[OptimizedImages]:
    """Return the styles to show side by side: the requested ones, or all that the file has.

    Sums and directions, which are no units, are left out beside units.
    """
    file = OptimizedFile(session.run.optimized(layer.alias))
    held = ordered_styles(file.styles())
    of_units = [name for name, made in file.styles().items() if not made.get("targets")]
    names = session.plan.montage.style or [name for name in held if name in of_units] or held
    for name in names:
        _one_of("style", name, held, (), layer)
    if not held:
        _one_of("style", None, held, (), layer)
    return [OptimizedImages(session, layer, name) for name in names]


def ratio_note(sources: Iterable[OptimizedImages]) -> str:
    """Return what 1.3x in the titles of panes means, as a sentence, where one has it."""
    for images in sources:
        if images.preference is not None:
            among = images.preference.images
            return f" 1.0x: the unit's value for the best of {among} images of the dataset."
    return ""


FEW_ROWS = 1000  # rows that HDF5 finds faster one by one than by reading all


@dataclass(frozen=True)
class TopImages:
    """A layer's projections by one method, with their image patches."""

    session: Session
    layer: Layer
    method: str

    @property
    def file(self) -> ProjectedFile:
        return ProjectedFile(self.session.run.projected(self.layer.alias))

    @cached_property
    def top(self) -> LayerTopK:
        return TopKFile(self.session.run.topk).layer(self.layer.alias)

    @cached_property
    def held(self) -> Held:
        return np.flatnonzero(self.file.done(self.method))

    @cached_property
    def stored(self) -> Size:
        """The height and width of a projection in the file: a receptive field, or the input."""
        return self.file.canvas(self.method)

    @cached_property
    def size(self) -> Size:
        """The height and width of what is shown of a projection, and of a patch.

        That is the local field, as far as it fits into the input; or the whole input, for
        projections that start from a whole map.
        """
        start = self.file.methods()[self.method]["start"]
        return self.stored if start == "map" else self.layer.tile_size(self.session.network.size)

    @property
    def shown(self) -> int:
        return min(STRONGEST_SHOWN, int(self.top.places.image.shape[1]))

    @property
    def record(self) -> Record:
        sources = map(content_digest, (self.session.run.topk, self.file.path))
        return {"method": self.method, "sources": list(sources), "classes": self._classes_key}

    @property
    def _classes_key(self) -> str | None:
        names = self.session.plan.figure.classes
        if names:
            return file_digest(Path(names)) if Path(names).is_file() else None
        before = names_before(self._images, self.session.network.classes)
        return None if self._class_names == before else digest(self._class_names)

    def label(self, unit: int) -> str:
        return unit_label(self.session, self.layer, unit)

    def dead(self, unit: int) -> bool:
        """Return whether the unit has no place at all."""
        return bool((self.top.places.image[unit] < 0).all())

    def projections(self, units: Sequence[int]) -> Floats:
        """Return each unit's strongest projections: (n, shown, h, w, 3)."""
        found = np.empty((len(units), self.shown, *self.size, 3), np.float32)
        for i, unit in enumerate(units):
            values, scale = self.file.read(self.method, unit)
            factor = np.nan_to_num(scale[: self.shown])[:, None, None, None]
            shown = values[: self.shown].astype(np.float32) * factor
            if self.size == self.stored:
                found[i] = shown
                continue
            found[i] = 0
            for rank in np.flatnonzero(self.top.places.image[unit, : self.shown] >= 0).tolist():
                paste_window(
                    found[i, rank], self._box(unit, rank), shown[rank], self._held(unit, rank)
                )
        return found

    @property
    def windows(self) -> str:
        """Return what a caption says of the windows that are cut, where they are not the fields."""
        said = ""
        if self.top.is_local:
            said += (
                " Windows show the local field: without what reaches a place only through gates, "
                "statistics of a normalisation, or attention."
            )
        field, size = self.layer.local.size, self.session.network.size
        if field[0] > size[0] or field[1] > size[1]:
            said += f" Windows are clipped to the input; the field is {size_text(field)} pixels."
        return said

    def patches(self, unit: int) -> Pixels:
        """Return the image patches of the strongest places, (shown, h, w, 3); white for none."""
        found = np.full((self.shown, *self.size, 3), 255, np.uint8)
        for rank in range(self.shown):
            image = int(self.top.places.image[unit, rank])
            if image >= 0:
                found[rank] = crop(self._read(image), self._box(unit, rank))
        return found

    def _box(self, unit: int, rank: int) -> Box:
        """Return the window of the input that is shown for a place."""
        tile = self.top.tile(unit, rank, self.session.network.size)
        return tile if tile.size == self.size else Box.whole(self.size)

    def _held(self, unit: int, rank: int) -> Box:
        """Return the window of the input that the file holds for a place."""
        box = box_of(self.top.box[unit, rank])
        return box if box.size == self.stored else box.tile(self.session.network.size)

    @cached_property
    def _read(self) -> Callable[[int], Pixels]:
        return image_reader(self.session)

    def names(self, unit: int) -> tuple[str, ...]:
        """Return the class of each image, empty if it has none."""
        images, names = self._images, self._class_names
        labels = image_labels(images, self.top.places.image[unit, : self.shown].tolist())
        return tuple(names[label] if label >= 0 else "" for label in labels)

    @cached_property
    def _images(self) -> Images:
        return TopKFile(self.session.run.topk).images()

    @cached_property
    def _class_names(self) -> list[str]:
        plan, network = self.session.plan.figure, self.session.network
        classes = classes_of(self.session.run, self._images)
        return class_names(classes, network.classes, plan.classes)


def windows_of(sources: Sequence[TopImages]) -> str:
    """Return what a caption of several layers says of their windows, each thing once."""
    return max((images.windows for images in sources), key=len, default="")


def projected_of(session: Session, layer: Layer) -> TopImages:
    """Return the method to show: the requested one, the first planned one, or the first available.

    Raise `UsageError` if there is none, or if it was made from another topk.h5.
    """
    plan, file = session.plan, ProjectedFile(session.run.projected(layer.alias))
    held = file.methods()
    planned = [group_of(method, plan.project) for method in plan.project.methods]
    method = _one_of("method", plan.montage.method, list(held), planned, layer)
    if TopKFile(session.run.topk).identity() is None:  # one of another run is refused here
        raise UsageError(f"{session.run.path} has no topk.h5 yet; run cnnvis topk first")
    if held[method]["topk"] != file_digest(session.run.topk):
        raise UsageError(
            f"{file.path} was projected from another topk.h5; delete it and run project again"
        )
    return TopImages(session, layer, method)


def _one_of(
    kind: str, asked: str | None, held: list[str], planned: Sequence[str], layer: Layer
) -> str:
    """Return the style or method to show: requested, first planned, or first available."""
    stage = {"style": "optimize", "method": "project"}[kind]
    if not held:
        raise UsageError(f"{layer.alias}: nothing to show yet; run cnnvis {stage} first")
    if asked is None:
        return next((name for name in planned if name in held), held[0])
    if asked not in held:
        raise unknown(kind, asked, held, place=layer.alias)
    return asked


def image_labels(images: Images, indices: Iterable[int]) -> list[int]:
    """Return the class of each image, -1 without a class or an image."""
    labels = []
    for index in indices:
        labels.append(int(images.label[index]) if index >= 0 else -1)
    return labels
