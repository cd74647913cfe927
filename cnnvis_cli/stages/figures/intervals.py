"""Figures of a unit's images over its whole range, from the sample: more than the extreme nine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cnnvis_cli.arrays import Floats, Int32s, Int64s, Pixels
from cnnvis_cli.ascent.starts import seed_of
from cnnvis_cli.figure.sheets import Cell, Pane
from cnnvis_cli.figure.windows import crop
from cnnvis_cli.figure.words import four_digits
from cnnvis_cli.measures.intervals import in_intervals
from cnnvis_cli.nouns import Box, Layer, Size, Unit
from cnnvis_cli.stages.common.dataset_images import ReadImage, image_reader
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.data import SQUARE, unit_label
from cnnvis_cli.stages.figures.montages import Cells, Pages, kind, unit_figures
from cnnvis_cli.stages.numbers.names import sample_of
from cnnvis_cli.store.sample_file import SampledImages, SampleFile
from cnnvis_cli.store.seals import content_digest


@dataclass(frozen=True)
class SampleImages:
    """The images of a run's sample, as a layer's units see them."""

    session: Session
    layer: Layer
    shared: ReadImage | None = None  # a reader of several layers, which decodes an image once

    @cached_property
    def file(self) -> SampleFile:
        return SampleFile(self.session.run.sample)

    @cached_property
    def images(self) -> SampledImages:
        return self.file.images()

    @cached_property
    def values(self) -> Floats:
        """Each unit's largest value in each image, (N, C); NaN for images that were skipped."""
        found = self.file.values(self.layer.alias)
        found[self.images.skipped] = np.nan
        return found

    @cached_property
    def places(self) -> Int32s:
        """Where in the map it is, row by row: (N, C)."""
        return self.file.places(self.layer.alias)

    @cached_property
    def read(self) -> ReadImage:
        """Read an image by its index in the dataset."""
        return self.shared or image_reader(self.session)

    @property
    def size(self) -> Size:
        """The height and width of a patch."""
        return self.layer.tile_size(self.session.network.size)

    def intervals(self, unit: int) -> dict[str, Int64s]:
        """Return rows of the sample by interval of a unit's values, the same ones every time."""
        seed = seed_of(self.session.plan.seed, Unit(self.layer.alias, unit), 0)
        return in_intervals(self.values[:, unit], SQUARE, np.random.default_rng(seed))

    def patches(self, unit: int, rows: Sequence[int]) -> Pixels:
        """Return the windows of a unit's largest values in images, (9, h, w, 3); white for none."""
        found = np.full((SQUARE, *self.size, 3), 255, np.uint8)
        for number, row in enumerate(rows):
            place = divmod(int(self.places[row, unit]), self.layer.map[1])
            window = self.layer.local.box(*place).tile(self.session.network.size)
            box = window if window.size == self.size else Box.whole(self.size)
            found[number] = crop(self.read(int(self.images.index[row])), box)
        return found


@kind("intervals", lambda run, _: run.sample)
def intervals(session: Session, layers: Sequence[Layer]) -> list[Pages]:
    """Return patches from five intervals of each unit's activation; needs topk --sample."""
    held, asked = sample_of(session.run).layers(), session.plan.layer
    note = (
        "Image patches from five intervals of the largest activation per image, the strongest "
        "first in each; none: no activation above 0."
    )
    cells = [_cells(session, layer) for layer in layers if asked or layer.alias in held]
    return unit_figures("intervals", note, session, cells)


def _cells(session: Session, layer: Layer) -> Cells:
    sample = SampleImages(session, layer)

    def make(unit: int) -> Cell:
        panes = []
        for name, rows in sample.intervals(unit).items():
            column = sample.values[rows, unit]
            title = name
            if len(rows):
                title += f": {four_digits(column.min())} to {four_digits(column.max())}"
            panes.append(Pane(sample.patches(unit, rows.tolist()), 3, title=title))
        return Cell(unit_label(session, layer, unit), tuple(panes))

    record = {"source": content_digest(sample.file.path), "seed": session.plan.seed}
    return Cells(layer, np.arange(layer.channels), make, record, sample.size)
