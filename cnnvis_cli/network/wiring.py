"""Which units of earlier layers feed the units of a layer, and how much.

Between two layers stand normalisations, rectifiers, pooling, concatenations and additions. As
long as these treat each channel by itself, an input channel of a layer is fed by one unit of each
layer that writes to it. A probe finds it: the outputs of all layers are replaced by constants per
channel, and three sums over a layer's input, in which channels have different weights, are
differentiated; a unit of which all three derivatives fit one channel feeds that channel alone.
Where they do not, as behind attention or a normalisation across channels, a layer is left out.

The expanded weights (Olah and others 2020, https://distill.pub/2020/circuits/visualizing-weights)
are the layer's weights times the derivative of its input with respect to the unit's output, with
all rectifiers open: the scale of a batch normalisation in between, and 1 for pooling.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnvis_cli.arrays import Floats, Int32s
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Layer

LEVELS = (10.0, 3.0, 1.0, 0.1, 0.01)  # of the probes, in units of a usual output: for ceilings
CLOSED = 1e-5  # of the largest derivative: smaller ones are those of a closed rectifier
FIT = 1e-3  # how far derivatives may be from those of one channel


@dataclass(frozen=True)
class Wiring:
    """What feeds each input channel of a layer: a unit of the last layer that writes there.

    Arrays are (C,) over input channels; -1 where no layer's unit feeds one.
    """

    layer: Layer
    source: Int32s  # number of the layer in the network
    unit: Int32s
    scale: Floats  # d input / d output, all rectifiers open
    others: tuple[str, ...]  # layers that write to the same channels before, and gates
    weight: Tensor  # (U, channels of a group, kernel height, width)
    groups: int

    def inputs(self, unit: int) -> range:
        """Return the input channels that a unit sees."""
        across = self.weight.shape[1]
        first = unit // (len(self.weight) // self.groups) * across
        return range(first, first + across)

    def expanded(self, unit: int) -> Floats:
        """Return a unit's weights times the scales of its inputs: (c, kernel height, width)."""
        inputs = self.inputs(unit)
        scale = self.scale[inputs.start : inputs.stop]
        found: Floats = self.weight[unit].float().cpu().numpy() * scale[:, None, None]
        return found


def wirings(network: Network) -> dict[str, Wiring]:
    """Return what feeds each layer, by its alias; layers that cannot be followed are left out."""
    plain = [la for la in network.layers if _is_plain(network, la)]
    inputs, leaves = _probe(network, plain)
    found = {}
    for layer in plain:
        wiring = _wired(network, layer, inputs.get(layer.alias), leaves)
        if wiring is not None:
            found[layer.alias] = wiring
    return found


def _is_plain(network: Network, layer: Layer) -> bool:
    """Return whether a layer is a convolution or linear module whose rows are images."""
    if layer.reads != "module" or layer.arrangement is not None or layer.calls != 1:
        return False
    module = network.module.get_submodule(layer.module)
    return type(module) in (nn.Conv2d, nn.Linear)


def _usual_sizes(network: Network, plain: Sequence[Layer]) -> dict[str, float]:
    """Return the largest output of each layer for an image of noise."""
    sizes: dict[str, float] = {}

    def read(layer: Layer, output: Tensor) -> None:
        sizes[layer.alias] = float(output.abs().max()) or 1.0

    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (1, *network.size, 3), generator=generator, dtype=torch.uint8)
    with torch.inference_mode(), network.tap(plain, read) as run:
        run(network.normalise(network.centre(noise)))
    return sizes


