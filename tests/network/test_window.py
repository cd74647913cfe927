"""A window of the input gives a layer exactly the numbers of the whole input."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Box, Layer, Preprocessing, Size

Place = tuple[int, int]


def photographs(size: Size, count: int = 1) -> Tensor:
    """Mean-subtracted noise in 0..255 units: (count, 3, h, w) float64."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, *size, dtype=torch.float64, generator=generator) * 255 - 120


def normalised(network: Network, pixels: Tensor) -> Tensor:
    """Return what `Network.normalise` promises, written anew."""
    divided = pixels / torch.tensor(network.preprocessing.std)[:, None, None]
    return divided[:, [2, 1, 0]] if network.preprocessing.bgr else divided


def close(one: Tensor, other: Tensor) -> bool:
    """Equal to 1e-12 of the largest number."""
    return bool((one - other).abs().max() <= 1e-12 * other.abs().max())


class Whole:
    """The values and gradients of the whole input, from one plain pass."""

    def __init__(self, network: Network, trunk: Callable[..., dict[str, Tensor]]) -> None:
        self.network = network
        self.pixels = photographs(network.size)
        self.inputs = self.pixels.clone().requires_grad_()
        self.outputs = trunk(network, normalised(network, self.inputs))

    def check(self, layer: Layer, place: Place, box: Box | None = None) -> Box:
        """Check that the window over `box` gives all channels of a place and their gradient."""
        value = self.outputs[layer.alias][0, :, place[0], place[1]]
        weights = torch.linspace(-1, 1, len(value), dtype=value.dtype)
        (gradient,) = torch.autograd.grad(value @ weights, self.inputs, retain_graph=True)

        window = self.network.window(layer, box or layer.field.box(*place))
        rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
        pixels = self.pixels[:, :, rows, columns].clone().requires_grad_()
        output, (first_row, first_column) = self.network.values(layer, window, pixels)
        found = output[0, :, place[0] - first_row, place[1] - first_column]
        (windowed,) = torch.autograd.grad(found @ weights, pixels)

        assert close(found, value)
        assert close(windowed, gradient[:, :, rows, columns])
        outside = gradient.clone()
        outside[:, :, rows, columns] = 0
        assert not outside.any()
        return window


def fitting(network: Network) -> list[Layer]:
    """Return the convolutions whose centre unit's field lies inside the input."""
    return [
        layer
        for layer in network.layers
        if layer.kind == "conv" and layer.field.box(*layer.centre).inside(network.size)
    ]


@pytest.mark.parametrize(
    ("model", "size", "count"),
    [
        ("alexnet", (195, 227), 5),
        ("caffenet", (227, 227), 5),
        ("squeezenet1_0", (200, 224), 26),
        ("vgg11", (160, 150), 8),
        ("googlenet", (224, 224), 36),
        ("resnet18", (224, 224), 15),
    ],
)
def test_the_canvas_of_a_layer_gives_the_value_and_gradient_of_the_whole_input(
    model: str,
    size: Size,
    count: int,
    dress: Callable[..., Network],
    trunk: Callable[..., dict[str, Tensor]],
) -> None:
    network = dress(model, size)
    layers = fitting(network)
    assert len(layers) == count
    whole = Whole(network, trunk)
    for layer in layers:
        box = network.canvas(layer)
        assert box == layer.field.box(*layer.centre)
        assert whole.check(layer, layer.centre, box) == box
    for layer in network.layers:
        if layer not in layers:
            assert network.canvas(layer) == Box.whole(size), layer.alias


@pytest.mark.parametrize(
    ("model", "size", "aliases"),
    [
        ("alexnet", (195, 227), ["conv1", "conv3", "conv5"]),
        ("caffenet", (227, 227), ["conv2", "conv4"]),
        ("squeezenet1_0", (200, 224), ["conv1", "conv7", "conv26"]),
        ("vgg11", (160, 150), ["conv2", "conv6"]),
        ("googlenet", (224, 224), ["conv3", "conv10"]),
        ("resnet18", (224, 224), ["conv1", "conv5", "conv8"]),
    ],
)
def test_a_window_that_the_border_cuts_gives_the_value_and_gradient_of_the_whole_input(
    model: str,
    size: Size,
    aliases: list[str],
    dress: Callable[..., Network],
    trunk: Callable[..., dict[str, Tensor]],
) -> None:
    network = dress(model, size)
    whole = Whole(network, trunk)
    for layer in map(network.layer, aliases):
        last_row, last_column = layer.map[0] - 1, layer.map[1] - 1
        middle_row, middle_column = layer.centre
        for place in (
            (0, 0),
            (0, last_column),
            (last_row, 0),
            (last_row, last_column),
            (0, middle_column),
            (middle_row, last_column),
            (min(1, last_row), max(last_column - 1, 0)),
        ):
            box = layer.field.box(*place)
            assert whole.check(layer, place) == box.clip(size), (layer.alias, place)


