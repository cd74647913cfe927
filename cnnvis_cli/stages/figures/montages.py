"""The kinds of figure that `cnnvis montage` draws, one decorated function each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cnnvis_cli.arrays import Pixels, Units
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.canvas import Canvas, reduced, scaled
from cnnvis_cli.figure.grid import columns_of
from cnnvis_cli.figure.lines import Plot, plots, plots_on_a_page
from cnnvis_cli.figure.sheets import (
    Caption,
    Cell,
    CellRow,
    Pane,
    fitting,
    gutter_of,
    per_page,
    row_scale,
    rows_of_cells,
    sheet,
    sheets_below,
    single,
    toolbox_montage,
)
from cnnvis_cli.figure.tone import TONE_RULES, common_divisor, toned, toned_together
from cnnvis_cli.nouns import Layer, Size, Unit, units_text
from cnnvis_cli.registry import Registry
from cnnvis_cli.stages.common.lists import in_groups
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.data import (
    NOISE,
    SQUARE,
    OptimizedImages,
    TopImages,
    labels_key,
    projected_of,
    ratio_note,
    style_of,
    styles_of,
    unit_label,
    windows_of,
)
from cnnvis_cli.stages.figures.render import Figure, tile_scale
from cnnvis_cli.stages.figures.selection import Held, choose_units, sample
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
        caption = _caption(session, _title(session, self.layer, units), self.note)
        record = _sheet_record(session, self.layer, units, self.record)
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


def _pixels(session: Session, size: Size) -> str:
    """Return a tile's true size, and the factor by which it is drawn; none in a column."""
    plan = session.plan.figure
    scale = tile_scale(plan, size)
    drawn = "" if scale == 1 or plan.column else f", drawn {scale:g} times as large"
    return f"{size[0]}x{size[1]} pixels{drawn}"


def _caption(session: Session, title: str, note: str) -> Caption:
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


@kind("optimized", Run.optimized, asked=False)
def optimized(session: Session, layers: Sequence[Layer]) -> list[Pages]:
    """Return one tile per channel at its true size: Yosinski et al. 2015, Fig. S1."""
    sources = [style_of(session, layer) for layer in layers]
    if session.plan.montage.together:
        return [[_optimized_together(session, sources)]]
    return [_optimized_sheet(session, images).pages(session) for images in sources]


def _optimized_together(session: Session, sources: Sequence[OptimizedImages]) -> Figure:
    """Return the sheets of several layers in one figure, as Fig. S1 has them."""
    plan = session.plan.figure
    chosen = [choose_units(session, images.layer, images.held) for images in sources]
    scales = [tile_scale(plan, images.size) for images in sources]
    pixels = 0.0
    for images, units, scale in zip(sources, chosen, scales, strict=True):
        pixels += len(units) * images.size[0] * images.size[1] * scale**2
    if pixels > LARGEST_TOGETHER:
        raise UsageError(
            f"--together: {pixels / 1e6:.0f} million pixels in one figure; choose layers with "
            "--layer, units with --random, or a smaller --scale"
        )
    note = f"{sources[0].what}, style {sources[0].style}. Tone: {TONE_RULES[sources[0].tone]}."
    names = ", ".join(images.layer.alias for images in sources)
    caption = _caption(session, f"{session.network.name} · {names}", note)

    def draw() -> Canvas:
        parts, every = [], list[Cell]()
        for images, units, scale in zip(sources, chosen, scales, strict=True):
            cells = tuple(_best_cells(session, images, units))
            parts.append(CellRow(images.layer.alias, cells, max(1, scale)))
            every += cells
        return sheets_below(parts, noted(caption, every))

    record: Record = {"layers": _sheet_records(sources, chosen)}
    return Figure("optimized", ALL_LAYERS, caption.title, record, draw)


LARGEST_TOGETHER = 60_000_000  # pixels of the tiles of one figure


def _best_cells(session: Session, images: OptimizedImages, units: Units) -> Iterator[Cell]:
    """Yield a cell per unit with its best image."""
    tiles = _best_tiles(session, images, units)
    dead = images.dead(units)
    noisy = np.concatenate([images.noisy(few) for few in in_groups(units, UNITS_AT_ONCE)])
    for unit, tile, crossed, noise in zip(units, tiles, dead, noisy, strict=True):
        number, space, name = images.label(unit).partition(" ")
        label = f"{number} {NOISE}{space}{name}" if noise else number + space + name
        yield Cell.of(label, tile, bool(crossed))


