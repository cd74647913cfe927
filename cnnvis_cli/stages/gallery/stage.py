"""`cnnvis gallery`: a web page to browse every unit of a run, from the run directory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Protocol

import numpy as np

from cnnvis_cli.arrays import Int64s, Pixels, Units
from cnnvis_cli.digests import digest
from cnnvis_cli.engine import Emit, TaskDone, WorkerSlot, run_tasks
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure import site, sprites
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.common.class_names import class_names, classes_of
from cnnvis_cli.stages.common.lists import in_groups
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.data import STRONGEST_SHOWN
from cnnvis_cli.stages.figures.montages import UNITS_AT_ONCE
from cnnvis_cli.stages.figures.render import drawing_slots
from cnnvis_cli.stages.gallery.comparisons import compared_pages
from cnnvis_cli.stages.gallery.flows import Flow, forget_flows, make_flows
from cnnvis_cli.stages.gallery.layers import (
    CHUNK,
    COLUMNS,
    NAV,
    NAV_UNITS,
    STRIP,
    Dataset,
    Face,
    ShownLayer,
    gallery_folder,
)
from cnnvis_cli.stages.gallery.panes import Photographs
from cnnvis_cli.stages.gallery.quiz import quiz_images, quiz_questions, quiz_record
from cnnvis_cli.stages.gallery.scripts import digest_of_pictures, is_made
from cnnvis_cli.stages.gallery.unit_records import Facts
from cnnvis_cli.stages.gallery.wholes import LIST, WholePhotographs
from cnnvis_cli.stages.numbers.unit_tables import UnitTables
from cnnvis_cli.store.inside import read_regular
from cnnvis_cli.store.publish import is_temporary, publish
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.topk_file import TopKFile

GALLERY_FILE = re.compile(  # the names of a gallery's files, and of their temporary files
    r"\d{4,}\.(jpg|png)|(grid\d+|units|icons|flow)_\d+\.(jpg|png|js)|(layer|photographs)\.js|(strip|nav)\.(jpg|png)|\..*\.tmp"
)
LAYER = re.compile(r"(conv|fc)\d+")


def gallery(session: Session) -> None:
    """Make the missing files of the gallery, its page last, and remove outdated ones.

    Raise `UsageError` if there is nothing to show, or nothing of a requested layer.
    """
    shown, readable = _shown(session)
    wholes = _wholes(session, shown, readable)
    lost = _make(session, [*chain.from_iterable(map(pieces, shown)), *wholes])
    _tell_what_is_lost(session, shown, lost)
    flows = make_flows(session, shown, readable)
    if not flows:
        forget_flows(shown)
    _publish_page(session, shown)
    _drop_others(session, shown, [*wholes, *flows])
    session.report.result(str(gallery_folder(session) / "index.html"))


def _shown(session: Session) -> tuple[list[ShownLayer], bool]:
    """Return the layers to show, and whether the images of their patches can be read.

    They are the requested layers, or all with any results.
    """
    dataset, photographs = topk_dataset(session), Photographs(session, set())
    tables = UnitTables.of(session.run)
    found = []
    for layer in session.layers:
        shown = ShownLayer(session, layer, dataset, photographs, tables)
        if shown.units:
            found.append(shown)
        elif session.plan.layer:
            raise UsageError(
                f"{layer.alias}: nothing to show yet; run cnnvis topk or optimize first"
            )
    if not found:
        raise UsageError(
            f"{session.run.path} holds nothing to show yet; run cnnvis topk, optimize or project "
            "first"
        )
    readable = _are_there(photographs, found)
    return found if readable else list(map(_without_patches, found)), readable


def topk_dataset(session: Session) -> Dataset | None:
    """Return the images of topk.h5; None without one."""
    file = TopKFile(session.run.topk)
    if file.identity() is None:
        return None
    images = file.images()
    classes = classes_of(session.run, images)
    names = class_names(classes, session.network.classes, session.plan.figure.classes)
    return Dataset(images, names)


def _are_there(photographs: Photographs, shown: Sequence[ShownLayer]) -> bool:
    """Return whether the images of the patches can be read."""
    wanted = shown_images(shown)
    return not len(wanted) or photographs.are_there(wanted)


def shown_images(shown: Sequence[ShownLayer]) -> Int64s:
    """Return the images of the units' patches, sorted: their numbers in topk.h5."""
    tops = []
    for each in shown:
        for places in filter(None, (each.top, each.lowest)):
            tops.append(places.places.image[each.units, :STRONGEST_SHOWN].ravel())
    found = np.unique(np.concatenate(tops)) if tops else np.empty(0, np.int64)
    return found[found >= 0]


