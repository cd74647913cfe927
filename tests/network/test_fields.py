"""Receptive fields against measurements: gradients, and one poisoned pixel."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlock

from cnnvis_cli.network.network import Network
from cnnvis_cli.network.survey import find_layers, survey
from cnnvis_cli.network.zoo import blueprint
from cnnvis_cli.nouns import Box, Layer, Preprocessing, ReceptiveField, Size

# Known networks, by gradients


def average_instead_of_maximum(module: nn.Module) -> None:
    """Let a pooling window pass the gradient to all that it sees, not to the largest alone."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d):
                average = nn.AvgPool2d(
                    child.kernel_size, child.stride, child.padding, child.ceil_mode
                )
                setattr(parent, name, average)


def support(output: Tensor, row: int, column: int, pixels: Tensor) -> Box:
    """Return the smallest box around the pixels that the output at a place has a gradient for."""
    value = output[0, :, row, column].sum()
    (gradient,) = torch.autograd.grad(value, pixels, retain_graph=True)
    reached = gradient[0].ne(0).any(0)
    rows, columns = (reached.any(1 - axis).nonzero().flatten().tolist() for axis in (0, 1))
    return Box(rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)


def covers(outer: Box, inner: Box) -> bool:
    return (
        outer.top <= inner.top
        and outer.left <= inner.left
        and outer.bottom >= inner.bottom
        and outer.right >= inner.right
    )


@pytest.mark.parametrize(
    ("model", "size", "aliases"),
    [
        ("alexnet", (210, 224), ["conv1", "conv2", "conv3", "conv4", "conv5"]),
        ("vgg11", (160, 150), ["conv1", "conv3", "conv5", "conv8"]),
        ("squeezenet1_0", (200, 224), ["conv1", "conv4", "conv10", "conv14", "conv19", "conv26"]),
        ("googlenet", (224, 210), ["conv1", "conv3", "conv7", "conv16", "conv27", "conv57"]),
        ("resnet18", (224, 224), ["conv1", "conv5", "conv8", "conv13", "conv15", "conv20"]),
    ],
)
def test_a_field_is_where_the_gradient_comes_from(
    model: str,
    size: Size,
    aliases: list[str],
    dress: Callable[..., Network],
    trunk: Callable[[Network, Tensor], dict[str, Tensor]],
) -> None:
    network = dress(model, size, positive=True)
    assert network.layer(aliases[-1]) == [la for la in network.layers if la.kind == "conv"][-1]
    average_instead_of_maximum(network.module)
    generator = torch.Generator().manual_seed(0)
    # Everything is positive, so that no gradients cancel and every rectifier is on.
    pixels = 1 + torch.rand(1, 3, *size, dtype=torch.float64, generator=generator)
    outputs = trunk(network, pixels.requires_grad_())
    exact = 0
    for layer in map(network.layer, aliases):
        height, width = layer.map
        assert outputs[layer.alias].shape[1:] == (layer.channels, height, width)
        anywhere = tuple(int(torch.randint(n, (), generator=generator)) for n in layer.map)
        for row, column in (layer.centre, (0, width - 1), (height - 1, 0), anywhere):
            box = layer.field.box(row, column)
            seen = support(outputs[layer.alias], row, column, pixels)
            assert covers(box, seen), (layer.alias, row, column)
            if box.inside(size):
                assert seen == box, (layer.alias, row, column)
                exact += 1
    assert exact >= 4


@pytest.mark.parametrize(
    ("model", "sizes", "strides", "start"),
    [
        ("caffenet", [11, 51, 99, 131, 163], [4, 8, 16, 16, 16], [0, -16, -32, -48, -64]),
        ("alexnet", [11, 51, 99, 131, 163], [4, 8, 16, 16, 16], [-2, -18, -34, -50, -66]),
    ],
)
def test_the_fields_of_alexnet_are_the_published_ones(
    model: str, sizes: list[int], strides: list[int], start: list[int]
) -> None:
    with torch.device("meta"):
        module = blueprint(model).build().eval()
    fields = [la.field for la in find_layers(module, (227, 227)) if la.kind == "conv"]
    assert [field.size for field in fields] == [(n, n) for n in sizes]
    assert [field.stride for field in fields] == [(n, n) for n in strides]
    assert [field.box(0, 0)[:2] for field in fields] == [(n, n) for n in start]


