"""A network read layer by layer: the right tensor, at the right moment, and no hook left behind."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cnnvis_cli.demo.network import INPUT, DemoNet
from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.zoo import blueprint
from cnnvis_cli.nouns import Box, Layer, Preprocessing, Size

SIZE = (14, 18)
MEAN, STD = (123.0, 116.0, 103.0), (58.0, 57.0, 56.0)


class Plain(nn.Module):
    """Two convolutions and a fully connected layer; `rectify` comes after each of the first two."""

    def __init__(self, rectify: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 5, 3)
        self.head = nn.Linear(5, 2)
        self.rectify = rectify
        self.skip = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.rectify(self.first(x))
        if not self.skip:
            x = self.rectify(self.second(x))
            x = self.head(x.mean((2, 3)))
        return x


def prepared(module: nn.Module, size: Size = SIZE, bgr: bool = False) -> Network:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    return Network.prepare("plain", module, Preprocessing(crop=size, mean=MEAN, std=STD, bgr=bgr))


def inputs(count: int = 2) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def before_rectifying(module: Plain, x: Tensor) -> dict[str, Tensor]:
    """Return each layer's own output, from a pass in which nothing is done in place."""
    first = F.conv2d(x, module.first.weight, module.first.bias)
    second = F.conv2d(first.clamp(min=0), module.second.weight, module.second.bias)
    pooled = second.clamp(min=0).mean((2, 3))
    return {
        "conv1": first,
        "conv2": second,
        "fc3": pooled @ module.head.weight.T + module.head.bias,
    }


RECTIFIERS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "a module": nn.ReLU,
    "a module in place": lambda: nn.ReLU(inplace=True),
    "a function": lambda: F.relu,
    "a function in place": lambda: torch.relu_,
}


@pytest.mark.parametrize("name", RECTIFIERS)
def test_a_tap_reads_what_a_layer_gives_before_it_is_rectified(name: str) -> None:
    module = Plain(RECTIFIERS[name]())
    network, x = prepared(module), inputs()
    expected = before_rectifying(module, x)
    assert all(bool((value < 0).any()) for value in expected.values())
    read: dict[str, Tensor] = {}

    def keep(layer: Layer, output: Tensor) -> None:
        read[layer.alias] = output.clone()

    with network.tap(network.layers, keep) as run:
        run(x)
    assert list(read) == ["conv1", "conv2", "fc3"]
    for alias, value in expected.items():
        torch.testing.assert_close(read[alias], value)


def test_an_output_read_before_an_in_place_module_stays_as_it_was_read() -> None:
    module = Plain(nn.ReLU(inplace=True))
    network, x = prepared(module), inputs()
    read: list[Tensor] = []
    with network.tap(network.layers, lambda _, output: read.append(output)) as run:
        run(x)
    for value, expected in zip(read, before_rectifying(module, x).values(), strict=True):
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("name", RECTIFIERS)
def test_the_value_of_a_layer_and_its_gradient_are_those_before_it_is_rectified(name: str) -> None:
    module = Plain(RECTIFIERS[name]())
    network = prepared(module)
    pixels = (inputs() * 50).requires_grad_()
    expected = before_rectifying(module, network.normalise(pixels))["conv2"]
    output, origin = network.values(network.layer("conv2"), Box.whole(SIZE), pixels)
    assert origin == (0, 0)
    torch.testing.assert_close(output, expected)
    lowest = expected.flatten(1).argmin(1)
    (one,) = torch.autograd.grad(output.flatten(1)[[0, 1], lowest].sum(), pixels)
    (two,) = torch.autograd.grad(expected.flatten(1)[[0, 1], lowest].sum(), pixels)
    assert one.any()
    torch.testing.assert_close(one, two)


def test_a_pass_ends_at_the_last_layer_that_is_read() -> None:
    ran: list[str] = []
    module = Plain(nn.ReLU())
    network = prepared(module)
    module.second.register_forward_pre_hook(lambda *_: ran.append("second"))
    module.head.register_forward_pre_hook(lambda *_: ran.append("head"))
    with network.tap(network.choose(["conv1"]), lambda *_: None) as run:
        run(inputs())
    assert ran == []
    with network.tap(network.choose(["conv1", "conv2"]), lambda *_: None) as run:
        run(inputs())
        run(inputs())
    assert ran == ["second", "second"]


def test_every_pass_is_read_anew() -> None:
    network, read = prepared(Plain(nn.ReLU())), []
    with network.tap(network.choose(["conv2"]), lambda _, output: read.append(output)) as run:
        run(inputs(2))
        run(inputs(3))
    assert [len(output) for output in read] == [2, 3]


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) for part in module.modules())


def test_no_hook_is_left_behind_whatever_happens() -> None:
    network = prepared(Plain(nn.ReLU()))
    with network.tap(network.layers, lambda *_: None):
        assert hooks(network.module) == 3
    assert hooks(network.module) == 0

    def fail(_layer: Layer, _output: Tensor) -> None:
        raise MemoryError("full")

    with pytest.raises(MemoryError), network.tap(network.layers, fail) as run:
        run(inputs())
    assert hooks(network.module) == 0
    with pytest.raises(RuntimeError), network.tap(network.layers, lambda *_: None) as run:
        run(torch.zeros(1, 5, *SIZE))
    assert hooks(network.module) == 0


