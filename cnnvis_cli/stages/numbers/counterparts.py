"""Pictures of what two runs have in common: matched units side by side, and those without match."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import filterfalse
from operator import attrgetter

import numpy as np

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.figure.canvas import Canvas, resized
from cnnvis_cli.figure.sheets import Caption, Cell, CellRow, Pane, rows_of_cells
from cnnvis_cli.measures.pairing import UnitPair
from cnnvis_cli.nouns import Unit
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.dataset_images import image_reader
from cnnvis_cli.stages.common.network_loading import bare_network, planned_for
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.intervals import SampleImages
from cnnvis_cli.store.run import Run

SHOWN = 4  # units of a layer
TILE_SIDE = 48  # pixels of a patch's longer side


@dataclass(frozen=True)
class RunPictures:
    """What the sample of a run shows of its units; a layer's values are read once in a row."""

    session: Session

    @cached_property
    def _images(self) -> Callable[[str], SampleImages]:
        """Open a layer's images by its name; one layer is held, and one reader for all."""
        read = image_reader(self.session)

        def opened(alias: str) -> SampleImages:
            return SampleImages(self.session, self.session.network.layer(alias), read)

        return lru_cache(maxsize=1)(opened)

    def strongest(self, unit: Unit, side: int) -> Pixels:
        """Return a unit's nine strongest patches, their longer side so many pixels: (9, h, w, 3).

        White where there are fewer.
        """
        images = self._images(unit.layer)
        rows = images.intervals(unit.channel)["strongest"].tolist()
        height, width = (max(1, round(each * side / max(images.size))) for each in images.size)
        tiles = []
        for patch in images.patches(unit.channel, rows):
            tiles.append(np.asarray(resized(patch, (width, height))))
        return np.stack(tiles)


@dataclass(frozen=True)
class SideBySide:
    """Both runs, opened for reading."""

    one: RunPictures
    two: RunPictures

    @classmethod
    def of(cls, first: Run, second: Run, report: Report) -> SideBySide:
        """Open two runs; nothing is computed or locked."""
        return cls(*(RunPictures(_opened(run, report)) for run in (first, second)))

    def matches(self, layers: Iterable[Sequence[UnitPair]], caption: Caption) -> Canvas | None:
        """Return the best matches of each layer, patches of both units; None if nothing does."""
        rows = []
        for pairs in layers:
            matched = filter(attrgetter("survives"), pairs)
            chosen = sorted(matched, key=attrgetter("correlation"), reverse=True)[:SHOWN]
            rows += [self._row(chosen, both=True)] if chosen else []
        return rows_of_cells(rows, caption) if rows else None

    def unmatched(self, layers: Iterable[Sequence[UnitPair]], caption: Caption) -> Canvas | None:
        """Return the units of the first run that are least like any of the second; None if none."""
        rows = []
        for pairs in layers:
            lost = filterfalse(attrgetter("survives"), pairs)
            chosen = sorted(lost, key=attrgetter("correlation"))[:SHOWN]
            rows += [self._row(chosen, both=False)] if chosen else []
        return rows_of_cells(rows, caption) if rows else None

    def _row(self, pairs: Sequence[UnitPair], both: bool) -> CellRow:
        cells = []
        for pair in pairs:
            shown = (
                [(self.one, pair.unit), (self.two, pair.best)] if both else [(self.one, pair.unit)]
            )
            panes = [Pane(side.strongest(unit, TILE_SIDE), title=str(unit)) for side, unit in shown]
            cells.append(Cell(f"r {pair.correlation:.2f}", tuple(panes)))
        return CellRow(pairs[0].unit.layer, tuple(cells), 1)


def _opened(run: Run, report: Report) -> Session:
    plan = planned_for(Plan.make(None, {"run": str(run.path)}))
    return Session(plan, bare_network(plan, run), run, report)
