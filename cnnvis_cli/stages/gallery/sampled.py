"""What a run's sample of images tells of units: pictures over the whole range, and classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cnnvis_cli.arrays import Doubles, Int64s, Pixels, Units
from cnnvis_cli.figure.windows import OUTSIDE
from cnnvis_cli.measures.intervals import class_means, value_counts
from cnnvis_cli.measures.unit_facts import digits
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.intervals import SampleImages
from cnnvis_cli.stages.gallery.panes import Photographs, PicturePane
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.sample_file import SampleFile

EACH = 2  # pictures of an interval
INTERVALS = 4  # of each unit: the strongest images are those of the patches
CLASSES = 6  # with the highest means that are shown


@dataclass(frozen=True)
class Sampled:
    """A layer's values in the images of sample.h5."""

    images: SampleImages

    @classmethod
    def of(cls, session: Session, layer: Layer) -> Sampled | None:
        """Return what the sample tells of a layer; None if there is none, or not of this layer."""
        file = SampleFile(session.run.sample)
        if file.identity() is None or layer.alias not in file.layers():
            return None
        return cls(SampleImages(session, layer))

    def rows(self, unit: int) -> list[tuple[str, list[int]]]:
        """Return some rows of the sample by interval, without the strongest."""
        found = list(self.images.intervals(unit).items())[1:]
        return [(name, rows[:EACH].tolist()) for name, rows in found]

    def pane(self, photographs: Photographs) -> PicturePane:
        """Return the pane of images from lower intervals: all units have one."""
        layer, size = self.images.layer, self.images.size

        def draw(units: Units) -> Pixels:
            found = np.full((len(units), INTERVALS * EACH, *size, 3), OUTSIDE, np.uint8)
            for i, unit in enumerate(units):
                for number, (_, rows) in enumerate(self.rows(unit)):
                    for place, row in enumerate(rows):
                        index = int(self.images.images.index[row])
                        if photographs.read(index) is not None:
                            patch = self.images.patches(unit, [row])[0]
                            found[i, number * EACH + place] = patch
            return found

        held = np.arange(layer.channels)
        return PicturePane("intervals", "", size, INTERVALS * EACH, held, draw)

    @cached_property
    def _means(self) -> tuple[Doubles, Int64s]:
        return class_means(self.images.values, self.images.images.label)

    def record(self, unit: int) -> Record:
        """Return the page's data on a unit: its intervals, and its classes with highest means."""
        about, values = self.images.images, self.images.values[:, unit]
        intervals = []
        for name, rows in self.rows(unit):
            shown = [(digits(values[row]), int(about.label[row]), about.name(row)) for row in rows]
            intervals.append((name, shown))
        means, counts = self._means
        best = np.argsort(-means[:, unit], kind="stable")[:CLASSES].tolist()
        found = [(label, digits(means[label, unit]), int(counts[label])) for label in best]
        found = [each for each in found if each[1] > 0 and each[2] > 1]
        counts, edges = value_counts(values)
        maxima = [digits(edges[0]), digits(edges[-1]), counts.tolist()]
        return {"intervals": intervals, "breakdown": found, "maxima": maxima}
