"""A gallery's data on single units: numbers, runs, strongest places, neighbours."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from cnnvis_cli.arrays import Units
from cnnvis_cli.histogram import LEVELS
from cnnvis_cli.measures.unit_facts import (
    class_counts,
    digits,
    histogram_bars,
    neighbours,
    plain_numbers,
)
from cnnvis_cli.nouns import Size, Unit
from cnnvis_cli.stages.figures.data import STRONGEST_SHOWN, OptimizedImages
from cnnvis_cli.stages.gallery.layers import CHUNK, SHARES, Dataset, ShownLayer
from cnnvis_cli.stages.gallery.panes import best_first
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.topk_file import LayerTopK


@dataclass(frozen=True)
class Facts:
    """The page's data on the units of one chunk."""

    shown: ShownLayer
    number: int

    def records(self) -> list[Record]:
        chunk = self.shown.chunk(self.number)
        records: list[Record] = [{} for _ in chunk]
        for images in self.shown.styles:
            for record, runs in zip(records, _run_facts(images, chunk), strict=True):
                record.setdefault("runs", {})[images.style] = runs
        for pane in self.shown.panes:
            ratios = self.shown.ratios(pane)
            for record, unit in zip(records, chunk, strict=True):
                if unit in ratios:
                    record.setdefault("ratios", {})[pane.name] = ratios[unit]
        if self.shown.top and self.shown.dataset:
            found = self._near(self.shown.top)
            counts, size = self.shown.counts, self.shown.session.network.size
            for record, unit, near in zip(records, chunk, found, strict=True):
                record.update(_strongest_places(self.shown.top, self.shown.dataset, unit, size))
                record.update(_statistics(self.shown.top, unit))
                if self.shown.lowest:
                    low = _strongest_places(self.shown.lowest, self.shown.dataset, unit, size)
                    record["lowest"] = low["top"]
                largest = float(self.shown.top.stats["max"][unit])
                record.update(near=near, bars=histogram_bars(counts[unit], largest))
        for record, unit in zip(records, chunk, strict=True):
            if self.shown.sampled:
                record.update(self.shown.sampled.record(unit))
            record.update(self.shown.tables.record(Unit(self.shown.layer.alias, unit)))
        return records

    def _near(self, top: LayerTopK) -> list[list[tuple[int, int]]]:
        """Return the units' neighbours, by number."""
        chosen = slice(self.number * CHUNK, self.number * CHUNK + CHUNK)
        found = []
        for near in neighbours(top.places.image[self.shown.units], chosen):
            found.append([(self.shown.units[row], shared) for row, shared in near])
        return found


def _run_facts(images: OptimizedImages, chunk: Units) -> list[list[list[float | None]]]:
    """Return each unit's runs, as shown: number, activation, first one, step, outcome."""
    names = ("activation", "start", "best_step", "outcome")
    columns = [images.file.read(images.style, name) for name in names]
    rows = {unit: row for row, unit in enumerate(images.held.tolist())}
    found = []
    for unit in chunk:
        known = unit in rows
        found.append(_runs_of([column[rows[unit]] for column in columns]) if known else [])
    return found


def _runs_of(columns: Sequence[NDArray[Any]]) -> list[list[float | None]]:
    """Return one unit's runs, in the order of their pictures."""
    order = best_first(columns[0])
    rows = zip(order, *(plain_numbers(column[order]) for column in columns), strict=True)
    return list(map(list, rows))


def _strongest_places(top: LayerTopK, dataset: Dataset, unit: int, size: Size) -> Record:
    """Return the unit's strongest places, and the classes of all.

    A place is its activation, class, file, image and window in an input of `size`.
    """
    row = top.places.image[unit]
    images = row[row >= 0].tolist()
    labels, values = dataset.labels(images), plain_numbers(top.places.activation[unit])
    shown = [*zip(values[: len(images)], labels, map(dataset.name, images), images, strict=True)]
    places = []
    for rank, place in enumerate(shown[:STRONGEST_SHOWN]):
        places.append([*place, *top.tile(unit, rank, size)])
    equal = Counter(top.places.activation[unit, : len(images)].tolist())
    ties = sum(count for count in equal.values() if count > 1)
    return {"top": places, "classes": class_counts(labels), "ties": ties}


def _statistics(top: LayerTopK, unit: int) -> Record:
    names = ("max", "mean", "std", "active", "selectivity")
    stats: Record = {name: plain_numbers(top.stats[name][[unit]])[0] for name in names}
    stats["class"] = int(top.stats["class"][unit])
    stats["dead"] = bool(top.stats["dead"][unit])
    return {"stats": stats, "quantiles": _quantiles(top, unit)}


def _quantiles(top: LayerTopK, unit: int) -> list[tuple[float, float]]:
    """Return quantile levels, and the quantiles."""
    values = top.stats["quantiles"][unit]
    found = []
    for share in SHARES:
        value = float(values[LEVELS.index(share)])
        if math.isfinite(value):
            found.append((share, digits(value)))
    return found