def test_a_layer_that_runs_twice_has_no_single_value() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 1))
    module.insert(2, module[0])
    network = prepared(module)
    assert [layer.calls for layer in network.layers] == [2, 1]
    message = re.escape("plain: conv1 (0) runs 2 times in one pass")
    with (
        pytest.raises(CnnvisError, match=f"{message}.*--layer"),
        network.tap(network.layers, lambda *_: None),
    ):
        pass
    with pytest.raises(CnnvisError, match=message):
        network.values(network.layer("conv1"), Box.whole(SIZE), inputs())
    assert hooks(module) == 0
    read: list[Tensor] = []  # the others can still be read
    with network.tap(network.choose(["conv2"]), lambda _, output: read.append(output)) as run:
        run(inputs())
    torch.testing.assert_close(read[0], module(inputs()))


def test_a_layer_that_did_not_run_is_named() -> None:
    module = Plain(nn.ReLU())
    network = prepared(module)
    module.skip = True
    with (
        pytest.raises(CnnvisError, match="plain: conv2, fc3 did not run"),
        network.tap(network.layers, lambda *_: None) as run,
    ):
        run(inputs())


def test_a_layer_that_ran_in_the_last_pass_must_run_again() -> None:
    module = Plain(nn.ReLU())
    network = prepared(module)
    with network.tap(network.layers, lambda *_: None) as run:
        run(inputs())
        module.skip = True
        with pytest.raises(CnnvisError, match="did not run"):
            run(inputs())


# Preprocessing


@pytest.mark.parametrize("bgr", [False, True])
def test_pixels_are_centred_then_scaled_then_turned_round(bgr: bool) -> None:
    network = prepared(Plain(nn.ReLU()), bgr=bgr)
    images = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    centred = network.centre(torch.from_numpy(images))
    expected = (images.astype(np.float64) - np.array(MEAN)).transpose(0, 3, 1, 2)
    assert centred.dtype == torch.float32
    np.testing.assert_allclose(centred.numpy(), expected, rtol=1e-6, atol=1e-4)

    scaled = expected / np.array(STD)[:, None, None]
    ready = scaled[:, ::-1] if bgr else scaled
    np.testing.assert_allclose(network.normalise(centred).numpy(), ready, rtol=1e-5, atol=1e-6)


def test_the_preprocessing_of_torchvision_s_networks_is_torchvision_s() -> None:
    plan = blueprint("alexnet")
    transform = plan.torchvision_weights["DEFAULT"].transforms()
    # An even colour, which no resizing changes.
    even = torch.tensor([200, 77, 3], dtype=torch.uint8).expand(300, 400, 3)
    network = Network.prepare("plain", Plain(nn.ReLU()), plan.preprocessing)
    height, width = plan.preprocessing.crop
    ours = network.normalise(network.centre(even[None, :height, :width]))[0]
    theirs = transform(even.permute(2, 0, 1))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# Preparing


def test_a_prepared_network_is_frozen_and_evaluates() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 1))
    network = prepared(module.train())
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    torch.testing.assert_close(network.module(inputs()), network.module(inputs()))


def test_an_input_of_the_wrong_size_is_explained() -> None:
    with pytest.raises(UsageError, match=r"plain: cannot take an input of 4x4.*crop under \[pre"):
        prepared(Plain(nn.ReLU()), size=(4, 4))


def test_a_vision_transformer_of_another_size_is_explained() -> None:
    with torch.device("meta"):
        module = blueprint("vit_b_32").build()
    with pytest.raises(
        UsageError, match=r"vit: cannot take an input of 96x96 pixels \(Wrong image"
    ):
        Network.prepare("vit", module, Preprocessing(crop=(96, 96)))


def test_a_network_moved_to_a_device_gives_the_same_values() -> None:
    network = prepared(Plain(nn.ReLU()))
    pixels = inputs()
    expected, _ = network.values(network.layer("conv2"), Box.whole(SIZE), pixels)
    moved = network.to(torch.device("cpu"))
    found, _ = moved.values(moved.layer("conv2"), Box.whole(SIZE), pixels)
    assert moved.layers == network.layers
    torch.testing.assert_close(found, expected)


# Names


def test_a_layer_goes_by_its_alias_or_its_module_path() -> None:
    network = prepared(DemoNet(5), (INPUT, INPUT))
    assert network.layer("conv3") is network.layer("features.6")
    assert network.layer("fc8") is network.layer("classifier.6")
    assert [layer.alias for layer in network.layers] == [
        *("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    ]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("cnv3", "did you mean 'conv3'?"),
        ("pool", "choose from: conv1, conv2, "),
        ("conv9", "'conv"),
    ],
)
def test_an_unknown_layer_is_answered_with_the_nearest(name: str, remedy: str) -> None:
    network = prepared(DemoNet(5), (INPUT, INPUT))
    with pytest.raises(UsageError, match=re.escape(remedy)) as caught:
        network.layer(name)
    assert str(caught.value).startswith(f"plain has no layer {name!r}; ")
    with pytest.raises(UsageError):
        network.choose(["conv1", name])


def test_layers_are_chosen_once_each_and_in_the_order_of_the_network() -> None:
    network = prepared(DemoNet(5), (INPUT, INPUT))
    chosen = network.choose(["fc6", "conv4", "features.0", "conv4", "features.8"])
    assert [layer.alias for layer in chosen] == ["conv1", "conv4", "fc6"]
    assert network.choose([]) == network.layers


def test_the_bundled_network_has_fields_that_fit_its_input() -> None:
    network = prepared(DemoNet(5), (INPUT, INPUT))
    convolutions = [layer for layer in network.layers if layer.kind == "conv"]
    assert [layer.field.size[0] for layer in convolutions] == [7, 27, 51, 67, 83]
    assert all(layer.field.box(*layer.centre).inside(network.size) for layer in convolutions)
