"""`cnnvis montage`: figures from what the run directory holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.ascent.climb import Outcome
from cnnvis_cli.dataset.decode import Pixels
from cnnvis_cli.digests import digest, file_digest
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.canvas import Canvas, read_record
from cnnvis_cli.figure.lines import Plot, plots, plots_on_a_page
from cnnvis_cli.figure.sheets import Caption, Cell, beside, block, per_page, sheet
from cnnvis_cli.figure.tone import RULES, toned
from cnnvis_cli.nouns import Box, Layer, Size
from cnnvis_cli.plan import Plan
from cnnvis_cli.registry import Registry, unknown
from cnnvis_cli.stages.images import image_reader
from cnnvis_cli.stages.session import Session
from cnnvis_cli.store.files import LayerTopK, OptimizedFile, ProjectedFile, TopKFile, box_of
from cnnvis_cli.store.publish import publish
from cnnvis_cli.store.run import Record, Run

GREY = 128  # what lies outside the image


@dataclass(frozen=True)
class Sources:
    """What the figure of one layer is drawn from: files, and the choice among what they hold."""

    files: tuple[Path, ...]
    choice: Record  # style, method
    held: NDArray[np.integer[Any]]  # channels that there is something to show of
    room: int  # units on a page
    page: Callable[[Sequence[int]], Canvas]
    caption: Callable[[Sequence[int]], Caption]


@dataclass(frozen=True)
class Kind:
    """A kind of figure: the file that a layer's is drawn from, and how."""

    file: Callable[[Run, str], Path]
    sources: Callable[[Session, Layer], Sources]
    asked: bool = False  # drawn only where it is asked for


KINDS: Registry[Kind] = Registry("kind of montage")


def check_kinds(plan: Plan) -> None:
    """Raise `UsageError` for a kind of figure that does not exist."""
    for kind in plan.montage.kind:
        KINDS[kind]


def montage(session: Session) -> None:
    """Draw every chosen kind of figure for every chosen layer; by default, all that there is.

    Raises `UsageError` for a layer that was asked for and has nothing, or where nothing has.
    """
    asked = session.plan.montage.kind
    usual = [name for name, kind in KINDS.items() if not kind.asked]
    chosen = {name: KINDS[name] for name in asked or usual}
    figures = [(name, layer) for name, kind in chosen.items() for layer in _with(kind, session)]
    if not figures:
        raise UsageError(
            f"{session.run.path} holds nothing to show yet; run cnnvis optimize or project first"
        )
    for name, layer in figures:
        for path in _draw(session, name, layer, KINDS[name].sources(session, layer)):
            session.report.result(str(path))


def _with(kind: Kind, session: Session) -> list[Layer]:
    """The layers that were asked for, otherwise those that have a file of this kind."""
    return [
        layer
        for layer in session.layers
        if (session.plan.layer and session.plan.montage.kind)
        or kind.file(session.run, layer.alias).is_file()
    ]


def _draw(session: Session, kind: str, layer: Layer, sources: Sources) -> list[Path]:
    """The pages of a layer's sheet; a page that is there already is left as it is."""
    plan = session.plan.montage
    units = session.units(layer) if session.plan.units else tuple(sources.held.tolist())
    size = sources.room
    pages = [units[i : i + size] for i in range(0, len(units), size)]
    digests = [file_digest(path) for path in sources.files]
    paths = []
    for number, chosen in enumerate(pages, 1):
        session.report.breathe()
        path = session.run.figure(kind, layer.alias + (f"_page{number}" if number > 1 else ""))
        record = {
            "kind": kind,
            "model": session.network.name,
            "layer": layer.alias,
            "units": list(chosen),
            "tone": RULES[plan.tone],
            "scale": plan.scale,
            "sources": digests,
            **sources.choice,
        }
        key = digest(record)
        if read_record(path).get("cnnvis-key") != key:
            canvas = sources.page(chosen)
            title = sources.caption(chosen).title
            text = {"Title": title, "Software": "cnnvis", "cnnvis": json.dumps(record)}
            publish(path, canvas.png(text | {"cnnvis-key": key}))
        paths.append(path)
    number = len(pages) + 1
    while (stale := session.run.figure(kind, f"{layer.alias}_page{number}")).exists():
        stale.unlink()  # of a larger selection than this one
        number += 1
    return paths


def _title(session: Session, layer: Layer, units: Sequence[int]) -> str:
    """Which network, layer and units a sheet shows."""
    name = f"{session.network.name} {layer.alias}"
    if layer.module != layer.alias:
        name += f" ({layer.module})"
    return f"{name} · {_units_text(units, layer.channels)}"


