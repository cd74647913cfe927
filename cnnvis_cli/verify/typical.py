"""What the dataset's images leave in the layers below a unit, and the pictures made with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from cnnvis_cli.arrays import Arrays, Floats
from cnnvis_cli.ascent.typical import ActivationStatistics
from cnnvis_cli.nouns import Box, Layer
from cnnvis_cli.stages.optimize.setup import canvas_of
from cnnvis_cli.stages.optimize.spectrum import some_images
from cnnvis_cli.stages.optimize.typical import (
    TYPICAL_IMAGES,
    Layers,
    image_windows,
    measured_below,
    part_below,
    statistics_plan,
)
from cnnvis_cli.store.run import Record, Run, differences
from cnnvis_cli.store.typical_file import TypicalFile
from cnnvis_cli.verify.dataset import DatasetToday
from cnnvis_cli.verify.findings import Findings, Unread

STATISTICS = "typical activations"
ROUNDED_OTHERWISE = 1e-3  # of the largest number of a layer: other processors round otherwise


def check_typical(photographs: DatasetToday, findings: Findings, most: int | None) -> None:
    """Check statistics against topk.h5, and measure them again if they took up to `most` images.

    Layers of one canvas are measured in one pass.
    """
    session = photographs.session
    by_box: dict[Box, list[tuple[Layer, Path]]] = {}
    for layer, of_mean in product(session.network.layers, (False, True)):
        path = session.run.typical(layer.alias, of_mean)
        if path.exists() and path not in findings.bad:
            box = canvas_of(session.network, layer, of_mean)
            by_box.setdefault(box, []).append((layer, path))
    for box, files in by_box.items():
        with findings.guarded(STATISTICS, files[-1][1]):
            _check_canvas(photographs, findings, most, box, files)


def _check_canvas(
    photographs: DatasetToday,
    findings: Findings,
    most: int | None,
    box: Box,
    files: Sequence[tuple[Layer, Path]],
) -> None:
    session, network = photographs.session, photographs.session.network
    wanted = some_images(photographs.images, TYPICAL_IMAGES)
    plan = statistics_plan(session, photographs.file.identity() or {}, box, len(wanted))
    for _, path in files:
        apart = differences(TypicalFile(path).identity() or {}, plan)
        findings.stored(STATISTICS, 1, [f"{path}: is of other images: {apart}"] if apart else [])
    if most is not None and len(wanted) > most:
        why = f"take {len(wanted)} images; --all measures them again"
        findings.leave(STATISTICS, len(files), why)
        return
    windows = image_windows(photographs.read, wanted, photographs.images, box, session)
    try:
        found = measured_below(network, files[-1][0], box, windows)
    except Unread:
        findings.leave(STATISTICS, len(files), "an image of them cannot be read now")
        return
    for layer, path in files:
        problems = _unlike(path, *part_below(network, layer, found))
        findings.recomputed(STATISTICS, 1, problems)


def _unlike(path: Path, layers: Layers, again: Arrays) -> Iterator[str]:
    """Yield where a file does not hold what was measured again."""
    held_layers, held = TypicalFile(path).read()
    if held_layers != layers:
        yield f"{path}: its layers are others"
        return
    for name, one in held.items():
        if not _alike(one, again[name]):
            yield f"{path}: its {name} is another one, measured again"


def _alike(one: Floats, other: Floats) -> bool:
    largest = float(np.abs(other).max(initial=0))
    return np.allclose(one, other, rtol=ROUNDED_OTHERWISE, atol=ROUNDED_OTHERWISE**2 * largest)


def typical_problems(run: Run, path: Path, group: str, made: Record) -> Iterator[str]:
    """Yield what is wrong with a style that was made with statistics."""
    file = TypicalFile(run.typical(path.stem, made["objective"] == "mean"))
    if file.identity() is None:
        yield f"{path}: style {group}: its statistics are gone; put {file.path} back"
        return
    layers, arrays = file.read()
    if ActivationStatistics(layers, **arrays).digest != made["image"].get("statistics_below"):
        yield f"{path}: style {group}: was made with other statistics than {file.path}"
