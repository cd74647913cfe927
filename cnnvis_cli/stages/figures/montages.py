"""The kinds of figure that `cnnvis montage` draws, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnvis_cli.arrays import Units
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.sheets import (
    Caption,
    Cell,
    per_page,
    sheet,
    single,
)
from cnnvis_cli.nouns import Layer, Size, Unit, units_text
from cnnvis_cli.registry import Registry
from cnnvis_cli.stages.common.lists import in_groups
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.data import (
    NOISE,
    labels_key,
    unit_label,
)
from cnnvis_cli.stages.figures.render import Figure, tile_scale
from cnnvis_cli.stages.figures.selection import Held, choose_units
from cnnvis_cli.store.run import Record, Run

Pages = list[Figure]  # pages of one figure, the first without a number
Make = Callable[[Session, Sequence[Layer]], list[Pages]]
File = Callable[[Run, str], Path]


@dataclass(frozen=True)
class MontageKind:
    """A kind of figure: the files that a layer needs, and a function from layers to figures."""

    files: tuple[File, ...]
    make: Make
    asked: bool  # drawn only on request


KINDS: Registry[MontageKind] = Registry("kind of montage")
ALL_LAYERS = "all"  # the file of a figure of several layers


def kind(name: str, *files: File, asked: bool = True) -> Callable[[Make], Make]:
    """Register a function from layers to figures as a kind of montage."""

    def keep(make: Make) -> Make:
        KINDS.register(name)(MontageKind(files, make, asked))
        return make

    return keep


@dataclass(frozen=True)
class UnitSheet:
    """A figure of many units of one layer, on as many pages as needed."""

    kind: str
    layer: Layer
    units: Units
    note: str
    record: Record
    page: Callable[[Units, Caption], Canvas]
    room: int  # units per page

    def pages(self, session: Session) -> Pages:
        pages = -(-len(self.units) // self.room)
        size = -(-len(self.units) // max(1, pages))  # equal pages, so that they are done together
        chunks = in_groups(self.units, size or 1)
        return [self._page(session, n, chunk) for n, chunk in enumerate(chunks, 1)]

    def _page(self, session: Session, number: int, units: Units) -> Figure:
        name = self.layer.alias + (f"_page{number}" if number > 1 else "")
        caption = montage_caption(session, _title(session, self.layer, units), self.note)
        record = shown_record(session, self.layer, units, self.record)
        return Figure(self.kind, name, caption.title, record, partial(self.page, units, caption))


def _title(session: Session, layer: Layer, units: Units) -> str:
    """Return the network, layer and units of a sheet."""
    name = f"{session.network.name} {layer.alias}"
    if layer.module != layer.alias:
        name += f" ({layer.module})"
    return f"{name} · {_units_shown(units, layer.channels)}"


def _units_shown(units: Units, channels: int) -> str:
    if len(units) == channels:
        return f"all {channels} units"
    if list(units) == list(range(units[0], units[-1] + 1)):
        return f"{units_text(units)} of {channels}"
    return f"{len(units)} of {channels} units"


def tile_text(session: Session, size: Size) -> str:
    """Return a tile's true size, and the factor by which it is drawn; none in a column."""
    plan = session.plan.figure
    scale = tile_scale(plan, size)
    drawn = "" if scale == 1 or plan.column else f", drawn {scale:g} times as large"
    return f"{size[0]}x{size[1]} pixels{drawn}"


def montage_caption(session: Session, title: str, note: str) -> Caption:
    return Caption(title, note, session.plan.figure.column)


NOISE_NOTE = f" {NOISE}: it has not left the noise that it began with."


def noted(caption: Caption, cells: Sequence[Cell]) -> Caption:
    """Return a caption that says what labels and titles of its figure mean."""
    said = [cell.label for cell in cells]
    for cell in cells:
        said += [pane.title for pane in cell.panes]
    if any(NOISE in text for text in said):
        return replace(caption, note=caption.note + NOISE_NOTE)
    return caption


UNITS_AT_ONCE = 32  # units that are read at once


def shown_record(session: Session, layer: Layer, units: Units, record: Record) -> Record:
    key = labels_key(session, layer, units)
    return {"layer": layer.alias, "units": list(units), **key, **record}


class Cells(NamedTuple):
    """The cells of a figure of one unit: a function from unit to cell, and what it shows."""

    layer: Layer
    held: Held
    make: Callable[[int], Cell]
    record: Record
    tile: Size = (0, 0)  # the height and width of a tile


def unit_figures(name: str, note: str, session: Session, cells: Sequence[Cells]) -> list[Pages]:
    """Return a figure per unit, or a sheet per layer."""
    pages: list[Pages] = []
    for each in cells:
        units = choose_units(session, each.layer, each.held)
        if session.plan.montage.together:
            pages.append(_unit_sheet(name, note, session, each, units))
        else:
            for unit in units:
                pages.append([_unit_figure(name, note, session, each, unit)])
    return pages


def _unit_sheet(name: str, note: str, session: Session, cells: Cells, units: Units) -> Pages:
    scale = tile_scale(session.plan.figure, cells.tile)

    def page(units: Units, caption: Caption) -> Canvas:
        made = [cells.make(unit) for unit in units]
        return sheet(made, noted(caption, made), scale)

    room = per_page(cells.make(units[0]).size(scale))
    return UnitSheet(name, cells.layer, units, note, cells.record, page, room).pages(session)


def _unit_figure(name: str, note: str, session: Session, cells: Cells, unit: int) -> Figure:
    alias = cells.layer.alias
    _, _, called = unit_label(session, cells.layer, unit).partition(" ")
    title = f"{session.network.name} {Unit(alias, unit)}" + (f" · {called}" if called else "")

    def draw() -> Canvas:
        scale = tile_scale(session.plan.figure, cells.tile)
        cell = cells.make(unit)
        return single(cell, noted(montage_caption(session, title, note), [cell]), scale)

    record = shown_record(session, cells.layer, [unit], cells.record)
    return Figure(name, f"{alias}_{unit:04d}", title, record, draw)


def held_by_all(sources: Sequence[Any]) -> Held:
    """Return the units that all of several sources have."""
    held: Held = sources[0].held
    for images in sources[1:]:
        held = np.intersect1d(held, images.held)
    return held
