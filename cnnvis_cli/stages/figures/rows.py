"""Figures with a row of units for each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cnnvis_cli.arrays import Units
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.sheets import (
    Cell,
    CellRow,
    fitting,
    gutter_of,
    row_scale,
    rows_of_cells,
)
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.montages import ALL_LAYERS, montage_caption, shown_record
from cnnvis_cli.stages.figures.render import Figure
from cnnvis_cli.stages.figures.selection import Held, choose_units, sample
from cnnvis_cli.store.run import Record


def figure_of_layers(
    name: str,
    session: Session,
    note: str,
    records: list[Record],
    rows: Callable[[], list[CellRow]],
) -> Figure:
    """Return one figure with a row of units for each layer."""
    names = ", ".join(record["layer"] for record in records)
    caption = montage_caption(session, f"{session.network.name} · {names}", note)

    record: Record = {"layers": records}
    if session.plan.montage.equal:
        record["sizes"] = "equal"

    def draw() -> Canvas:
        return rows_of_cells(rows(), caption)

    return Figure(name, ALL_LAYERS, caption.title, record, draw)


def shown_records(sources: Sequence[Any], chosen: Sequence[Units]) -> list[Record]:
    """Return what is shown of each layer."""
    records = []
    for each, units in with_units(sources, chosen):
        records.append(shown_record(each.session, each.layer, units, each.record))
    return records


def with_units(sources: Sequence[Any], chosen: Sequence[Units]) -> list[tuple[Any, Units]]:
    return list(zip(sources, chosen, strict=True))


def sizes_text(session: Session) -> str:
    """Return in words whether tiles have one scale or one size."""
    if session.plan.montage.equal:
        return "tiles of all layers equally large"
    return "all at one scale, so that sizes are those of the features"


EQUAL_SIDE = 112  # pixels of a tile's side where those of all layers are alike
UNITS_IN_COLUMN = 4  # units of a layer in a column of a paper, unless they are chosen
LEAST_IN_COLUMN = 8  # pixels of a picture's longer side that can be seen
TILE_IN_COLUMN = 26  # least side of a tile of the largest layer there, if fewer units help


def scales_of_rows(
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


LINE_WIDTH = 1900  # width in pixels of a row of units; or
LEAST_UNITS = 4  # units


def _row_room(session: Session, sources: Sequence[Any]) -> int:
    """Return the width in pixels that the units of a row may take."""
    caption = montage_caption(session, "", "")
    if not caption.room:
        return LINE_WIDTH
    return caption.room - gutter_of([each.layer.alias for each in sources], caption)


def units_in_rows(
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