def _optimized_sheet(session: Session, images: OptimizedImages) -> UnitSheet:
    plan = session.plan.figure
    scale = tile_scale(plan, images.size)
    note = (
        f"{images.what}, style {images.style}, {_pixels(session, images.size)}. "
        f"Tone: {TONE_RULES[images.tone]}. Crossed out: no gradient reached the image."
    )

    def page(units: Units, caption: Caption) -> Canvas:
        cells = list(_best_cells(session, images, units))
        shown = replace(caption, note=caption.note + images.compared(units))
        return sheet(cells, noted(shown, cells), max(1, scale))

    height, width = (scaled(side, scale) for side in images.size)
    units, room = choose_units(session, images.layer, images.held), per_page((height, width))
    return UnitSheet("optimized", images.layer, units, note, images.record, page, room)


UNITS_AT_ONCE = 32  # units that are read at once


def _best_tiles(session: Session, images: OptimizedImages, units: Units) -> Iterator[Pixels]:
    """Yield the best run of each unit, toned, and reduced if the plan's scale is below 1."""
    plan, mean = session.plan.figure, session.network.preprocessing.mean
    least = min(1.0, tile_scale(plan, images.size))
    some = in_groups(units, UNITS_AT_ONCE)
    tone = images.tone
    top = max(common_divisor(images.best(few)) for few in some) if tone == "sheet" else None
    for few in some:
        for tile in toned(images.best(few), tone, mean, top)[:, 0]:
            yield reduced(tile, least)


@kind("top", Run.projected, asked=False)
def top(session: Session, layers: Sequence[Layer]) -> list[Pages]:
    """Return 3x3 projections beside the 3x3 image patches: Zeiler & Fergus 2013, Fig. 2."""
    sources = [projected_of(session, layer) for layer in layers]
    if session.plan.montage.together:
        return [_top_together(session, sources)]
    return [_top(session, images).pages(session) for images in sources]


def _top(session: Session, images: TopImages) -> UnitSheet:
    plan = session.plan.figure
    scale = tile_scale(plan, images.size)
    note = (
        f"The {images.shown} strongest places: {images.method} projections (left), image patches "
        f"(right), {_pixels(session, images.size)}. Tone of projections: "
        f"{TONE_RULES[plan.tone]}; patches as photographed, grey outside the image."
        f"{images.windows}"
    )

    def page(units: Units, caption: Caption) -> Canvas:
        projections = toned(images.projections(units), plan.tone)
        return sheet(_top_cells(images, units, projections), caption, scale)

    room = per_page(_blank_top(images).size(scale))
    units = choose_units(session, images.layer, images.held)
    return UnitSheet("top", images.layer, units, note, images.record, page, room)


def _top_cells(images: TopImages, units: Units, projections: Pixels) -> list[Cell]:
    cells = []
    for unit, tiles in zip(units, projections, strict=True):
        label = images.label(unit)
        if images.dead(unit):
            cells.append(Cell(label, _blank_top(images).panes, dead=True))
        else:
            cells.append(_top_cell(label, tiles, images.patches(unit), images.names(unit)))
    return cells


def _top_cell(label: str, projections: Pixels, patches: Pixels, names: tuple[str, ...]) -> Cell:
    columns, room = columns_of(len(patches)), ("",) * len(names)  # rows stay level
    return Cell(label, (Pane(projections, columns, room), Pane(patches, columns, names)))


def _blank_top(images: TopImages) -> Cell:
    """Return a cell of a unit without places; also used to measure."""
    white = np.full((images.shown, *images.size, 3), 255, np.uint8)
    return _top_cell("", white, white, images.names(0))


def _top_together(session: Session, sources: Sequence[TopImages]) -> Pages:
    """Return a few units of each layer in one figure, as in print."""
    tone = session.plan.figure.tone
    scales = _row_scales(session, sources, _blank_top)
    chosen = _units_in_rows(session, sources, _blank_top, scales)
    note = (
        f"The strongest places of some units of each layer: {sources[0].method} projections "
        f"(left) beside image patches (right), {_sizes(session)}. Tone of projections: "
        f"{TONE_RULES[tone]}; patches as photographed, grey outside the image."
        f"{windows_of(sources)}"
    )

    def rows() -> list[CellRow]:
        values = [images.projections(units) for images, units in _pairs(sources, chosen)]
        rows = []
        toned = toned_together(values, tone)
        for images, units, tiles, scale in zip(sources, chosen, toned, scales, strict=True):
            cells = tuple(_top_cells(images, units, tiles))
            rows.append(CellRow(images.layer.alias, cells, scale))
        return rows

    return [_of_layers("top", session, note, _sheet_records(sources, chosen), rows)]