def _probe(network: Network, plain: Sequence[Layer]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the layers' inputs as functions of their outputs, and the outputs: the leaves."""
    inputs: dict[str, Tensor] = {}
    leaves: dict[str, Tensor] = {}
    usual = _usual_sizes(network, plain)

    def hook(layer: Layer) -> Any:
        def after(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
            inputs[layer.alias] = given[0]
            sizes = [side * level * usual[layer.alias] for level in LEVELS for side in (1.0, -1.0)]
            rest = [1] * (output.dim() - 1)
            values = (
                torch.tensor(sizes, device=output.device, dtype=output.dtype)
                .reshape(-1, *rest)
                .expand_as(output)
            )
            leaves[layer.alias] = values.detach().clone().requires_grad_()
            return leaves[layer.alias]

        return after

    with ExitStack() as stack:
        for layer in plain:
            module = network.module.get_submodule(layer.module)
            stack.callback(module.register_forward_hook(hook(layer)).remove)
        stack.enter_context(torch.enable_grad())
        blank = torch.zeros(2 * len(LEVELS), 3, *network.size, device=network.device)
        network.module(blank)
    return inputs, leaves


def _wired(
    network: Network, layer: Layer, given: Tensor | None, leaves: dict[str, Tensor]
) -> Wiring | None:
    """Return a layer's wiring; None if it has none, or its inputs mix units of one layer."""
    module = network.module.get_submodule(layer.module)
    if given is None or given.grad_fn is None:
        return None
    tried = [1]
    if isinstance(module, nn.Linear):
        counts = {leaf.shape[1] for leaf in leaves.values()}
        tried += sorted(given.shape[1] // c for c in counts if given.shape[1] % c == 0)
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    for places in dict.fromkeys(tried):  # of a flattened map
        writers = _writers(given, places, leaves)
        if writers is None:
            continue
        kernel = weight if weight.dim() == 4 else weight.reshape(len(weight), -1, 1, places)
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        return _collected(network, layer, writers, (kernel, groups))
    return None


Writers = dict[str, tuple[Int32s, Int32s, Floats]]  # by layer: units, input channels, scales


def _writers(given: Tensor, places: int, leaves: dict[str, Tensor]) -> Writers | None:
    """Return which units write to which channels of a layer's input; None if some mix."""
    channels = given.shape[1] // places
    chosen = given if given.dim() == 2 else given[:, :, given.shape[2] // 2, given.shape[3] // 2]
    number = torch.arange(given.shape[1], device=given.device) // places + 1.0
    powers = []
    for power in range(3):
        powers.append(_derivatives((chosen * number**power / channels**power).sum(), leaves))
    found: Writers = {}
    for alias in powers[0]:
        flat, linear, square = (each[alias] for each in powers)
        open_ = flat.abs() > CLOSED * flat.abs().amax()
        means, spreads = linear / flat, square / flat
        apart = (spreads - means**2).abs() > FIT * means**2 / channels + 1e-9
        if bool((apart & open_).any()):
            return None
        level = flat.abs().argmax(dim=0, keepdim=True)
        units = open_.any(dim=0).nonzero()[:, 0]
        flat, mean = flat.gather(0, level)[0], means.gather(0, level)[0, units]
        channel = (mean * channels).round().int() - 1
        if len(set(channel.tolist())) < len(channel):
            return None
        scale = (flat[units] / places).float().cpu().numpy()
        found[alias] = (units.int().cpu().numpy(), channel.cpu().numpy(), scale)
    return found or None


def _derivatives(total: Tensor, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the derivatives for each unit, summed over its map: (probes, C) by layer."""
    every = torch.autograd.grad(total, list(leaves.values()), retain_graph=True, allow_unused=True)
    found = {}
    for alias, slope in zip(leaves, every, strict=True):
        if slope is not None and bool(slope.any()):
            summed = slope if slope.dim() == 2 else slope.sum(dim=(2, 3), dtype=torch.float64)
            found[alias] = summed.double()
    return found


def _collected(
    network: Network, layer: Layer, writers: Writers, kernel: tuple[Tensor, int]
) -> Wiring:
    weight, groups = kernel
    count = weight.shape[1] * groups
    source, unit = np.full(count, -1, np.int32), np.full(count, -1, np.int32)
    scale = np.zeros(count, np.float32)
    numbers = {la.alias: number for number, la in enumerate(network.layers)}
    is_gate = {
        alias: layer.kind == "conv" and network.layer(alias).map == (1, 1) != layer.map
        for alias in writers
    }
    ordered = sorted(writers, key=lambda alias: (not is_gate[alias], numbers[alias]))
    for alias in ordered:  # the last one stays
        units, channels, scales = writers[alias]
        source[channels], unit[channels], scale[channels] = numbers[alias], units, scales
    last = {network.layers[number].alias for number in np.unique(source[source >= 0]).tolist()}
    others = tuple(alias for alias in ordered if alias not in last)
    return Wiring(layer, source, unit, scale, others, weight, groups)