def _wholes(
    session: Session, shown: Sequence[ShownLayer], readable: bool
) -> list[WholePhotographs]:
    """Return the whole photographs, if there are any to show or they were made before."""
    wanted = shown_images([layer for layer in shown if layer.photographs])
    wanted = np.union1d(wanted, quiz_images(quiz_questions(shown)))
    wholes = WholePhotographs(Photographs(session, set()), wanted)
    return [wholes] if len(wanted) and (readable or wholes.is_done()) else []


def _without_patches(shown: ShownLayer) -> ShownLayer:
    """Return the layer without its patches, unless they were made while the images were there."""
    return shown if all(p.is_done() for p in pieces(shown)) else replace(shown, photographs=None)


class Piece(Protocol):
    """Some files, the last of which states that all are complete, and their sources."""

    @property
    def photographs(self) -> Photographs | None: ...
    @property
    def units(self) -> Units: ...
    def files(self) -> list[str]: ...
    def make(self) -> Iterator[int]: ...
    def is_done(self) -> bool: ...


def _is_done(piece: UnitPictures | LayerSummary) -> bool:
    """Return whether a layer's files exist, made from the present sources, and are those."""
    *others, last = map(piece.shown.folder.joinpath, piece.files())
    return is_made(last, piece.shown.key, others)


@dataclass(frozen=True)
class UnitPictures:
    """The pictures and facts of some units, several in a file, and some for the grid."""

    shown: ShownLayer
    number: int

    @property
    def photographs(self) -> Photographs | None:
        return self.shown.photographs

    @property
    def units(self) -> Units:
        return self.shown.chunk(self.number)

    def files(self) -> list[str]:
        own = map(self.shown.sheet_name, self.shown.sheets(self.number))
        pictures = [*own, *self._grids(), *self._icons()]
        pictures = pictures if self.shown.panes else []
        return [*pictures, f"units_{self.number:03d}.js"]

    def _grids(self) -> list[str]:
        faces = enumerate(self.shown.faces)
        return [f"grid{n}_{self.number:03d}.{face.suffix}" for n, face in faces]

    def _icons(self) -> list[str]:
        icon = self.shown.icon
        return [f"icons_{self.number:03d}.{icon.suffix}"] if icon else []

    def is_done(self) -> bool:
        return _is_done(self)

    def make(self) -> Iterator[int]:
        """Draw and publish; yield the number of drawn units, in groups."""
        shown, firsts = self.shown, list[list[Pixels]]()
        firsts += ([] for _ in shown.panes)
        for units in shown.sheets(self.number):
            rows: list[Pixels] = []
            for few in in_groups(units, UNITS_AT_ONCE):
                drawn = [pane.pictures(few) for pane in shown.panes]
                rows += map(shown.rows, zip(*drawn, strict=True))
                for first, pictures in zip(firsts, drawn, strict=True):
                    first.append(pictures[:, 0])
                yield len(few)
            if rows:
                content = sprites.encoded(np.concatenate(rows), shown.suffix)
                publish(shown.folder / shown.sheet_name(units), content)
        faces = [*zip(self._grids(), shown.faces, firsts[: len(shown.faces)], strict=True)]
        if shown.icon:
            faces += zip(self._icons(), [shown.icon], [firsts[shown.usual]], strict=True)
        for name, face, first in faces:
            sheet = sprites.mosaic(np.concatenate(first), face.size, COLUMNS)
            encode = sprites.small_file if face is shown.icon else sprites.encoded
            publish(shown.folder / name, encode(sheet, face.suffix))
        *made, last = map(shown.folder.joinpath, self.files())
        publish(last, self.script(digest_of_pictures(made)))

    def script(self, pictures: str) -> bytes:
        """Return the data of the units, with the digest of their pictures."""
        facts, alias = Facts(self.shown, self.number).records(), self.shown.layer.alias
        return site.data("units", alias, self.number, facts, key=self.shown.key, pictures=pictures)


