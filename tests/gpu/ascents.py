"""Ascents as `optimize` makes them, but of chosen specs: the one place here that knows its parts.

Used to count launches and to compare bits, here and in `device_check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from cnnvis_cli.ascent.climb import Ascent, AscentSpec, climb
from cnnvis_cli.ascent.maco import MacoParameterization
from cnnvis_cli.ascent.objectives import Objective
from cnnvis_cli.ascent.spectrum import measured
from cnnvis_cli.ascent.starts import noise
from cnnvis_cli.ascent.steps import Constant
from cnnvis_cli.ascent.styles import STYLES, Style
from cnnvis_cli.ascent.typical import ActivationStatistics, TypicalParameterization
from cnnvis_cli.engine import WorkerSlot
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Box, Layer
from cnnvis_cli.settings import Plan, Precision
from cnnvis_cli.stages.common.network_loading import load_network
from cnnvis_cli.stages.optimize.evaluation import traced_evaluate
from cnnvis_cli.stages.optimize.setup import LayerSetup, suitable_batch
from cnnvis_cli.stages.optimize.typical import measured_below
from cnnvis_cli.stages.optimize.worker import Pulse, batch_on


@dataclass(frozen=True)
class Stand:
    """A layer's pass, traced and ready, in some arithmetic."""

    network: Network
    setup: LayerSetup
    evaluate: Any
    told: list[Any] = field(default_factory=list)  # what a worker would emit

    def task(self, number: int, style: Style, seed: int | None = None) -> AscentSpec:
        """Return the ascent of this number, from the noise of its seed."""
        seed = number if seed is None else seed
        if self.setup.typical:
            style = replace(style, image=self.setup.typical)
        target = number % self.setup.layer.channels
        return AscentSpec(number, target, style, noise(seed, self.setup.box.size), seed, number)

    def tasks(self, style: Style, count: int | None = None) -> list[AscentSpec]:
        """Return ascents for all slots."""
        return [self.task(number, style) for number in range(count or self.setup.size)]

    def ascend(self, tasks: Sequence[AscentSpec]) -> Iterator[Ascent]:
        """Yield the ascents as they end."""
        worker_slot = WorkerSlot(self.network.device, 1, 0)
        batch = batch_on(worker_slot, self.setup.size, Pulse(self.setup.size, self.told.append))
        yield from climb(self.evaluate, [[task] for task in tasks], batch, self.network.mean)

    def bare(self, x: Any, targets: Any) -> Any:
        """Return the results of one pass alone."""
        return self.evaluate(x, targets)


_networks: dict[tuple[str, str], Network] = {}


def stand_on(
    device: str,
    model: str,
    alias: str,
    size: int | None = None,
    precision: Precision = "float32",
    typical: bool = False,
) -> Stand:
    """Return the pass of a layer, by default of the stage's batch size."""
    if (device, model) not in _networks:
        weights = None if model == "demo" else "random"
        _networks[device, model] = load_network(
            Plan(model=model, weights=weights, device=device)
        ).to(torch.device(device))
    network = _networks[device, model]
    layer = network.layer(alias)
    box = network.canvas(layer)
    size = size or suitable_batch(network, layer, box, network.device)
    setup = LayerSetup(layer, box, Objective(), size)
    if typical:
        setup = replace(setup, typical=_typical(network, layer, box))
    return Stand(network, setup, traced_evaluate(network, setup, size, precision))


def _typical(network: Network, layer: Layer, box: Box) -> TypicalParameterization:
    """Return what keeps the layers below as some noise leaves them."""
    noisy = np.random.default_rng(0).integers(0, 256, (20, *box.size, 3)).astype(np.uint8)
    layers, arrays = measured_below(network, layer, box, iter(noisy))
    return TypicalParameterization(statistics_below=ActivationStatistics(layers, **arrays))


def style_of(name: str, steps: int) -> Style:
    """Return a style of `steps` steps whose rate needs no calibration."""
    style = replace(STYLES[name], iterations=steps)
    if isinstance(style.image, MacoParameterization):
        some = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
        spectrum = measured(some.__getitem__, range(len(some)), lambda: None)
        style = replace(style, image=replace(style.image, spectrum=spectrum))
    return style.with_step(Constant(20.0)) if name in ("2", "3") else style
