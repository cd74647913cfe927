"""`cnnvis score --natural-path`: do optimized images go the way of photographs to a layer?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from cnnvis_cli.arrays import Floats, Pixels
from cnnvis_cli.ascent.styles import ordered_styles
from cnnvis_cli.errors import UsageError
from cnnvis_cli.figure.canvas import Canvas
from cnnvis_cli.figure.lines import Plot, plots
from cnnvis_cli.figure.sheets import Caption
from cnnvis_cli.measures.interpretability import EXPLANATION_SIZE
from cnnvis_cli.measures.likeness import between, rank_vectors, within
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.common.dataset_images import image_reader
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.figures.render import Figure, draw_figures
from cnnvis_cli.stages.numbers.encoding import ENCODED_AT_ONCE
from cnnvis_cli.stages.numbers.table import publish_table, shown_table
from cnnvis_cli.store.optimized import OptimizedFile
from cnnvis_cli.store.topk_file import TopKFile

POSITIONS = 1024  # activations of a layer that are compared, spread evenly over its map
NOTE = (
    "Rank correlation of activations of optimized images with those of the strongest photographs "
    "of the same unit: 1 as photographs of the same unit among themselves, 0 as those of other "
    "units. Layers from first to last."
)
Vectors = dict[str, Floats]  # per layer's alias, unit-length ranks of n images: (n, F)


@dataclass(frozen=True)
class PathPoint:
    """How alike the activations of one layer are, as means over the units of another."""

    of: str  # the layer whose units are shown
    style: str
    layer: str
    same: float  # photographs of the same unit among themselves
    others: float  # photographs of other units
    optimized: float  # optimized images with photographs of the same unit
    path: float  # where that lies between others (0) and same (1)
    error: float  # its standard error over units
    units: int


def check_natural_path(session: Session, as_json: bool) -> None:
    """Compare activations of optimized images and photographs, layer by layer.

    Geirhos and others 2024, section 3, with rank correlations. Raise `UsageError` for a layer whose
    images are smaller than the input, or with fewer than two units that have both.
    """
    found: list[PathPoint] = []
    figures: list[Figure] = []
    for layer in session.layers:
        points = list(_path_of(session, layer))
        found += points
        if points:
            figures.append(_figure(session, layer, points))
    if not found:
        raise UsageError(
            f"{session.run.path}: no layer has optimized images of the whole input; choose a fully "
            "connected layer, or one whose field is the input, with --layer"
        )
    records = list(map(asdict, found))
    path = session.run.path / "paths.tsv"
    publish_table(path, records)
    session.report.result(json.dumps(records, indent=1) if as_json else shown_table(records))
    draw_figures(session, figures, lambda drawn: session.report.note(str(drawn)))
    session.report.note(f"{path}: {len(found)} comparisons")


def _path_of(session: Session, layer: Layer) -> Iterator[PathPoint]:
    """Yield a layer's comparisons; none if it has no images, or, unless asked for, small ones."""
    file = OptimizedFile(session.run.optimized(layer.alias))
    styles = [name for name, made in file.styles().items() if not made.get("targets")]
    for style in ordered_styles([name for name in styles if not name.endswith("-min")]):
        if file.canvas(style) != session.network.size:
            if session.plan.layer:
                raise UsageError(
                    f"--natural-path: images of {layer.alias} show its field, not the whole "
                    "input; choose a layer whose images have the input's size"
                )
            continue
        chosen = set(session.units(layer))
        rows = {unit: row for row, unit in enumerate(file.units(style).tolist()) if unit in chosen}
        photographs = _strongest(session, layer, list(rows))
        if len(photographs) < 2:
            raise UsageError(
                f"--natural-path: {layer.alias} has {len(photographs)} units with images of style "
                f"{style} and two photographs that activate them, and two are needed"
            )
        images = {unit: _optimized(session, file, style, rows[unit]) for unit in photographs}
        yield from _compared_paths(session, layer, style, photographs, images)


