"""What the run's own images leave in the layers below a unit: measured at the first use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from cnnvis_cli.arrays import Arrays, Doubles, Pixels
from cnnvis_cli.ascent.styles import Style
from cnnvis_cli.ascent.typical import (
    ActivationStatistics,
    TypicalParameterization,
    map_statistics,
)
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Box, Layer
from cnnvis_cli.stages.common.dataset_images import gather
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.optimize.setup import LayerSetup, canvas_of
from cnnvis_cli.stages.optimize.spectrum import is_measured, some_images, topk_identity
from cnnvis_cli.store.run import Record
from cnnvis_cli.store.topk_file import Images, TopKFile
from cnnvis_cli.store.typical_file import TypicalFile

TYPICAL_IMAGES = 500
WINDOWS = 500  # of all images together, where the canvas is smaller than they are
MOST_WINDOWS = 8  # per image
BATCH = 16
Layers = tuple[tuple[str, int], ...]  # aliases and channels
Measured = tuple[Layers, Arrays]  # the layers, and their arrays by the names of the schema


def with_statistics(session: Session, setup: LayerSetup, style: Style) -> Style:
    """Return the style with what the run's images leave in the layers below, if it needs that.

    Raise `UsageError` if the run has no top-k to take images from.
    """
    if not isinstance(style.image, TypicalParameterization):
        return style
    found = _run_statistics(session, setup)
    return replace(style, image=replace(style.image, statistics_below=found))


def _run_statistics(session: Session, setup: LayerSetup) -> ActivationStatistics:
    """Return the statistics of a layer's canvas; measure and publish them if they are not there."""
    file = TypicalFile(session.run.typical(setup.layer.alias, setup.objective.mean))
    identity = topk_identity(session, "style typical compares with")
    images = TopKFile(session.run.topk).images()
    wanted = some_images(images, TYPICAL_IMAGES)
    plan = statistics_plan(session, identity, setup.box, len(wanted))
    if not is_measured(session, file, plan, "style typical"):
        windows = image_windows(gather(session, wanted), wanted, images, setup.box, session)
        _measure(session, setup, windows, plan)
    layers, arrays = file.read()
    return ActivationStatistics(layers, **arrays)


def _measure(session: Session, setup: LayerSetup, windows: Iterator[Pixels], plan: Record) -> None:
    """Publish the statistics of all layers of the plan that have one canvas, from one pass."""
    network, of_mean = session.network, setup.objective.mean
    alike = [la for la in session.layers if canvas_of(network, la, of_mean) == setup.box]
    found = measured_below(network, alike[-1], setup.box, windows)
    for layer in alike:
        file = TypicalFile(session.run.typical(layer.alias, of_mean))
        if file.identity() is None:
            file.publish(session.header(layer), plan, *part_below(network, layer, found))


def part_below(network: Network, layer: Layer, found: Measured) -> Measured:
    """Return of what a deeper layer's canvas gives the part below a layer of the same canvas."""
    layers, arrays = found
    below = {each.alias for each in network.layers_below(layer)}
    own = tuple(pair for pair in layers if pair[0] in below)
    count = sum(channels for _, channels in own)
    return own, {name: array[:, :count] for name, array in arrays.items()}


def statistics_plan(session: Session, topk: Record, box: Box, count: int) -> Record:
    """Return what decides statistics: the network's input, the dataset, the sample, the canvas."""
    of_topk = {name: topk[name] for name in ("dataset", "decode")}
    windows = windows_per_image(session.network, box, count)
    sides = [box.top, box.left, box.bottom, box.right]
    return {**session.identity, **of_topk, "images": count, "windows": windows, "box": sides}


def windows_per_image(network: Network, box: Box, count: int) -> int:
    """Return how many windows of the canvas's size are taken from each of `count` images."""
    if box == Box.whole(network.size) or not count:
        return 1
    return min(MOST_WINDOWS, -(-WINDOWS // count))


def image_windows(
    read: Callable[[int], Pixels],
    wanted: Sequence[int] | NDArray[np.int64],
    images: Images,
    box: Box,
    session: Session,
) -> Iterator[Pixels]:
    """Yield windows of the canvas's size, uint8 (h, w, 3); an image's CRC draws their places."""
    size, network = box.size, session.network
    count = windows_per_image(network, box, len(wanted))
    for index in session.report.track(wanted, "typical", len(wanted), "images"):
        session.report.check_stop()
        pixels = read(int(index))
        generator = np.random.default_rng(int(images.crc[int(index)]))
        for _ in range(count):
            top, left = (
                int(generator.integers(0, whole - side + 1))
                for whole, side in zip(network.size, size, strict=True)
            )
            yield pixels[top : top + size[0], left : left + size[1]]


def measured_below(network: Network, layer: Layer, box: Box, windows: Iterator[Pixels]) -> Measured:
    """Return the layers below one that a canvas fills, and their statistics over windows.

    The sums are in double precision and in the order of the windows.
    """
    below, count = network.layers_below(layer), 0
    total: Doubles | float = 0.0
    squares: Doubles | float = 0.0
    while batch := list(islice(windows, BATCH)):
        with torch.inference_mode():
            pixels = network.centre(torch.from_numpy(np.stack(batch)))
            maps, _ = network.values_with(below, layer, box, pixels)
            below = [each for each in below if maps[each.alias].numel()]
            found = [map_statistics(maps[each.alias]) for each in below]
        rows = torch.cat([pixels.new_zeros(len(batch), 2, 0), *found], dim=2).double().cpu().numpy()
        total, squares = total + rows.sum(axis=0), squares + (rows**2).sum(axis=0)
        count += len(batch)
    mean = np.asarray(total / count)
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0))
    arrays = {"middle": mean.astype(np.float32), "spread": spread.astype(np.float32)}
    return tuple((each.alias, each.channels) for each in below), arrays