# Small networks, every place of them, by poison


class Apply(nn.Module):
    """A function between a network's parts; the parts it uses are its own."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def conv(inputs: int, outputs: int, kernel: int | Size, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **settings)  # type: ignore[arg-type]


def look(module: nn.Module, size: Size) -> tuple[Layer, Tensor]:
    """Return the last layer, and which pixels reach each of its places: (h, w, H, W).

    Image i of the batch has a NaN as pixel i, and a NaN spreads to all that is computed from it.
    Numbers are float64, where torch convolves by plain matrix products.
    """
    module.double().eval().requires_grad_(False)
    layers = find_layers(module, size)
    layer = [la for la in layers if la.kind == "conv"][-1]
    images = torch.rand(size[0] * size[1], 3, *size, dtype=torch.float64)
    for number, place in enumerate(product(range(size[0]), range(size[1]))):
        images[number, :, place[0], place[1]] = torch.nan
    outputs: list[Tensor] = []
    handle = module.get_submodule(layer.module).register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output)
    )
    module(images)
    handle.remove()
    assert outputs[0].shape[1:] == (layer.channels, *layer.map)
    poisoned = outputs[0].isnan().any(1)  # (H W, h, w)
    return layer, poisoned.permute(1, 2, 0).reshape(*layer.map, *size)


def bounds(reached: Tensor) -> Box:
    rows, columns = (reached.any(1 - axis).nonzero().flatten().tolist() for axis in (0, 1))
    return Box(rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)


def hold(module: nn.Module, size: Size) -> int:
    """Check the field of the last layer at all its places; how many lay inside the image."""
    layer, reached = look(module, size)
    exact = 0
    for row, column in product(range(layer.map[0]), range(layer.map[1])):
        box = layer.field.box(row, column)
        if not reached[row, column].any():
            continue  # a place of padding alone
        seen = bounds(reached[row, column])
        assert covers(box, seen), (row, column)
        if box.inside(size):
            assert seen == box, (row, column)
            exact += 1
    return exact


SMALL: dict[str, Callable[[], nn.Module]] = {
    "dilation": lambda: nn.Sequential(
        conv(3, 2, 3, dilation=2), nn.MaxPool2d(3, 2, 1), conv(2, 2, 3, dilation=(1, 2))
    ),
    "dilated pooling": lambda: nn.Sequential(nn.MaxPool2d(2, 2, 1, dilation=2), conv(3, 2, 2)),
    "a kernel that is not square": lambda: nn.Sequential(
        conv(3, 2, (1, 5), stride=(1, 2), padding=(0, 2)), conv(2, 2, (4, 1), stride=(3, 1))
    ),
    "padding to the same size": lambda: nn.Sequential(
        conv(3, 2, 4, padding="same"), conv(2, 2, (2, 3), padding="same", dilation=(3, 1))
    ),
    "pooling that rounds up": lambda: nn.Sequential(
        conv(3, 2, 3),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.MaxPool2d(2, ceil_mode=True),
        conv(2, 2, 2),
    ),
    "padded pooling that rounds up": lambda: nn.Sequential(
        nn.MaxPool2d(3, 2, 1, ceil_mode=True), conv(3, 2, 3, padding=1)
    ),
    "averages": lambda: nn.Sequential(
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(2, 1, ceil_mode=True, count_include_pad=False),
        conv(3, 2, 2),
    ),
    "pooling by keywords": lambda: nn.Sequential(
        Apply(lambda x: F.max_pool2d(input=x, kernel_size=3, stride=2)),
        Apply(lambda x: F.avg_pool2d(input=x, kernel_size=2)),
        conv(3, 2, 2),
    ),
    "an explicit padding": lambda: nn.Sequential(
        nn.ZeroPad2d((1, 0, 3, 2)), conv(3, 2, 4, stride=2), nn.ZeroPad2d(-1), conv(2, 2, 2)
    ),
    "a residual": lambda: nn.Sequential(
        Apply(
            lambda x, wide, narrow: wide(x) + narrow(x),
            conv(3, 4, 5, stride=2, padding=2),
            conv(3, 4, 1, stride=2),
        ),
        Apply(lambda x, branch: branch(x).add_(x), conv(4, 4, 3, padding=1)),
        conv(4, 2, 2),
    ),
    "branches side by side": lambda: nn.Sequential(
        Apply(
            lambda x, wide, high, pool: torch.cat([wide(x), high(x), pool(x)], 1),
            conv(3, 2, (1, 7), padding=(0, 3)),
            conv(3, 2, (5, 1), padding=(2, 0)),
            nn.MaxPool2d(3, 1, 1),
        ),
        conv(7, 2, 1),
    ),
    "lopsided branches": lambda: nn.Sequential(
        Apply(
            lambda x, one, other: one(F.pad(x, (2, 0))) + other(F.pad(x, (0, 0, 0, 2))),
            conv(3, 2, (1, 3)),
            conv(3, 2, (3, 1)),
        ),
        conv(2, 2, 1),
    ),
    "halves of the channels, shuffled": lambda: nn.Sequential(
        conv(3, 4, 3),
        Apply(
            lambda x, left: torch.cat([left(x.chunk(2, dim=1)[0]), x[:, 2:]], dim=1),
            conv(2, 2, 3, padding=1),
        ),
        Apply(lambda x: x.view(-1, 2, 2, *x.shape[-2:]).transpose(1, 2).reshape(x.shape)),
        conv(4, 2, 3, groups=2),
    ),
    "channels last, as in ConvNeXt": lambda: nn.Sequential(
        conv(3, 4, 2, stride=2), CNBlock(4, 1.0, 0.0), conv(4, 2, 2)
    ),
    "normalisation": lambda: nn.Sequential(
        conv(3, 4, 3), nn.LocalResponseNorm(3), nn.BatchNorm2d(4), conv(4, 2, 3), nn.Sigmoid()
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", SMALL)
def test_a_field_is_where_poison_comes_from(name: str) -> None:
    torch.manual_seed(0)
    assert hold(SMALL[name](), (17, 22)) >= 4


@st.composite
def windows(draw: st.DrawFn) -> nn.Module:
    """Return a convolution or pooling of random shape, from three channels to three."""
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.tuples(*(st.integers(0, n // 2) for n in kernel)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    if draw(st.booleans()):
        return nn.Conv2d(3, 3, kernel, stride, padding, dilation)
    return nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=draw(st.booleans()))


@settings(max_examples=60, deadline=None)
@given(st.lists(windows(), max_size=3), st.integers(15, 20), st.integers(15, 20))
def test_a_field_holds_for_any_stack_of_windows(
    parts: list[nn.Module], height: int, width: int
) -> None:
    try:
        nn.Sequential(*parts).eval()(torch.zeros(1, 3, height, width))
    except RuntimeError:
        return  # the windows outgrew the map
    hold(nn.Sequential(*parts, nn.Conv2d(3, 2, 1)), (height, width))


# Operations after which every place sees everything

MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "squeeze and excitation": lambda x: x * F.adaptive_avg_pool2d(x, 1).sigmoid(),
    "a mean over places": lambda x: x + x.mean((2, 3), keepdim=True),
    "an average of the whole map": lambda x: x * F.avg_pool2d(x, (12, 9)),
    "an average of the whole map, not strided": lambda x: x * F.avg_pool2d(x, (12, 9), stride=1),
    "places of another stride": lambda x: x + F.pad(F.max_pool2d(x, 1, 2), (0, 4, 6, 0)),
    "places in another order": lambda x: x.flip(2),
    "places turned into channels": lambda x: x.view(len(x), 4, 6, 9),
    "a softmax over places": lambda x: torch.softmax(x.flatten(2), -1).view(x.shape),
    "a linear layer along the rows": lambda x: F.linear(x, torch.ones(9, 9).to(x)),
    "a normalisation of each map": lambda x: F.layer_norm(x, (12, 9)),
    "places joined": lambda x: torch.cat([x, x], dim=3),
    "rows and columns exchanged": lambda x: x.transpose(2, 3),
    "a padding that goes round": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
}


@pytest.mark.parametrize("name", MIXING)
def test_where_places_mix_a_field_is_the_whole_input(name: str) -> None:
    torch.manual_seed(0)
    channels = 4 if name == "places turned into channels" else 2
    module = nn.Sequential(conv(3, 2, 3), Apply(MIXING[name]), conv(channels, 2, (3, 2)))
    layer, _ = look(module, (14, 11))
    assert layer.field == ReceptiveField.whole((14, 11))


def test_a_layer_knows_its_map_and_kind_and_how_often_it_runs() -> None:
    twice = conv(3, 3, 3, padding=1)
    tokens = nn.Linear(7, 7)  # gives a value a token, not a value a unit
    module = nn.Sequential(
        twice,
        twice,
        conv(3, 5, 2, stride=2),
        Apply(lambda x: x.flatten(2)),
        tokens,
        nn.Flatten(),
        nn.Linear(5 * 7, 4),
    )
    module[4] = Apply(lambda x, linear: linear(x[:, :, :7]), tokens)
    layers = find_layers(module, (6, 8))
    assert [(la.alias, la.module, la.kind, la.channels, la.map, la.calls) for la in layers] == [
        ("conv1", "0", "conv", 3, (6, 8), 2),
        ("conv2", "2", "conv", 5, (3, 4), 1),
        ("fc3", "6", "fc", 4, (1, 1), 1),
    ]
    assert [la.centre for la in layers] == [(3, 4), (1, 2), (0, 0)]
    assert layers[2].field == ReceptiveField.whole((6, 8))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("torch.renorm", lambda x: torch.renorm(x, 2, 0, 5.0)),
        ("torch.special.i0", torch.special.i0),
        ("torch.Tensor.__setitem__", lambda x: shifted(x)),  # noqa: PLW0108 - defined below
    ],
)
def test_after_an_unknown_operation_every_place_sees_everything(
    name: str, function: Callable[[Tensor], Tensor]
) -> None:
    module = nn.Sequential(conv(3, 2, 3), Apply(function), conv(2, 2, 1))
    network = Network.prepare("strange", module, Preprocessing(crop=(12, 12)))
    assert [found.split(" (")[0] for found in network.unknown] == [name]
    before, after = network.layers
    assert before.field.size == (3, 3)
    assert after.field == ReceptiveField.whole((12, 12))
    assert network.window(after, Box(0, 0, 5, 5)) == Box.whole((12, 12))


def shifted(x: Tensor) -> Tensor:
    """Write into a map, as a temporal shift does."""
    moved = x * 1
    moved[:, :, 1:] = x[:, :, :-1]
    return moved


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_after_scripted_code_every_place_sees_everything() -> None:
    scripted = torch.jit.script(Rectify())
    module = nn.Sequential(conv(3, 2, 3), scripted, conv(2, 2, 1))
    network = Network.prepare("strange", module, Preprocessing(crop=(12, 12)))
    assert network.unknown[0].startswith("code that cnnvis cannot look into (")
    assert network.layers[1].field == ReceptiveField.whole((12, 12))
    gated = nn.Sequential(conv(3, 2, 3), Gated(torch.jit.script(Rectify())), conv(2, 2, 1))
    network = Network.prepare("strange", gated, Preprocessing(crop=(12, 12)))
    assert network.window(network.layers[1], Box(0, 0, 5, 5)) == Box.whole((12, 12))


class Rectify(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)


class Gated(nn.Module):
    """A gate of the whole map in code that nobody sees."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = x * self.gate(x)
        return gated


