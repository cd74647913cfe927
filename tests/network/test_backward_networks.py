"""Every rectifier of known networks takes part: the same with rectifiers replaced by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.googlenet import BasicConv2d

from cnnvis_cli.errors import UsageError
from cnnvis_cli.network.backward import check_rules, rectify
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.zoo import blueprint
from cnnvis_cli.nouns import Box, Layer

LAYERS = {
    "alexnet": ("conv5", (128, 128)),
    "caffenet": ("conv5", None),
    "zfnet": ("conv4", None),
    "vgg11": ("conv6", (96, 96)),
    "squeezenet1_1": ("conv20", (128, 128)),
    "googlenet": ("conv30", (128, 128)),
    "resnet18": ("conv15", (128, 128)),
}


def by_hand(x: Tensor, method: str) -> Tensor:
    """max(x, 0), and on the way back the rule of the method, by a hook on the value."""
    rectified = (x + x.abs()) / 2
    passed = rectified.detach()
    rules = {
        "deconv": lambda signal: signal.clamp(min=0),
        "guided": lambda signal: signal.clamp(min=0) * (passed > 0),
    }
    out = x + (passed - x).detach()  # its own gradient is that of x
    out.register_hook(rules[method])  # type: ignore[no-untyped-call]
    return out


class ByHand(nn.Module):
    """A rectifier in the words of `by_hand`."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        return by_hand(x, self.method)


def replace(module: nn.Module, method: str) -> int:
    """Replace every rectifier of a network, also GoogLeNet's functions; how many there were."""
    found = 0
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU):
            setattr(module, name, ByHand(method))
            found += 1
        elif isinstance(child, BasicConv2d):

            def forward(self: Any, x: Tensor) -> Tensor:
                return by_hand(self.bn(self.conv(x)), method)

            child.forward = MethodType(forward, child)
            found += 1
        else:
            found += replace(child, method)
    return found


def projected(network: Network, layer: Layer, place: tuple[int, int], way: Any) -> Tensor:
    """Return what in a photograph activates channel 3 at a place."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 3, *network.size)
    pixels = torch.rand(shape, dtype=torch.float64, generator=generator) * 255 - 120
    pixels.requires_grad_()
    with way:
        output, _ = network.values(layer, Box.whole(network.size), pixels)
    (gradient,) = torch.autograd.grad(output[(0, 3, *place)], pixels)
    return gradient


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-4 * other.abs().max())


@pytest.mark.parametrize("method", ["deconv", "guided"])
@pytest.mark.parametrize("model", LAYERS)
def test_every_rectifier_takes_part(model: str, method: str, dress: Callable[..., Network]) -> None:
    alias, size = LAYERS[model]
    network = dress(model, size)
    layer = network.layer(alias)
    places = [(0, 0), layer.centre]
    found = [projected(network, layer, place, rectify(method)) for place in places]
    plain = [projected(network, layer, place, nullcontext()) for place in places]
    assert replace(network.module, method)
    for place, ours, gradient in zip(places, found, plain, strict=True):
        expected = projected(network, layer, place, nullcontext())
        assert expected.any()
        assert close(ours, expected)
        assert not close(ours, gradient)


@pytest.mark.parametrize("method", ["deconv", "guided"])
def test_a_known_network_without_rectifiers_is_refused_by_name(
    method: str, dress: Callable[..., Network]
) -> None:
    network = dress("efficientnet_b0", (64, 64))
    check_rules(network, [network.layer("conv1")], method)
    check_rules(network, network.layers, "gradient")
    refusal = rf"efficientnet_b0: {method} cannot project conv2: .*silu \(in features.0.2, SiLU"
    with pytest.raises(UsageError, match=refusal):
        check_rules(network, network.layers[:5], method)


@pytest.mark.parametrize("method", ["deconv", "guided", "gradient"])
def test_a_signal_can_pass_normalisation_unchanged(method: str) -> None:
    torch.manual_seed(0)
    before, after = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3)
    norm = nn.LocalResponseNorm(3, alpha=0.9, k=1.5)
    x = (torch.randn(2, 3, 9, 9) * 9).requires_grad_()
    with rectify(method, normalised=False):
        inner = before(x)
        above = norm(inner)
        out = after(above)
    assert torch.equal(out, after(norm(before(x))))
    (found,) = torch.autograd.grad(out[:, 1, 3, 3].sum(), x, retain_graph=True)
    (signal,) = torch.autograd.grad(out[:, 1, 3, 3].sum(), above, retain_graph=True)
    (expected,) = torch.autograd.grad(inner, x, signal)
    assert found.any()
    torch.testing.assert_close(found, expected)


def test_the_papers_networks_have_normalisation_to_pass() -> None:
    for model in ("caffenet", "zfnet"):
        with torch.device("meta"):
            module = blueprint(model).build()
        assert any(isinstance(part, nn.LocalResponseNorm) for part in module.modules())
