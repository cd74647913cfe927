"""`cnnvis look`: one sheet per image: the decision, where it looks, which units answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch

from cnnvis_cli.arrays import Floats, Pixels
from cnnvis_cli.dataset.decode import write_png
from cnnvis_cli.demo.synthetic import CLASSES, draw
from cnnvis_cli.digests import file_digest
from cnnvis_cli.engine import steady
from cnnvis_cli.errors import CnnvisError
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.heat import over, to_largest
from cnnvis_cli.figure.sheets import (
    Caption,
    Cell,
    CellRow,
    Pane,
    gutter_of,
    row_scale,
    rows_of_cells,
)
from cnnvis_cli.figure.tone import toned
from cnnvis_cli.figure.words import four_digits, percent
from cnnvis_cli.nouns import Layer, Unit
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.data import TopImages, projected_of, style_of
from cnnvis_cli.stages.figures.render import Figure, draw_figure
from cnnvis_cli.stages.single.inputs import InputImage, batch_of, class_name, photographs
from cnnvis_cli.stages.single.occlude import OcclusionJob
from cnnvis_cli.stages.single.saliency import Explanation, SaliencyJob
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.topk_file import TopKFile

BUNDLED = "demo"  # the name of the bundled picture
SQUARES = 9  # positions of the covering square per side
LAYERS, UNITS, PATCHES = 3, 3, 3
LOOK_TILE = 112  # pixels of a picture's side on the sheet, at least
LOOK_GUESSES = 3


def look_at(session: Session) -> None:
    """Draw one sheet per image; existing ones are left as they are."""
    session = session.here()
    places = [_input_path(session, place) for place in session.plan.look.images]
    for image in photographs(session, places):
        for path in draw_figure(session, Look(session, image).figure()):
            session.report.result(str(path))


def _input_path(session: Session, place: str) -> str:
    """Return the path of an image; the bundled picture is drawn beside the run directory."""
    if place != BUNDLED or Path(place).exists():
        return place
    path = session.run.path.with_name(f"{session.run.path.name}-look") / f"{CLASSES[0]}.png"
    if not path.exists():
        write_png(path, draw(CLASSES[0], 0))
    return str(path)


def _column_rows(rows: Sequence[CellRow], caption: Caption) -> list[CellRow]:
    """Return rows for a column of a paper: the decision, as wide as it, then a row per unit."""
    room = caption.room - gutter_of([row.title for row in rows], caption)
    decision, *layers = rows
    count = len(decision.cells)
    scale = row_scale(decision.cells[0], count, room)
    found = [replace(decision, scale=scale)]
    for layer in layers:
        for number, cell in enumerate(layer.cells):
            title = "" if number else layer.title
            found.append(CellRow(title, (cell,), min(scale, row_scale(cell, 1, room))))
    return found


@dataclass(frozen=True, eq=False)
class Look:
    """One image's sheet."""

    session: Session
    image: InputImage

    def figure(self) -> Figure:
        """Return the figure, which depends on the image, the network and what the run holds."""
        title = f"{self.session.network.name} · {self.image.name}"
        record = {
            "pixels": self.image.digest,
            "weights_sha256": self.session.network.digest,
            "layers": [layer.alias for layer in self.layers],
            "held": self._held(),
        }
        return Figure("look", self.image.name, title, record, partial(self.draw, title))

    def _held(self) -> Record:
        """Return the digests of the files of the run that the sheet shows something of."""
        run = self.session.run
        paths = [run.topk]
        for layer in self.layers:
            paths += [run.optimized(layer.alias), run.projected(layer.alias)]
        held = filter(Path.is_file, paths)
        return {path.relative_to(run.path).as_posix(): file_digest(path) for path in held}

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The plan's layers, or an early, a middle and the last one with a map."""
        if self.session.plan.layer:
            return self.session.layers
        network = self.session.network
        own = network.layers if len(network.layers) == 1 else network.layers[:-1]  # no classes
        maps = [layer for layer in own if max(layer.map) > 1]
        last = len(maps) - 1
        chosen = sorted({last * (step + 1) // LAYERS for step in range(LAYERS)})
        return tuple(maps[place] for place in chosen if place >= 0)

    def draw(self, title: str) -> Canvas:
        """Return the sheet: the decision in the first row, then a row per layer."""
        saliency = SaliencyJob.of(self._asking("saliency", method=("gradcam",)))
        with steady():
            maps = self.maps()
            (answer,) = saliency.answers([self.image])
        rows = [self.decision(saliency, answer)]
        for layer in self.layers:
            self.session.report.check_stop()
            rows.append(CellRow(layer.alias, tuple(self.units(layer, maps[layer.alias]))))
        plan = self.session.plan.figure
        caption = Caption(f"{title} · {self.guessed(answer)}", self.note(), plan.column)
        if caption.room:
            rows = _column_rows(rows, caption)
        return rows_of_cells(rows, caption, plan.scale or 1)

    def maps(self) -> dict[str, Floats]:
        """Return each layer's map for the image, (C, rows, columns)."""
        network, found = self.session.network, dict[str, Floats]()

        def keep(layer: Layer, output: torch.Tensor) -> None:
            found[layer.alias] = output[0].float().cpu().numpy()

        with torch.no_grad(), network.tap(self.layers, keep) as run:
            run(network.normalise(batch_of(network, [self.image])))
        return found

    def guessed(self, answer: Explanation) -> str:
        """Return the most probable classes."""
        names = []
        for guess in np.argsort(-answer.probability, kind="stable")[:LOOK_GUESSES].tolist():
            name = class_name(self.session.network, guess)
            names.append(f"{name} {percent(float(answer.probability[guess]))}")
        return ", ".join(names) or "no classes"

    def decision(self, saliency: SaliencyJob, answer: Explanation) -> CellRow:
        """Return the image, Grad-CAM and the probability under a moving square."""
        photograph = self.image.pixels
        cells = [self._cell("the image", photograph)]
        if "gradcam" in answer.heats and saliency.at is not None:
            seen = over(photograph, answer.heats["gradcam"])
            cells.append(self._cell(f"Grad-CAM, {saliency.at.alias}", seen))
        cells.append(self._cell("drop under a square", self.covered()))
        return CellRow("decision", tuple(cells))

    def covered(self) -> Pixels:
        """Return where covering the image lowers the predicted class's probability most."""
        shorter = min(self.session.network.size)
        stride = max(1, shorter // SQUARES)
        asking = self._asking("occlude", size=2 * stride, stride=stride)
        layer = [la for la in asking.network.layers if max(la.map) > 1][-1:]
        job = OcclusionJob.of(asking, layer[0] if layer else asking.network.layers[-1])
        record, arrays = job.compute(self.image)
        drop = float(record["whole_probability"]) - arrays["probability"]
        rows, columns = job.squares.nearest(asking.network.size)
        strength = to_largest(np.clip(drop, 0, None))[rows][:, columns]
        return over(self.image.pixels, strength)

    def _asking(self, section: str, **settings: object) -> Session:
        """Return the session with settings of a section."""
        plan = self.session.plan
        asked = replace(getattr(plan, section), **settings)
        return replace(self.session, plan=replace(plan, **{section: asked}, layer=()))

    def units(self, layer: Layer, maps: Floats) -> Iterator[Cell]:
        """Yield the layer's strongest units: their maps, and what the run holds of them."""
        strength, rule = self._strengths(layer, maps)
        for unit in np.argsort(-strength, kind="stable")[:UNITS].tolist():
            value = float(maps[unit].max())
            positive = np.clip(maps[unit], 0, None)
            rows = (np.arange(self.image.pixels.shape[0]) * maps.shape[1]) // len(self.image.pixels)
            width = self.image.pixels.shape[1]
            columns = (np.arange(width) * maps.shape[2]) // width
            seen = over(self.image.pixels, to_largest(positive)[rows][:, columns])
            panes = [self._cell("", seen).panes[0], *self._kept(layer, unit)]
            share = f", {percent(float(strength[unit]))} of its best" if rule else ""
            yield Cell(f"{Unit(layer.alias, unit)}: {four_digits(value)}{share}", tuple(panes))

    def _strengths(self, layer: Layer, maps: Floats) -> tuple[Floats, bool]:
        """Return how strongly each unit answers, and whether as a share of its best image."""
        largest: Floats = np.nan_to_num(maps.max(axis=(1, 2)), nan=-np.inf)
        top = TopKFile(self.session.run.topk)
        if not self.session.run.topk.is_file() or layer.alias not in top.layers():
            return largest, False
        best = top.layer(layer.alias).places.activation[:, 0]
        shares: Floats = np.where(best > 0, largest / np.where(best > 0, best, 1), -np.inf)
        return shares, True

    def _kept(self, layer: Layer, unit: int) -> Iterator[Pane]:
        """Yield the unit's strongest patches and its preferred image, where the run has them."""
        try:
            found: TopImages = projected_of(self.session, layer)
            if unit in found.held and not found.dead(unit):
                yield self._tiles(found.patches(unit)[:PATCHES], "strongest")
        except CnnvisError:
            pass
        try:
            images = style_of(self.session, layer)
        except CnnvisError:
            return
        if unit in images.held:
            mean = self.session.network.preprocessing.mean
            tiles = toned(images.best([unit]), self.session.plan.figure.tone, mean)[0]
            yield self._tiles(tiles, "preferred")

    def _cell(self, label: str, pixels: Pixels) -> Cell:
        return Cell(label, (self._tiles(pixels[None], ""),))

    def _tiles(self, tiles: Pixels, title: str) -> Pane:
        """Return pictures in a row, small ones enlarged by a whole factor."""
        factor = max(1, round(LOOK_TILE / tiles.shape[1]))
        large = tiles.repeat(factor, axis=1).repeat(factor, axis=2)
        return Pane(large, len(tiles), (), title)

    def note(self) -> str:
        """Return how to read the sheet."""
        return (
            "Decision: Grad-CAM of the most probable class, and where a square of the mean colour "
            "lowers its probability most. Then per layer the units that answer most "
            "(as a share of their best image where the run has a topk), their map over the image, "
            "and of the run their strongest patches and preferred image."
        )
