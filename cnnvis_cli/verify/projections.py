"""Projections: what each says of itself, and some of them made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cnnvis_cli.digests import file_digest
from cnnvis_cli.nouns import Layer
from cnnvis_cli.report import Report
from cnnvis_cli.stages.project.job import Made, Projections, group_of
from cnnvis_cli.store.projected import ProjectedFile
from cnnvis_cli.store.topk_file import LayerTopK, TopKFile, box_of
from cnnvis_cli.verify.dataset import DatasetToday
from cnnvis_cli.verify.findings import Findings, blocks_of

TOLERATED = 0.01  # of a projection's values, of which the largest is 1
CHANNELS = 2  # of a layer and method that are made again
PROJECTIONS = "projections"


def check_projections(
    photographs: DatasetToday, findings: Findings, generator: np.random.Generator
) -> None:
    """Check all projections, and make those of a few channels again."""
    session, file = photographs.session, photographs.file
    for layer in session.network.layers:
        held = ProjectedFile(session.run.projected(layer.alias))
        if held.path in findings.bad:
            continue
        with findings.guarded(PROJECTIONS, held.path):
            for group in held.methods():
                with findings.guarded(PROJECTIONS):
                    _check_projected(photographs, (layer, held, group), file, findings, generator)


def _check_projected(
    photographs: DatasetToday,
    place: tuple[Layer, ProjectedFile, str],
    file: TopKFile,
    findings: Findings,
    generator: np.random.Generator,
) -> None:
    (layer, held, group), session = place, photographs.session
    made = held.methods()[group]
    settings = {"start": made["start"], "lrn": made["lrn"], "method": (made["method"],)}
    again = session.with_project(**settings, batch_size=made["batch_size"])
    top, source = file.layer(layer.alias), str(made["topk"])
    found = Projections(again, layer, made["method"], top, source)
    same = source == file_digest(file.path)
    problem = f"{held.path}: {group} was projected from another topk.h5"
    findings.stored("sources of projections", 1, [] if same else [problem])
    if group_of(made["method"], again.plan.project) != group:
        findings.stored(
            PROJECTIONS, 0, [f"{held.path}: {group} is of another method than its plan"]
        )
        return
    if not same:
        findings.leave(PROJECTIONS, 1, "of another topk.h5")
        return
    done = np.flatnonzero(held.done(group))
    _check_values(held, group, found, done.tolist(), findings)
    chosen = generator.choice(done, min(CHANNELS, len(done)), replace=False)
    channels = sorted(chosen.tolist())
    fresh = found.compute(channels, photographs.read, _breathing(session.report))
    for row, channel in enumerate(channels):
        stored, scale = held.read(group, channel)
        fine = np.allclose(stored, fresh["projection"][row], rtol=0, atol=TOLERATED)
        fine &= np.allclose(scale, fresh["scale"][row], rtol=0.01, equal_nan=True)
        name = f"{held.path}: {group}, unit {channel}"
        findings.recomputed(PROJECTIONS, 1, [] if fine else [f"{name}: gives another result now"])
    findings.leave(PROJECTIONS, len(done) - len(channels), "of channels outside the sample")


def _check_values(
    held: ProjectedFile, group: str, found: Projections, done: list[int], findings: Findings
) -> None:
    """Check that values and scales are as projections are, of all channels or of some."""
    top, size = found.top, found.session.network.size
    shape = found.shape
    findings.stored(PROJECTIONS, len(done), _wrong_shape(held, group, shape))
    looked = 0
    for rows in blocks_of(shape[0], 6 * int(np.prod(shape[1:]))):
        found.session.report.check_stop()
        values, scales = held.rows(group, rows)
        for channel in sorted(set(done) & set(range(rows.start, rows.stop))):
            stored, scale = values[channel - rows.start], scales[channel - rows.start]
            problems = list(_wrong_channel(stored, scale, top, channel))
            if not found.batching.whole:
                problems += _outside(stored, top, channel, size)
            name = f"{held.path}: {group}, unit {channel}"
            findings.stored(PROJECTIONS, 0, [f"{name}: {problem}" for problem in problems])
            looked += 1
    why = "the values of some are not looked at, since there are so many"
    findings.leave(PROJECTIONS, len(done) - looked, why)


def _wrong_shape(held: ProjectedFile, group: str, shape: tuple[int, ...]) -> Iterator[str]:
    if held.canvas(group) != shape[2:] or len(held.done(group)) != shape[0]:
        yield f"{held.path}: {group} has another shape than its layer"


def _wrong_channel(stored: Any, scale: Any, top: LayerTopK, channel: int) -> Iterator[str]:
    filled = top.places.image[channel] >= 0
    sizes = stored.view(np.int16) & 0x7FFF  # bits that order as sizes do; float16 is slow
    largest = sizes.max(axis=(1, 2, 3)).view(np.float16)
    if (filled == np.isnan(scale)).any():
        yield "a slot without a place has a scale, or a place has none"
    if (scale[filled] < 0).any() or np.isinf(scale[filled]).any():
        yield "a scale is below 0 or no number"
    if (largest != (filled & (scale > 0))).any():
        yield "the largest value is not 1, or one of nothing is not 0"


def _outside(stored: Any, top: LayerTopK, channel: int, size: tuple[int, int]) -> list[str]:
    """Return what is wrong outside the image, where all is 0."""
    for rank in np.flatnonzero(top.places.image[channel] >= 0).tolist():
        box = box_of(top.box[channel, rank])
        if box.inside(size):
            continue
        seen = box.clip(size).within(box.tile(size))
        beyond = np.ones(stored.shape[1:3], np.bool_)
        beyond[max(0, seen.top) : seen.bottom, max(0, seen.left) : seen.right] = False
        if stored[rank][beyond].any():
            return [f"rank {rank} is not 0 outside the image"]
    return []


def _breathing(report: Report) -> Callable[[Any], None]:
    def emit(_: Made) -> None:
        report.check_stop()

    return emit