def _firsts(face: Face, units: Units) -> Pixels:
    """Return the first picture of each unit: (n, h, w, 3)."""
    return np.concatenate(
        [face.pane.pictures(few)[:, 0] for few in in_groups(units, UNITS_AT_ONCE)]
    )


@dataclass(frozen=True)
class LayerSummary:
    """A layer's summary: a strip of some units, and a table of all."""

    shown: ShownLayer

    @property
    def photographs(self) -> Photographs | None:
        return self.shown.photographs

    @property
    def units(self) -> Units:
        return self.shown.best()[1]

    def files(self) -> list[str]:
        faces, _ = self.shown.best()
        pictures = [f"strip.{faces[0].suffix}", f"nav.{faces[0].suffix}"] if faces else []
        return [*pictures, "layer.js"]

    def is_done(self) -> bool:
        return _is_done(self)

    def make(self) -> Iterator[int]:
        shown = self.shown
        faces, units = shown.best()
        if faces:
            size, suffix = faces[0].size, faces[0].suffix
            rows = [_firsts(face, units) for face in faces]
            sheet = sprites.stacked([sprites.mosaic(row, size, STRIP) for row in rows])
            publish(shown.folder / f"strip.{suffix}", sprites.small_file(sheet, suffix))
            tile = sprites.within(size, NAV)
            beside = sprites.mosaic(rows[0][:NAV_UNITS], tile, NAV_UNITS)
            publish(shown.folder / f"nav.{suffix}", sprites.small_file(beside, suffix))
        yield 0  # `UnitPictures` count them
        *strips, last = map(shown.folder.joinpath, self.files())
        publish(last, self.script(digest_of_pictures(strips)))

    def script(self, pictures: str) -> bytes:
        """Return the layer's data, with the digest of its strip."""
        return site.data("layer", self.shown.record, key=self.shown.key, pictures=pictures)


def pieces(shown: ShownLayer) -> list[UnitPictures | LayerSummary]:
    """Return a layer's files, in pieces that are made independently."""
    return [*(UnitPictures(shown, number) for number in range(shown.chunks)), LayerSummary(shown)]


@dataclass(frozen=True)
class UnitsDrawn:
    """A worker slot's message: so many units are drawn, and these images could not be read."""

    units: int
    lost: frozenset[int]


def _make(session: Session, found: Sequence[Piece]) -> set[int]:
    """Make the missing pieces, several at a time; return the unreadable images."""
    todo, lost = [piece for piece in found if not piece.is_done()], set[int]()
    count = sum(len(piece.units) for piece in todo if isinstance(piece, UnitPictures))
    meter = session.report.meter("drawing", count, "units")

    def work(_: WorkerSlot, numbers: Iterator[int], emit: Emit) -> None:
        for number in numbers:
            for units in todo[number].make():
                photographs = todo[number].photographs
                emit(UnitsDrawn(units, frozenset(photographs.lost if photographs else ())))
            emit(TaskDone(number))

    def on_event(message: object) -> None:
        session.report.check_stop()
        if isinstance(message, UnitsDrawn):
            lost.update(message.lost)
            meter.add(message.units)

    if todo:
        _tell_size(session, todo)
        run_tasks(work, drawing_slots(session, len(todo)), range(len(todo)), on_event)
        meter.end()
    return lost


