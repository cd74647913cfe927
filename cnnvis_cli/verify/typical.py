"""What the dataset's images leave in the layers below a unit, and the pictures made with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cnnvis_cli.arrays import Floats
from cnnvis_cli.ascent.typical import ActivationStatistics
from cnnvis_cli.nouns import Layer
from cnnvis_cli.stages.optimize.setup import canvas_of
from cnnvis_cli.stages.optimize.spectrum import some_images
from cnnvis_cli.stages.optimize.typical import (
    TYPICAL_IMAGES,
    image_windows,
    measured_below,
    statistics_plan,
)
from cnnvis_cli.store.run import Record, Run, differences
from cnnvis_cli.store.typical_file import TypicalFile
from cnnvis_cli.verify.dataset import DatasetToday
from cnnvis_cli.verify.findings import Findings, Unread

STATISTICS = "typical activations"
ROUNDED_OTHERWISE = 1e-3  # of the largest number of a layer: other processors round otherwise


def check_typical(photographs: DatasetToday, findings: Findings, most: int | None) -> None:
    """Check statistics against topk.h5, and measure them again if they took up to `most` images."""
    session = photographs.session
    for layer in session.network.layers:
        for of_mean in (False, True):
            path = session.run.typical(layer.alias, of_mean)
            if path.exists() and path not in findings.bad:
                with findings.guarded(STATISTICS, path):
                    _check_file(photographs, findings, most, (path, layer, of_mean))


def _check_file(
    photographs: DatasetToday, findings: Findings, most: int | None, of: tuple[Path, Layer, bool]
) -> None:
    session, (path, layer, of_mean), file = photographs.session, of, TypicalFile(of[0])
    network = session.network
    wanted = some_images(photographs.images, TYPICAL_IMAGES)
    box = canvas_of(network, layer, of_mean)
    plan = statistics_plan(session, photographs.file.identity() or {}, box, len(wanted))
    apart = differences(file.identity() or {}, plan)
    findings.stored(STATISTICS, 1, [f"{path}: is of other images: {apart}"] if apart else [])
    if most is not None and len(wanted) > most:
        findings.leave(STATISTICS, 1, f"take {len(wanted)} images; --all measures them again")
        return
    windows = image_windows(photographs.read, wanted, photographs.images, box, session)
    try:
        layers, again = measured_below(network, layer, box, windows)
    except Unread:
        findings.leave(STATISTICS, 1, "an image of them cannot be read now")
        return
    held_layers, held = file.read()
    problems = [] if held_layers == layers else [f"{path}: its layers are others"]
    if not problems:
        problems = [
            f"{path}: its {name} is another one, measured again"
            for name, one in held.items()
            if not _alike(one, again[name])
        ]
    findings.recomputed(STATISTICS, 1, problems)


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