PICKED: dict[str, Callable[[Tensor], Tensor]] = {
    "every second column": lambda x: x[:, :, 1:, ::2],
    "a part": lambda x: x[:, 1:, 2:-1, 3:],
    "narrowed": lambda x: x.narrow(2, 1, 4),
    "channels turned last and back": lambda x: x.permute(0, 2, 3, 1).contiguous().movedim(-1, 1),
    "flattened and back": lambda x: x.flatten(2).view(x.shape),
    "rolled there and back": lambda x: x.roll((1, 2), (2, 3)).relu().roll((-1, -2), (2, 3)),
    "space to depth": lambda x: F.pixel_unshuffle(x[:, :, :8, :8], 2),
    "space to depth by hand": lambda x: torch.cat(
        [x[:, :, i:8:2, j:8:2] for i in (0, 1) for j in (0, 1)], 1
    ),
    "blocks": lambda x: x[:, :, :8, :9].reshape(-1, 2, 4, 2, 3, 3).mean((3, 5)),
    "windows": lambda x: windows_and_back(x[:, :, :8, :8]),
}


def windows_and_back(x: Tensor) -> Tensor:
    """Cut a map into windows of 4x4, as Swin does, and put it together again."""
    b, c, h, w = x.shape
    cut = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
    back = (cut * 2).view(b, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4)
    return back.reshape(b, c, h, w)