MANY_FILES, MUCH_ROOM = 2000, 100e6  # from how many files, or bytes, on their amount is told
DATA_BYTES = 4000  # of a unit: its numbers, and what feeds it


def _tell_size(session: Session, todo: Sequence[Piece]) -> None:
    """Say how many files are to be written, and how large they will be, if it is much."""
    count, size = len(site.ASSETS), 0.0
    for piece in todo:
        count += len(piece.files())
        if isinstance(piece, UnitPictures):
            count += session.plan.gallery.trace > 0  # what feeds the units
            size += len(piece.units) * (piece.shown.unit_bytes + _grid_bytes(piece.shown))
        elif isinstance(piece, WholePhotographs):
            size += len(piece.wanted) * math.prod(piece.size) * sprites.BYTES["jpg"]
    if count >= MANY_FILES or size >= MUCH_ROOM:
        told = f"gallery: about {count:,} files to write, {max(1, round(size / 1e6)):,} MB"
        session.report.note(told)


def _grid_bytes(shown: ShownLayer) -> float:
    """Return the bytes of a unit's pictures in the grid and in lists, and of its data, roughly."""
    faces = sum(math.prod(face.size) * sprites.BYTES[face.suffix] for face in shown.faces)
    return faces + DATA_BYTES


NO_PATCHES = (
    "the dataset's images can no longer be read, so there are no patches; "
    "if they have moved, give --dataset"
)


def _lacks_patches(shown: ShownLayer) -> bool:
    return shown.top is not None and shown.photographs is None


def _tell_what_is_lost(session: Session, shown: Sequence[ShownLayer], lost: set[int]) -> None:
    if any(map(_lacks_patches, shown)):
        session.report.warn(NO_PATCHES)
    elif lost:
        session.report.warn(
            f"{len(lost)} images can no longer be read or have changed; their patches are grey"
        )


def _publish_page(session: Session, shown: Sequence[ShownLayer]) -> None:
    """Publish the files shared by all layers, the page itself last; unchanged ones are left."""
    folder = gallery_folder(session)
    contents = {**site.assets(), **page_of(session, shown, compared_pages(session.run))}
    old = folder / "quiz.js"
    if old.name not in contents and old.is_file() and site.script_key(read_regular(old)):
        old.unlink()
    for name, content in contents.items():
        path = folder / name
        if not path.is_file() or read_regular(path) != content:
            publish(path, content)


def page_of(
    session: Session, shown: Sequence[ShownLayer], compared: Sequence[tuple[str, str]]
) -> dict[str, bytes]:
    """Return the page and its data by name, the page last; it leads to `compared`."""
    classes = shown[0].dataset.classes if shown[0].dataset else []
    aliases = [each.layer.alias for each in shown]
    listed = {each.layer.alias: each.listed for each in shown}
    searched = {each.layer.alias: each.searched for each in shown}
    places = {"chunk": CHUNK, "columns": COLUMNS, "beside": NAV_UNITS, "block": sprites.JPEG_BLOCK}
    flowing = [each.layer.alias for each in shown if (each.folder / "flow_000.js").is_file()]
    asked = quiz_questions(shown)
    run = {"classes": classes, "layers": aliases, "listed": listed, "flowing": flowing, **places}
    run["quiz"] = bool(asked)
    run["strips"] = {each.layer.alias: _strip(each) for each in shown if each.panes}
    key = digest([each.key for each in shown])
    quiz = {"quiz.js": site.data("quiz", quiz_record(shown, asked), key=key)} if asked else {}
    facts = {**_facts(session, shown), "questions": len(asked), "compared": compared}
    return {
        **quiz,
        "run.js": site.data("run", run, key=key),
        "search.js": site.data("search", searched, key=key),
        "index.html": site.page(facts),
    }


