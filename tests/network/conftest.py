"""Large networks at the cost of small ones: only the convolutions hold numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cnnvis_cli.network.network import Network
from cnnvis_cli.network.zoo import blueprint
from cnnvis_cli.nouns import Preprocessing, Size

Dress = Callable[..., Network]
Trunk = Callable[[Network, Tensor], dict[str, Tensor]]


@pytest.fixture(scope="session")
def dress() -> Dress:
    """A function that builds a network by name in float64, with weights drawn from a seed.

    Fully connected layers keep what the memory happened to hold: nobody runs them.
    """

    def build(model: str, size: Size | None = None, positive: bool = False) -> Network:
        plan = blueprint(model)
        crop = size or plan.preprocessing.crop
        preprocessing = Preprocessing(crop=crop, std=(57.0, 56.0, 58.0), bgr=plan.preprocessing.bgr)
        with torch.device("meta"):
            module = plan.build().double()
        network = Network.prepare(model, module, preprocessing)
        module.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(1)
        for part in module.modules():
            if isinstance(part, (nn.Conv2d, nn.BatchNorm2d)):
                _fill(part, generator, positive)
        return network

    return build


def _fill(part: nn.Conv2d | nn.BatchNorm2d, generator: torch.Generator, positive: bool) -> None:
    """Random numbers that keep the maps near 1; above zero, where `positive` asks for it."""
    scale = 1.0
    if isinstance(part, nn.BatchNorm2d):
        part.running_mean = torch.zeros_like(part.weight)
        part.running_var = torch.ones_like(part.weight)
    else:
        inputs = part.weight[0].numel()
        scale = 1 / inputs if positive else (2 / inputs) ** 0.5
    if positive or isinstance(part, nn.BatchNorm2d):
        part.weight.uniform_(0.5 * scale, 1.5 * scale, generator=generator)
    else:
        part.weight.normal_(0, scale, generator=generator)
    if part.bias is not None:
        part.bias.uniform_(0.0 if positive else -0.1, 0.1, generator=generator)


class _EndOfTrunk(Exception):
    """The last convolution has run."""


@pytest.fixture(scope="session")
def trunk() -> Trunk:
    """A function from pixels to every convolution's own output, by alias: the plain pass."""

    def run(network: Network, inputs: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        modules = dict(network.module.named_modules())
        convolutions = [layer for layer in network.layers if layer.kind == "conv"]

        def keep(alias: str) -> Callable[[nn.Module, object, Tensor], None]:
            def see(_module: nn.Module, _inputs: object, output: Tensor) -> None:
                outputs[alias] = output
                if alias == convolutions[-1].alias:
                    raise _EndOfTrunk

            return see

        handles = [
            modules[layer.module].register_forward_hook(keep(layer.alias)) for layer in convolutions
        ]
        try:
            network.module(inputs)
        except _EndOfTrunk:
            return outputs
        finally:
            for handle in handles:
                handle.remove()
        raise AssertionError("the last convolution did not run")

    return run
