"""What feeds units at places of images: exact parts of their values, and their maps."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnvis_cli.arrays import Floats, Int64s, Pixels
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.survey import canonical
from cnnvis_cli.network.wiring import Wiring
from cnnvis_cli.nouns import Layer

MAP_SIDE = 14  # most cells of a map per side
AT_ONCE = 256  # places of a layer that are taken apart at once
EXACT = 1e-2  # relative difference from which parts are not those of the value


@dataclass(frozen=True)
class TracedPlaces:
    """Places of one layer's units in images: row, rank and position of each, by image; (n,) each.

    `row` and `rank` say where the results go.
    """

    row: Int64s
    unit: Int64s
    rank: Int64s
    position: Int64s  # (n, 2)
    image: Int64s

    def of(self, images: Int64s) -> tuple[Int64s, Int64s]:
        """Return which places lie in some images, and each one's image among these."""
        chosen = np.flatnonzero(np.isin(self.image, images))
        return chosen, np.searchsorted(images, self.image[chosen])


@dataclass
class Traces:
    """Results for one layer: means of the parts by input channel, and maps by rank.

    `parts` is (rows, channels of a group), to be divided by `count` (rows,); `maps`, by row and
    rank, are in fifteenths of their largest value, uint8 (h, w), without units never above 0.
    """

    parts: Floats
    count: Int64s
    maps: dict[tuple[int, int], Pixels] = field(default_factory=dict)
    wrong: int = 0  # places whose parts do not sum to the value


def parts_of(wiring: Wiring, module: nn.Module, given: Tensor, places: Places) -> Tensor:
    """Return what each input channel adds to units at places of a layer: (n, channels of a group).

    They and the bias sum to the unit's value.
    """
    image, unit, row, column = places
    weight = wiring.weight[unit]  # (n, c, kernel height, width)
    count, across, high, wide = weight.shape
    per_group = len(wiring.weight) // wiring.groups
    channel = (unit // per_group * across)[:, None] + torch.arange(across, device=unit.device)
    if isinstance(module, nn.Linear):
        windows = given.reshape(len(given), -1, high * wide)[image[:, None], channel]
        return (windows * weight.reshape(count, across, -1)).sum(dim=2)
    assert isinstance(module, nn.Conv2d)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = nn.functional.pad(given, module._reversed_padding_repeated_twice, mode)
    steps = torch.arange(high, device=unit.device), torch.arange(wide, device=unit.device)
    rows = (row * module.stride[0])[:, None] + steps[0] * module.dilation[0]
    columns = (column * module.stride[1])[:, None] + steps[1] * module.dilation[1]
    at = (image[:, None, None, None], channel[:, :, None, None], rows[:, None, :, None])
    return (padded[(*at, columns[:, None, None, :])] * weight).sum(dim=(2, 3))


Places = tuple[Tensor, Tensor, Tensor, Tensor]  # image of a batch, unit, row, column; (n,) each


@dataclass(frozen=True)
class Tracer:
    """A network whose layers tell of places in the images that are run through it."""

    network: Network
    wired: Mapping[str, Wiring]
    places: Mapping[str, TracedPlaces]
    results: Mapping[str, Traces]

    def run(self, pixels: Tensor, images: Int64s) -> None:
        """Run images, uint8 (n, h, w, 3) with sorted numbers (n,), and add to the results."""
        with ExitStack() as stack:
            for layer in self.network.layers:
                if layer.alias in self.places and layer.reads == "module" and layer.calls == 1:
                    child = self.network.module.get_submodule(layer.module)
                    hook = self._hook(layer, images)
                    stack.callback(child.register_forward_hook(hook).remove)
            stack.enter_context(torch.inference_mode())
            self.network.module(self.network.normalise(self.network.centre(pixels)))

    def _hook(self, layer: Layer, images: Int64s) -> Any:
        chosen, own = self.places[layer.alias].of(images)

        def after(module: nn.Module, given: tuple[Tensor, ...], output: Any) -> None:
            if not len(chosen):
                return
            found = canonical(layer, output)
            found = found if found.dim() == 4 else found[:, :, None, None]
            _keep_maps(self.results[layer.alias], self.places[layer.alias], (chosen, own), found)
            if layer.alias in self.wired:
                for first in range(0, len(chosen), AT_ONCE):
                    some = slice(first, first + AT_ONCE)
                    self._keep_parts(layer, module, (given[0], found), (chosen[some], own[some]))

        return after

    def _keep_parts(
        self,
        layer: Layer,
        module: nn.Module,
        tensors: tuple[Tensor, Tensor],
        few: tuple[Int64s, Int64s],
    ) -> None:
        """Add the parts of some places, given the layer's input and output."""
        (given, found), (chosen, own) = tensors, few
        asked, result = self.places[layer.alias], self.results[layer.alias]
        columns = (own, asked.unit[chosen], *asked.position[chosen].T)
        image, unit, row, column = (torch.as_tensor(c, device=given.device) for c in columns)
        parts = parts_of(self.wired[layer.alias], module, given, (image, unit, row, column))
        total, bias = parts.sum(dim=1), getattr(module, "bias", None)
        total = total if bias is None else total + bias[unit]
        apart = (total - found[image, unit, row, column]).abs()
        right = (apart <= EXACT * parts.abs().sum(dim=1) + 1e-6).cpu().numpy()
        result.wrong += int((~right).sum())
        rows = asked.row[chosen][right]
        np.add.at(result.parts, rows, parts.float().cpu().numpy()[right])
        np.add.at(result.count, rows, 1)


def _keep_maps(
    result: Traces, asked: TracedPlaces, few: tuple[Int64s, Int64s], found: Tensor
) -> None:
    """Keep the maps of some places, as far as a unit is above 0 there."""
    chosen, own = few
    if found.shape[2] * found.shape[3] == 1:
        return
    size = (min(MAP_SIDE, found.shape[2]), min(MAP_SIDE, found.shape[3]))
    maps = found[torch.as_tensor(own), torch.as_tensor(asked.unit[chosen])].float()
    small = nn.functional.adaptive_max_pool2d(maps[:, None], size)[:, 0].clamp(min=0)
    top = small.amax(dim=(1, 2), keepdim=True)
    levels = (small / top.clamp(min=1e-12) * 15).round().to(torch.uint8).cpu().numpy()
    for number in np.flatnonzero(top.flatten().cpu().numpy() > 0).tolist():
        place = int(chosen[number])
        result.maps[int(asked.row[place]), int(asked.rank[place])] = levels[number]