def _pixels(size: tuple[int, int], scale: int) -> str:
    """A tile's true size, and how much larger it is drawn."""
    enlarged = f", drawn {scale} times as large" if scale > 1 else ""
    return f"{size[0]}x{size[1]} pixels{enlarged}"


def _units_text(units: Sequence[int], channels: int) -> str:
    if len(units) == channels:
        return f"all {channels} units"
    if len(units) == 1:
        return f"unit {units[0]} of {channels}"
    if list(units) == list(range(units[0], units[-1] + 1)):
        return f"units {units[0]} to {units[-1]} of {channels}"
    return f"{len(units)} of {channels} units"


def _label(session: Session, layer: Layer, unit: int) -> str:
    """The channel number, and the class name where the layer is the network's last."""
    classes = session.network.classes
    if layer == session.network.layers[-1] and unit < len(classes) == layer.channels:
        return f"{unit} {classes[unit]}"
    return str(unit)


def optimized(session: Session, layer: Layer) -> Sources:
    """One tile a channel at its true size: Yosinski et al. 2015, Fig. S1."""
    plan = session.plan.montage
    file = OptimizedFile(session.run.optimized(layer.alias))
    style = _one_of("style", plan.style, list(file.styles()), session.plan.optimize.style, layer)
    held = file.units(style)
    height, width = file.canvas(style)
    size = (height, width)
    names = file.styles()[style].get("targets", ())

    def cells(units: Sequence[int]) -> list[Cell]:
        rows = _rows(held, units, layer, f"optimize --style {style}")
        activation = file.read(style, "activation")[rows]
        outcome = file.read(style, "outcome")[rows]
        best = activation.argmax(axis=1)
        images = np.stack(
            [
                file.read(style, "image", slice(r, r + 1))[0, b]
                for r, b in zip(rows, best, strict=True)
            ]
        )
        pixels = toned(
            images[:, None].astype(np.float32), plan.tone, session.network.preprocessing.mean
        )
        dead = (outcome == int(Outcome.NO_GRADIENT)).all(axis=1)
        return [
            Cell(names[unit] if names else _label(session, layer, unit), tile[0], bool(gone))
            for unit, tile, gone in zip(units, pixels, dead, strict=True)
        ]

    def caption(units: Sequence[int]) -> Caption:
        note = (
            f"{_climbed(file.styles()[style])}, style {style}, {_pixels(size, plan.scale)}. "
            f"Tone: {RULES[plan.tone]}. Crossed out: no gradient reached the image."
        )
        return Caption(_title(session, layer, units), note)

    def page(units: Sequence[int]) -> Canvas:
        return sheet(cells(units), caption(units), plan.scale)

    room = per_page(*size, plan.scale)
    return Sources((file.path,), {"style": style}, held, room, page, caption)


def history(session: Session, layer: Layer) -> Sources:
    """The activation at each step of every run, a line plot a unit."""
    plan = session.plan.montage
    file = OptimizedFile(session.run.optimized(layer.alias))
    style = _one_of("style", plan.style, list(file.styles()), session.plan.optimize.style, layer)
    held, record = file.units(style), file.styles()[style]
    every, names = int(record["history"]), record.get("targets", ())

    def page(units: Sequence[int]) -> Canvas:
        rows = _rows(held, units, layer, f"optimize --style {style}")
        values, best = (file.read(style, name)[rows] for name in ("history", "best_step"))
        steps = np.arange(values.shape[2]) * every
        panels = [
            Plot(names[unit] if names else _label(session, layer, unit), steps, *columns)
            for unit, *columns in zip(units, values, best, strict=True)
        ]
        return plots(panels, caption(units), plan.scale)

    def caption(units: Sequence[int]) -> Caption:
        note = (
            f"Activation at each step of the ascent, style {style}, a line a run; the dot is the "
            "best image, which is the one that is kept."
        )
        return Caption(_title(session, layer, units), note)

    room = plots_on_a_page(plan.scale)
    return Sources((file.path,), {"style": style}, held, room, page, caption)


def _climbed(record: Record) -> str:
    """What the images are of."""
    what = "Preferred images"
    if record.get("minimise"):
        what = "Images that are liked least"
    if record.get("objective") == "mean":
        what += ", mean over the map"
    return what


