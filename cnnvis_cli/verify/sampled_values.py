"""The values in sample.h5: held against topk.h5, and of some images computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cnnvis_cli.arrays import Floats, Int32s
from cnnvis_cli.dataset.manifest import Manifest
from cnnvis_cli.nouns import Layer, Unit
from cnnvis_cli.stages.common.lists import in_groups
from cnnvis_cli.stages.project.backward_pass import TOLERANCE
from cnnvis_cli.store.sample_file import SampledImages, SampleFile
from cnnvis_cli.verify.dataset import DatasetToday
from cnnvis_cli.verify.findings import Findings, Unread
from cnnvis_cli.verify.values import RECOMPUTED_AT_ONCE, outputs_of

SAMPLED = "sample values"
HALF = 2.0**-11  # the largest relative error of a half float


def check_sample(
    photographs: DatasetToday, findings: Findings, generator: np.random.Generator, most: int
) -> None:
    """Check which images a sample has and what topk.h5 lists of them, and compute some again."""
    file = SampleFile(photographs.session.run.sample)
    if not file.path.exists() or file.path in findings.bad:
        return
    about, held = file.images(), file.layers()
    findings.stored(SAMPLED, 0, _image_problems(file, about, photographs))
    layers = []
    for layer in photographs.session.network.layers:
        if layer.alias in held:
            values, places = file.values(layer.alias), file.places(layer.alias)
            found = SampledLayer(file, layer, about, values, places)
            findings.stored(SAMPLED, 0, found.contradictions(photographs))
            layers.append(found)
    _compute_again(photographs, findings, layers, _some_rows(about, generator, most))


def _image_problems(
    file: SampleFile, about: SampledImages, photographs: DatasetToday
) -> Iterator[str]:
    """Yield what is wrong with the images of a sample: they are those with the least hashes."""
    images = photographs.images
    columns = (images.path, images.size, images.offset, images.label)
    chosen = Manifest(photographs.session.run.path, *columns, ()).sample(len(about.index))
    if about.index.tolist() != chosen.tolist():
        yield f"{file.path}: holds other images than those whose paths have the least hashes"
        return
    wanted = SampledImages.of(images, about.index)
    for name in ("path", "label", "skipped", "crc"):
        if getattr(about, name).tolist() != getattr(wanted, name).tolist():
            yield f"{file.path}: its images have another {name} than in topk.h5"


def _some_rows(about: SampledImages, generator: np.random.Generator, most: int) -> list[int]:
    """Return up to `most` rows of images that were used, at least one if there is one."""
    used = np.flatnonzero(~about.skipped)
    return sorted(generator.permutation(used)[: max(1, most)].tolist())


def _compute_again(
    photographs: DatasetToday,
    findings: Findings,
    layers: Sequence[SampledLayer],
    chosen: Sequence[int],
) -> None:
    session, done = photographs.session, 0
    about = SampleFile(session.run.sample).images()
    for few in in_groups(chosen, RECOMPUTED_AT_ONCE):
        session.report.check_stop()
        pixels, rows = [], []
        for row in few:
            try:
                pixels.append(photographs.read(int(about.index[row])))
                rows.append(row)
            except Unread:
                continue
        if not rows:
            continue
        for layer, maps in outputs_of(session, np.stack(pixels)):
            for held in layers:
                if held.layer == layer:
                    problems = held.compare(rows, maps.cpu().numpy())
                    findings.recomputed(SAMPLED, len(rows) * layer.channels, problems)
        done += len(rows)
    names = [about.name(row) for row in chosen[:1]]
    first = f" (the first is {names[0]})" if names else ""
    why = f"of images outside the {done} computed again{first}; --all proves them"
    units = sum(held.layer.channels for held in layers)
    findings.leave(SAMPLED, units * (int((~about.skipped).sum()) - done), why)


@dataclass(frozen=True)
class SampledLayer:
    """A layer's values and places in the images of a sample, (N, C) each."""

    file: SampleFile
    layer: Layer
    about: SampledImages
    values: Floats
    places: Int32s

    def contradictions(self, photographs: DatasetToday) -> Iterator[str]:
        """Yield the places in topk.h5 of images of the sample that have another value here."""
        if self.layer.alias not in photographs.file.layers():
            return
        top = photographs.file.layer(self.layer.alias).places
        row_of = np.full(len(photographs.images.path), -1)
        row_of[self.about.index] = np.arange(len(self.about.index))
        rows = np.where(top.image >= 0, row_of[np.maximum(top.image, 0)], -1)
        for unit, rank in np.argwhere(rows >= 0).tolist():
            row, value = rows[unit, rank], float(top.activation[unit, rank])
            here = float(self.values[row, unit])
            if not abs(here - value) <= HALF * abs(value) + self._least:
                yield f"{self._name(row, unit)}: is {here:.6g}, and topk.h5 lists {value:.6g}"

    @property
    def _least(self) -> float:
        """The smallest difference that half floats of this layer can lose."""
        return 2.0**-29 * float(np.nanmax(np.abs(self.values), initial=0))

    def compare(self, rows: Sequence[int], maps: Floats) -> Iterator[str]:
        """Yield the values of some images that are not those of their maps (B, places, C)."""
        precision = str((self.file.identity() or {}).get("precision", "float32"))
        scale = float(np.nanmax(np.abs(self.values), initial=0))
        for row, whole in zip(rows, maps, strict=True):
            stored, place = self.values[row], self.places[row]
            largest = np.where(np.isnan(whole), -np.inf, whole).max(axis=0)
            inside = (place >= 0) & (place < len(whole))
            there = whole[np.clip(place, 0, len(whole) - 1), np.arange(len(place))]
            allowed = TOLERANCE[precision] * scale + HALF * np.abs(stored)
            none = np.isnan(whole).all(axis=0)
            right = inside & (np.abs(largest - stored) <= allowed)
            right &= np.abs(there - stored) <= allowed
            right = np.where(none, np.isnan(stored) & (place == -1), right)
            for unit in np.flatnonzero(~right).tolist():
                yield (
                    f"{self._name(row, unit)}: is {stored[unit]:.6g}, computed again "
                    f"{there[unit]:.6g} there and {largest[unit]:.6g} at most"
                )

    def _name(self, row: int, unit: int) -> str:
        return f"{self.file.path}: {Unit(self.layer.alias, unit)} in {self.about.name(row)}"
