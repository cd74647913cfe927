"""The files that the deep-visualization-toolbox's viewer loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.sheets import (
    Pane,
    toolbox_montage,
)
from cnnvis_cli.figure.tone import toned
from cnnvis_cli.nouns import Layer, Unit
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.data import (
    projected_of,
)
from cnnvis_cli.stages.figures.montages import Cells, Pages, kind, shown_record
from cnnvis_cli.stages.figures.preferred import style_cells
from cnnvis_cli.stages.figures.render import Figure
from cnnvis_cli.stages.figures.selection import choose_units
from cnnvis_cli.stages.figures.strongest import blank_top
from cnnvis_cli.store.run import Run


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
    cells = style_cells(session, layer, leads=False)
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
    cells = Cells(layer, images.held, lambda unit: blank_top(images), images.record)

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
    record = shown_record(session, cells.layer, [unit], cells.record)
    return Figure("toolbox", name, title, record, draw, ("jpg",))