def _strongest(session: Session, layer: Layer, units: Sequence[int]) -> dict[int, list[int]]:
    """Return the strongest images of each unit, of units with at least two that activate it."""
    places = TopKFile(session.run.topk).layer(layer.alias).places
    found = {}
    for unit in units:
        shown, value = (of[unit, :EXPLANATION_SIZE] for of in (places.image, places.activation))
        found[unit] = shown[(shown >= 0) & (value > 0)].tolist()
    return {unit: indices for unit, indices in found.items() if len(indices) > 1}


def _optimized(session: Session, file: OptimizedFile, style: str, row: int) -> Floats:
    """Return a unit's optimized images, mean-subtracted: (R, h, w, 3)."""
    return file.read(style, "image", slice(row, row + 1))[0, :EXPLANATION_SIZE].astype(np.float32)


def _compared_paths(
    session: Session,
    layer: Layer,
    style: str,
    photographs: Mapping[int, Sequence[int]],
    images: Mapping[int, Floats],
) -> Iterator[PathPoint]:
    layers = session.network.layers[: session.network.layers.index(layer) + 1]
    read = image_reader(session)
    natural, optimized = dict[int, Vectors](), dict[int, Vectors]()
    for unit in session.report.track(list(photographs), "compare", len(photographs), "units"):
        natural[unit] = _vectors(session, layers, np.stack(list(map(read, photographs[unit]))))
        optimized[unit] = _vectors(session, layers, images[unit])
    for each in layers:
        rows = []
        for unit in natural:
            own, made = natural[unit][each.alias], optimized[unit][each.alias]
            rest = np.concatenate([natural[u][each.alias] for u in natural if u != unit])
            rows.append((within(own), between(own, rest), between(made, own)))
        same, others, alike = np.array(rows).T
        apart = float(same.mean() - others.mean())
        path = (alike - others) / apart if apart else np.full(len(rows), np.nan)
        error = float(path.std(ddof=1) / len(rows) ** 0.5)
        yield PathPoint(
            layer.alias,
            style,
            each.alias,
            float(same.mean()),
            float(others.mean()),
            float(alike.mean()),
            float(path.mean()),
            error,
            len(rows),
        )


def _vectors(session: Session, layers: Sequence[Layer], pictures: Pixels | Floats) -> Vectors:
    """Return the ranks of some activations per layer, of images uint8 or mean-subtracted."""
    network = session.network
    found: dict[str, list[Floats]] = {layer.alias: [] for layer in layers}

    def see(layer: Layer, output: Tensor) -> None:
        flat = output.flatten(1)
        chosen = torch.linspace(0, flat.shape[1] - 1, min(POSITIONS, flat.shape[1]))
        found[layer.alias].append(flat[:, chosen.round().long()].float().cpu().numpy())

    with torch.inference_mode(), network.tap(layers, see) as run:
        for first in range(0, len(pictures), ENCODED_AT_ONCE):
            tensor = torch.from_numpy(pictures[first : first + ENCODED_AT_ONCE])
            if tensor.dtype == torch.uint8:
                run(network.normalise(network.centre(tensor)))
            else:
                run(network.normalise(tensor.permute(0, 3, 1, 2).to(network.device)))
    return {alias: rank_vectors(np.concatenate(parts)) for alias, parts in found.items()}


def _figure(session: Session, layer: Layer, points: Sequence[PathPoint]) -> Figure:
    """Return a plot of the path against the layers, one per style."""
    record = {"layer": layer.alias, "points": list(map(asdict, points))}
    title = f"{session.network.name} {layer.alias} · way of optimized images"

    def draw() -> Canvas:
        panels = []
        for style in dict.fromkeys(point.style for point in points):
            values = np.array([[point.path for point in points if point.style == style]])
            steps = np.arange(1, values.shape[1] + 1)
            panels.append(Plot(f"style {style}", steps, values, None, ("layer", "path")))
        return plots(panels, Caption(title, NOTE, session.plan.figure.column))

    return Figure("paths", layer.alias, title, record, draw)