def test_a_window_of_a_window_holds_every_place_that_it_can(
    dress: Callable[..., Network], trunk: Callable[..., dict[str, Tensor]]
) -> None:
    network = dress("alexnet", (195, 227))
    layer, whole = network.layer("conv3"), Whole(network, trunk)
    first, last = layer.field.box(4, 5), layer.field.box(7, 6)
    wide = Box(first.top, first.left, last.bottom, last.right)
    pixels = whole.pixels[:, :, wide.top : wide.bottom, wide.left : wide.right]
    output, origin = network.values(layer, wide, pixels)
    assert origin == (4, 5)
    assert close(output, whole.outputs["conv3"][:, :, 4:8, 5:7])


# Small networks: what pooling, branches and mixing do to a window


class Apply(nn.Module):
    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def small(*parts: nn.Module, size: Size = (19, 24)) -> Network:
    torch.manual_seed(0)
    module = nn.Sequential(*parts).double()
    return Network.prepare("small", module, Preprocessing(crop=size, std=(57.0, 56.0, 58.0)))


EXACT: dict[str, Callable[[], list[nn.Module]]] = {
    "dilation and groups": lambda: [
        nn.Conv2d(3, 4, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, (1, 3), stride=(1, 2), padding=(0, 1), groups=2),
    ],
    "explicit paddings, of another size on each side": lambda: [
        nn.ZeroPad2d((0, 1, 2, 0)),
        nn.Conv2d(3, 4, 3, stride=2),
        nn.ReLU6(),
        nn.ConstantPad2d((1, 1, 0, 2), 0.5),
        nn.Conv2d(4, 4, 3, padding=1),
        Apply(lambda x: F.pad(x, (1, 0))),
        nn.Conv2d(4, 4, 2),
    ],
    "pooling that rounds up": lambda: [
        nn.Conv2d(3, 4, 3),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(4, 4, 2),
    ],
    "padding with what is larger than some pixels": lambda: [
        nn.MaxPool2d(3, 2, 1),  # pads with nothing, not with zeros
        nn.Conv2d(3, 4, 3, padding=1),
    ],
    "averages that count the padding": lambda: [
        nn.AvgPool2d(3, 2, 1),
        nn.Conv2d(3, 4, 3, padding=1),
    ],
    "normalisation": lambda: [
        nn.Conv2d(3, 6, 3, padding=1),
        nn.LocalResponseNorm(3, alpha=0.5),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 4, 3, padding=1),
    ],
    "branches of unequal sight": lambda: [
        nn.Conv2d(3, 4, 3, padding=1),
        Apply(
            lambda x, near, far: torch.cat([near(x), far(x), x], 1) + 1,
            nn.Conv2d(4, 2, 1),
            nn.Conv2d(4, 2, 5, padding=2),
        ),
        Apply(lambda x, near, far: near(x).add_(far(x)), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)),
        nn.Conv2d(4, 4, 2, stride=2),
    ],
    "channels last": lambda: [
        nn.Conv2d(3, 4, 3, padding=1),
        Apply(
            lambda x, norm, mix: mix(norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2) + x,
            nn.LayerNorm(4),
            nn.Linear(4, 4),
        ),
        nn.Conv2d(4, 4, 3, padding=1),
    ],
    "weights for each channel": lambda: [
        nn.Conv2d(3, 4, 3, padding=1),
        Apply(lambda x: x * torch.arange(4.0)[:, None, None] - torch.ones(1, 4, 1, 1)),
        nn.PReLU(4),
        nn.Conv2d(4, 4, 3, padding=1),
    ],
}


def every_place(network: Network) -> tuple[Layer, Whole]:
    def trunk(network: Network, inputs: Tensor) -> dict[str, Tensor]:
        return {network.layers[-1].alias: network.module(inputs)}

    return network.layers[-1], Whole(network, trunk)


@pytest.mark.parametrize("name", EXACT)
def test_every_place_of_a_small_network_has_an_exact_window(name: str) -> None:
    network = small(*EXACT[name]())
    layer, whole = every_place(network)
    for row in range(layer.map[0]):
        for column in range(layer.map[1]):
            window = whole.check(layer, (row, column))
            assert window == layer.field.box(row, column).clip(network.size)