def _facts(session: Session, shown: Sequence[ShownLayer]) -> Record:
    """Return the facts of the first page."""
    usable = int((~shown[0].dataset.images.skipped).sum()) if shown[0].dataset else 0
    layers = list(map(_layer_facts, shown))
    held = [layer["holds"] for layer in layers]
    return {
        "title": session.plan.gallery.title or session.network.name,
        "model": session.network.name,
        "images": usable,
        "units": sum(len(each.units) for each in shown),
        "no_patches": any(map(_lacks_patches, shown)),
        "selective": any(layer["selective"] for layer in layers),
        "paired": any(len(each.best()[0]) > 1 for each in shown),
        "holds": max(held, key=held.count),
        "layers": layers,
    }


def _layer_facts(shown: ShownLayer) -> Record:
    layer = shown.layer
    return {
        "alias": layer.alias,
        "module": layer.module if layer.module != layer.alias else "",
        "shape": _shape(layer),
        "units": len(shown.units),
        "channels": layer.channels,
        "dead": shown.dead,
        "holds": [_holds(shown, pane.kind, pane.name, len(pane.held)) for pane in shown.panes],
        "selective": bool(shown.top and np.isfinite(shown.top.stats["selectivity"]).any()),
    }


def _strip(shown: ShownLayer) -> Record:
    """Return what the first page needs to show some units of a layer."""
    faces, units = shown.best()
    size, labels = faces[0].size, dict(zip(shown.units, shown.labels, strict=True))
    record = {
        "suffix": faces[0].suffix,
        "rows": len(faces),
        "tile": size,
        "nav": sprites.within(size, NAV),
        "units": units,
    }
    if any(map(labels.get, units)):
        record["labels"] = [labels[unit] for unit in units]
    ratios = shown.ratios(faces[-1].pane)
    if ratios:
        record["ratios"] = list(map(ratios.get, units))
    return record


def _shape(layer: Layer) -> str:
    """Return how much of the input a unit sees, and how often it occurs in the map."""
    height, width = layer.field.size
    sees = f"sees {height} × {width} pixels"
    if layer.kind == "fc":
        return sees
    return f"{sees}, every {layer.field.stride[0]} · map of {layer.map[0]} × {layer.map[1]}"


def _holds(shown: ShownLayer, kind: str, name: str, count: int) -> str:
    """Return the available results of the units, in words."""
    some = "" if count >= len(shown.units) else f" of {count}"
    return {
        "optimized": f"optimized, style {name}{some}",
        "patches": f"patches{some}",
        "lowest": f"lowest patches{some}",
        "intervals": f"images over its whole range{some}",
        "projections": f"{name} projections{some}",
    }[kind]


def _drop_others(
    session: Session, shown: Sequence[ShownLayer], more: Sequence[WholePhotographs | Flow]
) -> None:
    """Remove files of an older gallery that this one does not have; other files stay."""
    kept = {each.folder / name for each in more for name in each.files()}
    for layer in shown:
        for piece in pieces(layer):
            kept.update(map(layer.folder.joinpath, piece.files()))
    folder = gallery_folder(session)
    for place in sorted(folder.iterdir()):
        known = LAYER.fullmatch(place.name) or place.name == "photographs"
        if place.is_dir() and known and _is_ours(place):
            for path in session.report.each(sorted(place.iterdir())):
                if path not in kept and GALLERY_FILE.fullmatch(path.name):
                    path.unlink()
            with suppress(OSError):  # if other files are left
                place.rmdir()
        elif is_temporary(place.name):
            place.unlink()


def _is_ours(folder: Path) -> bool:
    """Return whether a layer's folder was made by cnnvis: some file in it says so."""
    told = (*folder.glob("units_*.js"), *folder.glob("layer.js"), *folder.glob(LIST))
    return any(site.script_key(read_regular(path)) for path in told)