@pytest.mark.parametrize("name", PICKED)
def test_places_are_followed_through_what_moves_them(name: str) -> None:
    torch.manual_seed(0)
    function = PICKED[name]
    channels = function(torch.zeros(1, 2, 12, 12)).shape[1]
    hold(nn.Sequential(conv(3, 2, 3), Apply(function), conv(channels, 2, (2, 1))), (14, 14))


# Every network that torchvision has

# Those that differ from a smaller one here in width or depth alone.
LARGER = re.compile(
    "convnext_(small|base|large)|densenet(161|169|201)|efficientnet_(b[1-7]|v2_[ml])|mnasnet(0_75|1)"
    "|regnet_(x|y)_.*gf|resnet(101|152)|resnext101|shufflenet_v2_x[12]|swin_[sb]|swin_v2_[sb]"
    "|vgg1[369]|vit_b_32|vit_l|wide_resnet101"
)
BUILDERS = [
    name
    for name in models.list_models(module=models)
    if not LARGER.match(name) or name in ("regnet_x_400mf", "regnet_y_400mf")
]


@pytest.mark.parametrize("model", BUILDERS)
def test_every_network_of_torchvision_can_be_followed(model: str) -> None:
    plan = blueprint(model)
    # regnet computes its widths from tensors, which needs numbers
    with torch.device("cpu" if model.startswith("regnet") else "meta"):
        module = plan.build().to("meta").eval().requires_grad_(False)
    found = survey(module, plan.preprocessing.crop)
    listed = {layer.module for layer in found.layers}
    left_out = {each.module for each in found.omissions}
    weighted = {
        name
        for name, child in module.named_modules()
        if any(True for _ in child.parameters(recurse=False))
    }
    assert listed | left_out == weighted
    assert not listed & left_out
    assert not found.unknown
    units = {
        name
        for name, child in module.named_modules()
        if isinstance(child, (nn.Conv2d, nn.Linear))
        and "aux" not in name.lower()  # not run in evaluation
        and "cpb_mlp" not in name  # of positions, not of the image
    }
    assert listed == units
    assert [la.alias for la in found.layers] == [
        f"{la.kind}{number}" for number, la in enumerate(found.layers, 1)
    ]
    first, last = found.layers[0], found.layers[-1]
    assert first.kind == "conv"
    assert last.channels == 1000
    assert last.kind == ("conv" if model.startswith("squeezenet") else "fc")