MIXED: dict[str, Callable[[], list[nn.Module]]] = {
    "squeeze and excitation": lambda: [
        nn.Conv2d(3, 4, 3),
        Apply(lambda x: x * F.adaptive_avg_pool2d(x, 1).sigmoid()),
        nn.Conv2d(4, 4, 3),
    ],
    "an average of the whole map": lambda: [
        nn.Conv2d(3, 4, 3),
        Apply(lambda x: x * F.avg_pool2d(x, x.shape[-2:], stride=1)),
        nn.Conv2d(4, 4, 1),
    ],
    "averages over a partly counted border": lambda: [
        nn.Conv2d(3, 4, 3, stride=3),
        nn.AvgPool2d(5, 1, 2, count_include_pad=False),
        nn.Conv2d(4, 4, 1),
    ],
    "averages that round up": lambda: [
        nn.AvgPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(3, 4, 3),
    ],
    "a reflecting padding": lambda: [nn.ReflectionPad2d(1), nn.Conv2d(3, 4, 3)],
    "a negative padding": lambda: [nn.ZeroPad2d((-1, 0, 0, 2)), nn.Conv2d(3, 4, 3)],
    "a mean image": lambda: [
        Apply(lambda x: x - torch.linspace(0, 1, 19 * 24).view(19, 24)),
        nn.Conv2d(3, 4, 3),
    ],
    "a mean image for each channel": lambda: [
        Apply(lambda x: x - torch.linspace(0, 1, 3 * 19 * 24).view(1, 3, 19, 24)),
        nn.Conv2d(3, 4, 3),
    ],
    "a mean row": lambda: [
        nn.Conv2d(3, 4, (1, 24)),
        Apply(lambda x: x - torch.linspace(0, 1, 19).view(19, 1)),
        nn.Conv2d(4, 4, 1),
    ],
    "rows and columns exchanged": lambda: [
        nn.Conv2d(3, 4, 3),
        Apply(lambda x: x.transpose(2, 3)),
        nn.Conv2d(4, 4, (1, 3)),
    ],
}


@pytest.mark.parametrize("name", MIXED)
def test_where_a_window_cannot_be_exact_the_whole_input_is_used(name: str) -> None:
    network = small(*MIXED[name]())
    layer, whole = every_place(network)
    for row in range(layer.map[0]):
        for column in range(layer.map[1]):
            whole.check(layer, (row, column))
    assert network.canvas(layer) == Box.whole(network.size)
    assert network.window(layer, Box(2, 3, 12, 14)) == Box.whole(network.size)


def test_an_average_over_a_partly_counted_border_needs_the_last_pixel_too() -> None:
    # The convolution leaves the last row and column of pixels unseen, so a window without them
    # gives its whole map; the average must still not take the padding for places.
    network = small(
        nn.Conv2d(3, 4, 3, stride=3),
        nn.AvgPool2d(5, 1, 2, count_include_pad=False),
        nn.Conv2d(4, 4, 1),
        size=(13, 13),
    )
    layer, whole = every_place(network)
    assert layer.field.box(1, 1).clip((13, 13)) == Box(0, 0, 12, 12)
    whole.check(layer, (1, 1))


def test_layers_behind_a_mixing_of_places_fall_back_to_the_whole_input(
    dress: Callable[..., Network],
) -> None:
    network = dress("mobilenet_v3_small")
    first, second, behind = (network.layer(name) for name in ("conv1", "conv2", "conv7"))
    assert network.canvas(first) == first.field.box(*first.centre)
    assert network.canvas(second) == second.field.box(*second.centre)
    assert network.canvas(behind) == Box.whole(network.size)
    deep = network.layers[-3]
    assert network.window(deep, Box(0, 0, 50, 50)) == Box.whole(network.size)


def test_a_fully_connected_layer_is_a_map_of_one_place() -> None:
    network = small(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 4 * 6, 5), size=(6, 8)
    )
    layer = network.layer("fc2")
    assert network.canvas(layer) == Box.whole((6, 8))
    pixels = photographs((6, 8), count=2)
    output, origin = network.values(layer, Box.whole((6, 8)), pixels)
    assert output.shape == (2, 5, 1, 1)
    assert origin == (0, 0)
    assert close(output[:, :, 0, 0], network.module(normalised(network, pixels)))


def test_a_field_larger_than_the_input_falls_back_to_the_whole_input(
    dress: Callable[..., Network],
) -> None:
    network = dress("resnet18")
    layer = network.layer("conv20")
    assert layer.field.size == (435, 435)
    assert network.canvas(layer) == Box.whole((224, 224))
    low = small(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 5, padding=2), size=(6, 40))
    assert low.canvas(low.layer("conv1")) == low.layer("conv1").field.box(3, 20)
    assert low.canvas(low.layer("conv2")) == Box.whole((6, 40))  # too high, but not too wide


class Particular(nn.Module):
    """Asserts the size of its input, as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[2] == 20, "Wrong image height!")
        found: Tensor = self.first(x)
        return found


def test_a_network_that_asserts_its_input_s_size_gets_the_whole_input() -> None:
    network = Network.prepare("particular", Particular(), Preprocessing(crop=(20, 20)))
    assert network.canvas(network.layers[0]) == Box.whole((20, 20))
