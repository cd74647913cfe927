"""What the ascents of a layer share: the canvas, the objective, the size of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cnnvis_cli.ascent.objectives import Objective
from cnnvis_cli.ascent.typical import TypicalParameterization
from cnnvis_cli.engine import limit_to_memory
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Box, Layer
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.optimize.start import Patches, directions_of, given_start


@dataclass(frozen=True)
class LayerSetup:
    """What the ascents of a layer have in common, whichever process makes them."""

    layer: Layer
    box: Box  # the canvas, in the input
    objective: Objective
    size: int  # of a batch
    names: tuple[str, ...] = ()  # of targets that are no channels
    given: Tensor | None = None  # (3, h, w) the start that the plan names, if it is an image
    grey: bool = False  # whether the network takes grey images
    patches: Patches | None = None  # where the style accent begins
    typical: TypicalParameterization | None = None  # what keeps the layers below typical

    @property
    def targets(self) -> int:
        """Return how many targets there are: the layer's channels, or directions."""
        directions = self.objective.directions
        return self.layer.channels if directions is None else len(directions)


def setup_of(session: Session, layer: Layer) -> LayerSetup:
    """Return what the ascents of a layer share."""
    settings, network = session.plan.optimize, session.network
    box = canvas_of(network, layer, settings.mean)
    directions, names = directions_of(settings, layer)
    objective = Objective(
        mean=settings.mean,
        minimise=settings.minimise,
        softmax=settings.softmax,
        directions=directions,
        diversity=settings.diversity,
        run_group=settings.runs if settings.diversity else 1,
    )
    size = session.plan.batch_size or suitable_batch(network, layer, box, session.device)
    size = -(-size // objective.run_group) * objective.run_group
    grey = network.preprocessing.grey
    return LayerSetup(layer, box, objective, size, names, given_start(session, box), grey)


def canvas_of(network: Network, layer: Layer, of_mean: bool) -> Box:
    """Return the window of the input that is optimized for a layer."""
    return Box.whole(network.size) if of_mean else network.canvas(layer)


def suitable_batch(network: Network, layer: Layer, box: Box, device: torch.device) -> int:
    """Return the ascents at a time for a canvas: the largest power of two that still gains.

    On one core that is about 260,000 pixels, 8 to 128 ascents (docs/measurements.md), and no more
    than half of the layer's channels, so that two processes have something to do. A GPU takes 8
    million pixels, 32 to 4,096 ascents, no more than nine runs of the layer, and no more than its
    memory holds.
    """
    area, channels = box.size[0] * box.size[1], _power_of_two(layer.channels)
    if device.type == "cpu":
        wanted = max(8, min(128, (1 << 18) // area, channels // 2))
    else:
        wanted = max(32, min(4096, (1 << 23) // area, 9 * channels))
    each = network.map_bytes(layer) * area // (network.size[0] * network.size[1])
    return limit_to_memory(1 << (wanted.bit_length() - 1), each, device)


def _power_of_two(number: int) -> int:
    """Return the least power of two that is no smaller."""
    return 1 << (number - 1).bit_length()