@kind("layers", Run.optimized)
def layers(session: Session, layers: Sequence[Layer]) -> list[Pages]:
    """Return all layers at true size, the last on top, four runs per channel: Yosinski, Fig. 5."""
    sources = [style_of(session, layer) for layer in reversed(layers)]
    scales = _row_scales(session, sources, _blank_runs)
    chosen = _units_in_rows(session, sources, _blank_runs, scales)
    note = (
        f"{sources[0].what}, style {sources[0].style}, up to {RUNS} runs per unit, "
        f"{_sizes(session)}. "
        f"Tone: {TONE_RULES[session.plan.figure.tone]}."
    )

    def rows() -> list[CellRow]:
        tone, mean = session.plan.figure.tone, session.network.preprocessing.mean
        values = [images.runs(units, RUNS) for images, units in _pairs(sources, chosen)]
        rows = []
        toned = toned_together(values, tone, mean)
        for images, units, tiles, scale in zip(sources, chosen, toned, scales, strict=True):
            cells = map(_runs_cell, map(images.label, units), tiles)
            rows.append(CellRow(images.layer.alias, tuple(cells), scale))
        return rows

    return [[_of_layers("layers", session, note, _sheet_records(sources, chosen), rows)]]


RUNS = 4


def _pairs(sources: Sequence[Any], chosen: Sequence[Units]) -> list[tuple[Any, Units]]:
    return list(zip(sources, chosen, strict=True))


def _sizes(session: Session) -> str:
    """Return in words whether tiles have one scale or one size."""
    if session.plan.montage.equal:
        return "tiles of all layers equally large"
    return "all at one scale, so that sizes are those of the features"


EQUAL_SIDE = 112  # pixels of a tile's side where those of all layers are alike
UNITS_IN_COLUMN = 4  # units of a layer in a column of a paper, unless they are chosen
LEAST_IN_COLUMN = 8  # pixels of a picture's longer side that can be seen
TILE_IN_COLUMN = 26  # least side of a tile of the largest layer there, if fewer units help


