"""Montages of the strongest images and their projections."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cnnvis_cli.arrays import Pixels, Units
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.grid import columns_of
from cnnvis_cli.figure.sheets import (
    Caption,
    Cell,
    CellRow,
    Pane,
    per_page,
    sheet,
)
from cnnvis_cli.figure.tone import TONE_RULES, toned, toned_together
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.data import (
    SQUARE,
    TopImages,
    projected_of,
    ratio_note,
    styles_of,
    windows_of,
)
from cnnvis_cli.stages.figures.montages import (
    Cells,
    Pages,
    UnitSheet,
    held_by_all,
    kind,
    tile_text,
    unit_figures,
)
from cnnvis_cli.stages.figures.preferred import all_styles
from cnnvis_cli.stages.figures.render import tile_scale
from cnnvis_cli.stages.figures.rows import (
    figure_of_layers,
    scales_of_rows,
    shown_records,
    sizes_text,
    units_in_rows,
    with_units,
)
from cnnvis_cli.stages.figures.selection import choose_units
from cnnvis_cli.store.run import Run


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
        f"(right), {tile_text(session, images.size)}. Tone of projections: "
        f"{TONE_RULES[plan.tone]}; patches as photographed, grey outside the image."
        f"{images.windows}"
    )

    def page(units: Units, caption: Caption) -> Canvas:
        projections = toned(images.projections(units), plan.tone)
        return sheet(_top_cells(images, units, projections), caption, scale)

    room = per_page(blank_top(images).size(scale))
    units = choose_units(session, images.layer, images.held)
    return UnitSheet("top", images.layer, units, note, images.record, page, room)


def _top_cells(images: TopImages, units: Units, projections: Pixels) -> list[Cell]:
    cells = []
    for unit, tiles in zip(units, projections, strict=True):
        label = images.label(unit)
        if images.dead(unit):
            cells.append(Cell(label, blank_top(images).panes, dead=True))
        else:
            cells.append(_top_cell(label, tiles, images.patches(unit), images.names(unit)))
    return cells


def _top_cell(label: str, projections: Pixels, patches: Pixels, names: tuple[str, ...]) -> Cell:
    columns, room = columns_of(len(patches)), ("",) * len(names)  # rows stay level
    return Cell(label, (Pane(projections, columns, room), Pane(patches, columns, names)))


def blank_top(images: TopImages) -> Cell:
    """Return a cell of a unit without places; also used to measure."""
    white = np.full((images.shown, *images.size, 3), 255, np.uint8)
    return _top_cell("", white, white, images.names(0))


def _top_together(session: Session, sources: Sequence[TopImages]) -> Pages:
    """Return a few units of each layer in one figure, as in print."""
    tone = session.plan.figure.tone
    scales = scales_of_rows(session, sources, blank_top)
    chosen = units_in_rows(session, sources, blank_top, scales)
    note = (
        f"The strongest places of some units of each layer: {sources[0].method} projections "
        f"(left) beside image patches (right), {sizes_text(session)}. Tone of projections: "
        f"{TONE_RULES[tone]}; patches as photographed, grey outside the image."
        f"{windows_of(sources)}"
    )

    def rows() -> list[CellRow]:
        values = [images.projections(units) for images, units in with_units(sources, chosen)]
        rows = []
        toned = toned_together(values, tone)
        for images, units, tiles, scale in zip(sources, chosen, toned, scales, strict=True):
            cells = tuple(_top_cells(images, units, tiles))
            rows.append(CellRow(images.layer.alias, cells, scale))
        return rows

    return [figure_of_layers("top", session, note, shown_records(sources, chosen), rows)]


@kind("unit", Run.projected)
def unit(session: Session, layers: Sequence[Layer]) -> list[Pages]:
    """Return preferred images, image patches and projections: panes of Yosinski et al., Fig. 1."""
    note = "Preferred images by style, the strongest image patches, and what in them caused it."
    note += windows_of([projected_of(session, layer) for layer in layers])
    note += ratio_note(all_styles(session, layers))
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

    held = held_by_all([*preferred, strongest])
    optimized = [images.record for images in preferred]
    record = {"optimized": optimized, "projected": strongest.record}
    return Cells(layer, held, make, record, preferred[0].size)
