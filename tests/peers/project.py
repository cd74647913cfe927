"""Does `cnnvis project` say what Captum says? Guided backpropagation and deconvolution of AlexNet.

    python tests/peers/project.py [--weights FILE]

For some units of convolutions and of the last layer, on random pixels: the largest difference from
Captum's, relative to the largest number. Captum hooks the modules called `nn.ReLU`, so its networks
must have nothing else and nothing in place; its rules leave the starting unit alone, since that is
the output of a convolution or of the last layer.

Captum is no dependency of cnnvis; keep it to a folder of its own:

    .venv/bin/pip install --no-deps --target CAPTUM captum tqdm
    PYTHONPATH=CAPTUM .venv/bin/python tests/peers/project.py
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import Any

import click
import torch
from torch import Tensor, nn

from cnnvis_cli.network.backward import rectify
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Box, Layer
from cnnvis_cli.settings import Plan
from cnnvis_cli.stages.common.network_loading import load_network

METHODS = {"guided": "GuidedBackprop", "deconv": "Deconvolution"}
UNITS = {"conv1": (0, 63), "conv2": (7,), "conv5": (3, 200), "fc6": (11,), "fc8": (0, 281, 999)}
TOLERANCE = 1e-4


class UpTo(nn.Module):
    """The network with a layer's own value at a place as its output: (B, C)."""

    def __init__(self, network: Network, layer: Layer, place: tuple[int, int]) -> None:
        super().__init__()
        self.module, self.network, self.layer, self.place = network.module, network, layer, place

    def forward(self, pixels: Tensor) -> Tensor:
        kept: list[Tensor] = []
        hooked = self.module.get_submodule(self.layer.module)
        handle = hooked.register_forward_hook(lambda _m, _i, output: kept.append(output))
        try:
            self.module(self.network.normalise(pixels))
        finally:
            handle.remove()
        return kept[0][:, :, self.place[0], self.place[1]] if kept[0].dim() == 4 else kept[0]


def ours(network: Network, layer: Layer, unit: int, method: str, pixels: Tensor) -> Tensor:
    x = pixels.clone().requires_grad_()
    with rectify(method):
        output, _ = network.values(layer, Box.whole(network.size), x)
    (gradient,) = torch.autograd.grad(output[(0, unit, *layer.centre)], x)
    return gradient


def theirs(network: Network, layer: Layer, unit: int, method: str, pixels: Tensor) -> Tensor:
    peer: Any = getattr(import_module("captum.attr"), METHODS[method])
    x = pixels.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it sets hooks
        found: Tensor = peer(UpTo(network, layer, layer.centre)).attribute(x, target=unit)
    return found.detach()


@click.command()
@click.option("-w", "--weights", default="random", show_default=True)
def main(weights: str) -> None:
    """Differences from Captum, relative to the largest number; ends with 1 where one is large."""
    torch.manual_seed(0)
    network = load_network(Plan(model="alexnet", weights=weights, device="cpu"))
    pixels = torch.rand(1, 3, *network.size) * 255 - 120
    worst = 0.0
    for alias, units in UNITS.items():
        layer = network.layer(alias)
        for method in METHODS:
            pairs = [
                (make(network, layer, unit, method, pixels) for make in (ours, theirs))
                for unit in units
            ]
            apart = [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]
            worst = max(worst, *apart)
            print(f"{alias:8}{method:8}" + "".join(f"{number:10.1e}" for number in apart))
    sys.exit(int(not worst <= TOLERANCE))


if __name__ == "__main__":
    main()