def top(session: Session, layer: Layer) -> Sources:
    """3x3 projections beside the 3x3 image patches: Zeiler & Fergus 2013, Fig. 2."""
    plan = session.plan.montage
    file = ProjectedFile(session.run.projected(layer.alias))
    method = _one_of(
        "method", plan.method, list(file.methods()), session.plan.project.method, layer
    )
    places = TopKFile(session.run.topk).layer(layer.alias)
    if file.methods()[method]["topk"] != file_digest(session.run.topk):
        raise UsageError(
            f"{file.path} was projected from another topk.h5; delete it and run project again"
        )
    read = image_reader(session)
    held = np.flatnonzero(file.done(method))
    shown = min(9, places.places.image.shape[1])
    columns = 3 if shown > 4 else 2 if shown > 1 else 1
    height, width = layer.field.size
    rows = -(-shown // columns)
    size = (rows * (height + 1) - 1, 2 * (columns * (width + 1) - 1) + 4)

    def patches(unit: int) -> NDArray[np.uint8]:
        return _patches(places, unit, shown, read, layer.field.size)

    def cells(units: Sequence[int]) -> list[Cell]:
        _rows(held, units, layer, f"project --method {method}")
        stored = (file.read(method, unit) for unit in units)
        values = [p.astype(np.float32) * np.nan_to_num(s)[:, None, None, None] for p, s in stored]
        projected = toned(np.stack(values)[:, :shown], plan.tone)
        return [
            Cell(
                _label(session, layer, unit),
                beside(block(tiles, columns), block(patches(unit), columns)),
                bool((places.places.image[unit] < 0).all()),
            )
            for unit, tiles in zip(units, projected, strict=True)
        ]

    def caption(units: Sequence[int]) -> Caption:
        note = (
            f"The {shown} strongest places: {method} projections (left), image patches (right), "
            f"{_pixels((height, width), plan.scale)}. Tone of projections: {RULES[plan.tone]}; "
            "patches as photographed, grey outside the image."
        )
        return Caption(_title(session, layer, units), note)

    def page(units: Sequence[int]) -> Canvas:
        return sheet(cells(units), caption(units), plan.scale)

    room = per_page(*size, plan.scale)
    return Sources((session.run.topk, file.path), {"method": method}, held, room, page, caption)


KINDS.register("optimized")(Kind(Run.optimized, optimized))
KINDS.register("top")(Kind(Run.projected, top))
KINDS.register("history")(Kind(Run.optimized, history, asked=True))


def _patches(
    top: LayerTopK, unit: int, shown: int, read: Callable[[int], Pixels], size: Size
) -> NDArray[np.uint8]:
    """The image windows of a unit's strongest places: (n, h, w, 3)."""
    patches = []
    for rank in range(shown):
        box = box_of(top.box[unit, rank])
        image = int(top.places.image[unit, rank])
        if image >= 0:
            patches.append(crop(read(image), box))
    empty = np.full((*size, 3), 255, np.uint8)
    return np.stack(patches + [empty] * (shown - len(patches)))


def crop(image: Pixels, box: Box) -> Pixels:
    """A window of an image, (h, w, 3); grey where it reaches outside."""
    patch = np.full((*box.size, 3), GREY, np.uint8)
    inside = box.clip((image.shape[0], image.shape[1]))
    top, left = inside.top - box.top, inside.left - box.left
    height, width = inside.size
    patch[top : top + height, left : left + width] = image[
        inside.top : inside.bottom, inside.left : inside.right
    ]
    return patch


def _one_of(
    kind: str, asked: str | None, held: list[str], planned: Sequence[str], layer: Layer
) -> str:
    """Which style or method to show: as asked, or the first planned, or the first there is."""
    stage = {"style": "optimize", "method": "project"}[kind]
    if not held:
        raise UsageError(f"{layer.alias}: nothing to show yet; run cnnvis {stage} first")
    if asked is None:
        return next((name for name in planned if name in held), held[0])
    if asked not in held:
        raise unknown(kind, asked, held, place=f"{stage}d {layer.alias}")
    return asked


def _rows(
    held: NDArray[np.generic], units: Sequence[int], layer: Layer, remedy: str
) -> NDArray[np.intp]:
    """Where the units stand among those that are done; raises `UsageError` for the others."""
    missing = sorted(set(units) - set(held.tolist()))
    if missing:
        raise UsageError(
            f"{layer.alias}: {len(missing)} of the chosen units, the first {missing[0]}, are not "
            f"done; run cnnvis {remedy}, or choose others with --units"
        )
    return np.searchsorted(held, np.asarray(units))
