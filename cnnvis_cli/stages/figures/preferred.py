"""Montages of optimized images: sheets of layers, styles side by side, all layers, histories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

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
    per_page,
    sheet,
    sheets_below,
)
from cnnvis_cli.figure.tone import TONE_RULES, common_divisor, toned, toned_together
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.common.lists import in_groups
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.data import (
    NOISE,
    OptimizedImages,
    ratio_note,
    style_of,
    styles_of,
)
from cnnvis_cli.stages.figures.montages import (
    ALL_LAYERS,
    UNITS_AT_ONCE,
    Cells,
    Pages,
    UnitSheet,
    held_by_all,
    kind,
    montage_caption,
    noted,
    tile_text,
    unit_figures,
)
from cnnvis_cli.stages.figures.render import Figure, tile_scale
from cnnvis_cli.stages.figures.rows import (
    figure_of_layers,
    scales_of_rows,
    shown_records,
    sizes_text,
    units_in_rows,
    with_units,
)
from cnnvis_cli.stages.figures.selection import choose_units
from cnnvis_cli.store.run import Record, Run


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
    caption = montage_caption(session, f"{session.network.name} · {names}", note)

    def draw() -> Canvas:
        parts, every = [], list[Cell]()
        for images, units, scale in zip(sources, chosen, scales, strict=True):
            cells = tuple(_best_cells(session, images, units))
            parts.append(CellRow(images.layer.alias, cells, max(1, scale)))
            every += cells
        return sheets_below(parts, noted(caption, every))

    record: Record = {"layers": shown_records(sources, chosen)}
    return Figure("optimized", ALL_LAYERS, caption.title, record, draw)


IN_ONE_ROW = 3  # styles of a unit, so that three leave no gap
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
        f"{images.what}, style {images.style}, {tile_text(session, images.size)}. "
        f"Tone: {TONE_RULES[images.tone]}. Crossed out: no gradient reached the image."
    )

    def page(units: Units, caption: Caption) -> Canvas:
        cells = list(_best_cells(session, images, units))
        shown = replace(caption, note=caption.note + images.compared(units))
        return sheet(cells, noted(shown, cells), max(1, scale))

    height, width = (scaled(side, scale) for side in images.size)
    units, room = choose_units(session, images.layer, images.held), per_page((height, width))
    return UnitSheet("optimized", images.layer, units, note, images.record, page, room)


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


@kind("styles", Run.optimized)
def styles(session: Session, layers: Sequence[Layer]) -> list[Pages]:
    """Return blocks of 3x3 runs, one style each: Yosinski et al. 2015, Fig. 4."""
    note = "Preferred images: one block per style, up to nine runs in each, the strongest first."
    note += (
        ratio_note(all_styles(session, layers)) + f" Tone: {TONE_RULES[session.plan.figure.tone]}."
    )
    return unit_figures("styles", note, session, [style_cells(session, la) for la in layers])


def all_styles(session: Session, layers: Sequence[Layer]) -> Iterator[OptimizedImages]:
    for layer in layers:
        yield from styles_of(session, layer)


def style_cells(session: Session, layer: Layer, leads: bool = True) -> Cells:
    sources = styles_of(session, layer)
    held = held_by_all(sources)

    def make(unit: int) -> Cell:
        panes: list[Pane] = []
        for images in sources:
            panes += images.panes(unit, leads=leads)
        across = max(columns_of(len(panes)), min(len(panes), IN_ONE_ROW))
        return Cell(sources[0].label(unit), tuple(panes), across=across)

    record = {"styles": [images.record for images in sources]}
    return Cells(layer, held, make, record, sources[0].size)


RUNS = 4


@kind("layers", Run.optimized)
def layers(session: Session, layers: Sequence[Layer]) -> list[Pages]:
    """Return all layers at true size, the last on top, four runs per channel: Yosinski, Fig. 5."""
    sources = [style_of(session, layer) for layer in reversed(layers)]
    scales = scales_of_rows(session, sources, _blank_runs)
    chosen = units_in_rows(session, sources, _blank_runs, scales)
    note = (
        f"{sources[0].what}, style {sources[0].style}, up to {RUNS} runs per unit, "
        f"{sizes_text(session)}. "
        f"Tone: {TONE_RULES[session.plan.figure.tone]}."
    )

    def rows() -> list[CellRow]:
        tone, mean = session.plan.figure.tone, session.network.preprocessing.mean
        values = [images.runs(units, RUNS) for images, units in with_units(sources, chosen)]
        rows = []
        toned = toned_together(values, tone, mean)
        for images, units, tiles, scale in zip(sources, chosen, toned, scales, strict=True):
            cells = map(_runs_cell, map(images.label, units), tiles)
            rows.append(CellRow(images.layer.alias, tuple(cells), scale))
        return rows

    return [[figure_of_layers("layers", session, note, shown_records(sources, chosen), rows)]]


def _runs_cell(label: str, tiles: Pixels) -> Cell:
    """Return a unit's runs as a square."""
    return Cell(label, (Pane(tiles, columns_of(len(tiles))),))


def _blank_runs(images: OptimizedImages) -> Cell:
    count = min(images.count, RUNS)
    return _runs_cell("", np.zeros((count, *images.size, 3), np.uint8))


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