def _row_scales(
    session: Session, sources: Sequence[Any], blank: Callable[[Any], Cell]
) -> list[float]:
    """Return the scale of each layer's row: one for all, or those that make tiles alike."""
    plan, cells = session.plan, [blank(each) for each in sources]
    given = plan.figure.scale or 1
    room = _row_room(session, sources)
    if plan.figure.column is None:
        if not plan.montage.equal:
            return [given] * len(cells)
        return [given * _to_side(max(each.size)) for each in sources]
    found = []
    for each, cell in zip(sources, cells, strict=True):
        across = sum(pane.columns for pane in cell.panes)
        usual = max(1, min(UNITS_IN_COLUMN, room // (across * TILE_IN_COLUMN)))
        chosen = len(choose_units(session, each.layer, each.held))
        asked = plan.units or plan.montage.random or plan.montage.best
        found.append(row_scale(cell, chosen if asked else min(usual, chosen), room))
    if plan.montage.equal:
        return found
    for each in sources:
        if min(found) * max(each.size) < LEAST_IN_COLUMN:
            session.report.once(
                f"{each.layer.alias}: its pictures are hardly to be seen at the scale of the other "
                "layers; --equal draws those of all layers equally large, --layer chooses layers"
            )
    return [min(found)] * len(found)


def _to_side(side: int) -> float:
    """Return the scale that brings a side near `EQUAL_SIDE`, whole if it enlarges."""
    return float(max(1, round(EQUAL_SIDE / side))) if side <= EQUAL_SIDE else EQUAL_SIDE / side


def _row_room(session: Session, sources: Sequence[Any]) -> int:
    """Return the width in pixels that the units of a row may take."""
    caption = _caption(session, "", "")
    if not caption.room:
        return LINE_WIDTH
    return caption.room - gutter_of([each.layer.alias for each in sources], caption)


def _units_in_rows(
    session: Session,
    sources: Sequence[Any],
    blank: Callable[[Any], Cell],
    scales: Sequence[float],
) -> list[Units]:
    """Return the units of each layer that fit in its row."""
    chosen, room = [], _row_room(session, sources)
    for each, scale in zip(sources, scales, strict=True):
        fit = fitting(blank(each), room, scale)
        if session.plan.figure.column is None:
            fit = max(LEAST_UNITS, fit)
        chosen.append(_few(session, each.layer, each.held, fit))
    return chosen


def _sheet_records(sources: Sequence[Any], chosen: Sequence[Units]) -> list[Record]:
    """Return what is shown of each layer."""
    records = []
    for each, units in _pairs(sources, chosen):
        records.append(_sheet_record(each.session, each.layer, units, each.record))
    return records


def _sheet_record(session: Session, layer: Layer, units: Units, record: Record) -> Record:
    key = labels_key(session, layer, units)
    return {"layer": layer.alias, "units": list(units), **key, **record}


def _runs_cell(label: str, tiles: Pixels) -> Cell:
    """Return a unit's runs as a square."""
    return Cell(label, (Pane(tiles, columns_of(len(tiles))),))


def _blank_runs(images: OptimizedImages) -> Cell:
    count = min(images.count, RUNS)
    return _runs_cell("", np.zeros((count, *images.size, 3), np.uint8))


def _of_layers(
    name: str,
    session: Session,
    note: str,
    records: list[Record],
    rows: Callable[[], list[CellRow]],
) -> Figure:
    """Return one figure with a row of units for each layer."""
    names = ", ".join(record["layer"] for record in records)
    caption = _caption(session, f"{session.network.name} · {names}", note)

    record: Record = {"layers": records}
    if session.plan.montage.equal:
        record["sizes"] = "equal"

    def draw() -> Canvas:
        return rows_of_cells(rows(), caption)

    return Figure(name, ALL_LAYERS, caption.title, record, draw)


LINE_WIDTH = 1900  # width in pixels of a row of units; or
LEAST_UNITS = 4  # units


def _few(session: Session, layer: Layer, held: Held, room: int) -> Units:
    """Return as many units as fit in a row: the first of those requested, or a random sample."""
    units, plan = choose_units(session, layer, held), session.plan.montage
    if not (session.plan.units or plan.random or plan.best or plan.sort):
        return sample(session, layer, units, room)
    if len(units) > room and (session.plan.units or plan.random or plan.best):
        session.report.once(
            f"{layer.alias}: {room} of the {len(units)} chosen units fit in its row; a smaller "
            "--scale shows more"
        )
    return units[:room]


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
        return single(cell, noted(_caption(session, title, note), [cell]), scale)

    record = _sheet_record(session, cells.layer, [unit], cells.record)
    return Figure(name, f"{alias}_{unit:04d}", title, record, draw)


@kind("styles", Run.optimized)
def styles(session: Session, layers: Sequence[Layer]) -> list[Pages]:
    """Return blocks of 3x3 runs, one style each: Yosinski et al. 2015, Fig. 4."""
    note = "Preferred images: one block per style, up to nine runs in each, the strongest first."
    note += (
        ratio_note(_all_styles(session, layers)) + f" Tone: {TONE_RULES[session.plan.figure.tone]}."
    )
    return unit_figures("styles", note, session, [_style_cells(session, la) for la in layers])


def _all_styles(session: Session, layers: Sequence[Layer]) -> Iterator[OptimizedImages]:
    for layer in layers:
        yield from styles_of(session, layer)


def _style_cells(session: Session, layer: Layer, leads: bool = True) -> Cells:
    sources = styles_of(session, layer)
    held = _held_by_all(sources)

    def make(unit: int) -> Cell:
        panes: list[Pane] = []
        for images in sources:
            panes += images.panes(unit, leads=leads)
        return Cell(sources[0].label(unit), tuple(panes), across=columns_of(len(panes)))

    record = {"styles": [images.record for images in sources]}
    return Cells(layer, held, make, record, sources[0].size)


@kind("unit", Run.projected)
def unit(session: Session, layers: Sequence[Layer]) -> list[Pages]:
    """Return preferred images, image patches and projections: panes of Yosinski et al., Fig. 1."""
    note = "Preferred images by style, the strongest image patches, and what in them caused it."
    note += windows_of([projected_of(session, layer) for layer in layers])
    note += ratio_note(_all_styles(session, layers))
    note += f" Tone: {TONE_RULES[session.plan.figure.tone]}."
    return unit_figures("unit", note, session, [_unit_cells(session, la) for la in layers])


def _unit_cells(session: Session, layer: Layer) -> Cells:
    preferred, strongest = styles_of(session, layer), projected_of(session, layer)

    def make(unit: int) -> Cell:
        patches = strongest.patches(unit)
        projections = toned(strongest.projections([unit]), session.plan.figure.tone)[0]
        columns, names = columns_of(len(patches)), strongest.names(unit)
        room = ("",) * SQUARE if any(names) else ()  # so that the panes' rows stay level
        panes: list[Pane] = []
        for images in preferred:
            panes += images.panes(unit, room)
        panes.append(Pane(patches, columns, names, "strongest images"))
        panes.append(Pane(projections, columns, room, f"{strongest.method} projections"))
        return Cell(strongest.label(unit), tuple(panes), strongest.dead(unit))

    held = _held_by_all([*preferred, strongest])
    optimized = [images.record for images in preferred]
    record = {"optimized": optimized, "projected": strongest.record}
    return Cells(layer, held, make, record, preferred[0].size)


def _held_by_all(sources: Sequence[Any]) -> Held:
    """Return the units that all of several sources have."""
    held: Held = sources[0].held
    for images in sources[1:]:
        held = np.intersect1d(held, images.held)
    return held


@kind("toolbox", Run.optimized, Run.projected)
def toolbox(session: Session, layers: Sequence[Layer]) -> list[Pages]:
    """Return the three JPEGs per unit that the deep-visualization-toolbox's viewer loads.

    Set its ``caffevis_unit_jpg_dir`` to ``figures/toolbox``; see its
    caffevis/jpg_vis_loading_thread.py.
    """
    found: list[Figure] = []
    for layer in layers:
        if session.run.optimized(layer.alias).is_file():
            found += _toolbox_optimized(session, layer)
        if session.run.projected(layer.alias).is_file():
            found += _toolbox_top(session, layer)
    return [[each] for each in found]


def _toolbox_optimized(session: Session, layer: Layer) -> list[Figure]:
    """Return blocks of 3x3 runs, styles 1 and 2 above 3 and 4; the viewer shows the third."""
    cells = _style_cells(session, layer, leads=False)
    names = [record["style"] for record in cells.record["styles"]]

    def draw(unit: int) -> Canvas:
        panes = [pane.tiles for pane in cells.make(unit).panes]
        return toolbox_montage(dict(zip(names, panes, strict=True)))

    return [
        _jpeg(session, "regularized_opt", "_montage", cells, unit, partial(draw, unit))
        for unit in choose_units(session, layer, cells.held)
    ]


def _toolbox_top(session: Session, layer: Layer) -> list[Figure]:
    """Return the strongest patches and their projections, 3x3 each."""
    images, tone = projected_of(session, layer), session.plan.figure.tone
    units = choose_units(session, layer, images.held)
    cells = Cells(layer, images.held, lambda unit: _blank_top(images), images.record)

    def patches(unit: int) -> Canvas:
        return Pane(images.patches(unit)).canvas()

    def projections(unit: int) -> Canvas:
        return Pane(toned(images.projections([unit]), tone)[0]).canvas()

    figures = []
    for unit in units:
        figures.append(_jpeg(session, "max_im", "", cells, unit, partial(patches, unit)))
        figures.append(_jpeg(session, "max_deconv", "", cells, unit, partial(projections, unit)))
    return figures


def _jpeg(
    session: Session, what: str, suffix: str, cells: Cells, unit: int, draw: Callable[[], Canvas]
) -> Figure:
    alias = cells.layer.alias
    name = f"{what}/{alias}/{alias}_{unit:04d}{suffix}"
    title = f"{session.network.name} {Unit(alias, unit)}"
    record = _sheet_record(session, cells.layer, [unit], cells.record)
    return Figure("toolbox", name, title, record, draw, ("jpg",))


@kind("history", Run.optimized)
def history(session: Session, layers: Sequence[Layer]) -> list[Pages]:
    """Return the activation at each step of every run, one line plot per unit."""
    return [_history_sheet(session, style_of(session, layer)).pages(session) for layer in layers]


def _history_sheet(session: Session, images: OptimizedImages) -> UnitSheet:
    scale = session.plan.figure.scale or 1
    note = (
        f"Activation at each step of the ascent, style {images.style}, one line per run; the dot "
        "is the best image, which is kept."
    )

    def page(units: Units, caption: Caption) -> Canvas:
        values, best = images.read("history", units), images.read("best_step", units)
        steps = np.arange(values.shape[2]) * images.every
        panels = [
            Plot(images.label(unit), steps, *columns)
            for unit, *columns in zip(units, values, best, strict=True)
        ]
        return plots(panels, caption, scale)

    units = choose_units(session, images.layer, images.held)
    room = plots_on_a_page(scale)
    return UnitSheet("history", images.layer, units, note, images.record, page, room)
