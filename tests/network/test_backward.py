"""Projections against a deconvnet written step by step, as Zeiler & Fergus describe it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from cnnvis_cli.errors import CnnvisError, UsageError
from cnnvis_cli.network.backward import RULES, Clamp, Deconv, check_rules, rectify
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.zoo import blueprint
from cnnvis_cli.nouns import Box, Preprocessing

METHODS = ["deconv", "guided", "gradient"]
SIZE = (29, 33)
STD = (57.0, 56.0, 58.0)

# The reference implementation


def rectified(signal: Tensor, forward: Tensor, method: str) -> Tensor:
    """Return what comes back through a rectifier whose input was `forward`."""
    if method == "deconv":
        return signal.clamp(min=0)
    on = (forward > 0).to(signal)
    return signal.clamp(min=0) * on if method == "guided" else signal * on


def deconvolved(signal: Tensor, layer: nn.Conv2d, below: Tensor) -> Tensor:
    """Back through a convolution: the same filters, transposed. (1, O, h, w) -> (1, I, H, W)"""
    stride, padding = int(layer.stride[0]), int(layer.padding[0])
    up = F.conv_transpose2d(
        signal, layer.weight, None, stride, padding, groups=layer.groups, dilation=layer.dilation
    )
    unseen = [below.shape[-1] - up.shape[-1], below.shape[-2] - up.shape[-2]]
    return F.pad(up, (0, unseen[0], 0, unseen[1]))  # what no window reached gets nothing


def unpooled(signal: Tensor, pool: nn.MaxPool2d, below: Tensor) -> Tensor:
    """Back to where each maximum was; where windows overlap, what arrives adds up."""
    ceil = pool.ceil_mode
    _, switches = F.max_pool2d(
        below, pool.kernel_size, pool.stride, pool.padding, ceil_mode=ceil, return_indices=True
    )
    result = torch.zeros_like(below).flatten(2)
    for channel in range(signal.shape[1]):
        places = zip(switches[0, channel].flatten(), signal[0, channel].flatten(), strict=True)
        for switch, value in places:
            result[0, channel, switch] += value
    return result.view_as(below)


def told(layers: nn.Sequential, pixels: Tensor, start: Tensor, method: str) -> Tensor:
    """Return the projection of the signal `start` at the output of `layers`, part by part."""
    maps = [pixels / torch.tensor(STD, dtype=pixels.dtype)[:, None, None]]
    for part in layers:
        maps.append(part(maps[-1]).detach())
    signal = start
    for part, below in zip(reversed(layers), reversed(maps[:-1]), strict=True):
        if isinstance(part, nn.Conv2d):
            signal = deconvolved(signal, part, below)
        elif isinstance(part, nn.ReLU):
            signal = rectified(signal, below, method)
        elif isinstance(part, nn.MaxPool2d):
            signal = unpooled(signal, part, below)
        else:
            raise TypeError(f"{part} is not told here")
    return signal / torch.tensor(STD, dtype=pixels.dtype)[:, None, None]


def overlapping() -> nn.Sequential:
    """Pools whose windows share places, and two of whose maxima often fall together."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 1, padding=1),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
    )


def photograph() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, *SIZE, generator=generator) * 255 - 120


def projected(network: Network, pixels: Tensor, start: Tensor, method: str) -> Tensor:
    """Return the projection as the package makes it, over the whole input."""
    pixels = pixels.clone().requires_grad_()
    with rectify(method):
        output, _ = network.values(network.layers[-1], Box.whole(network.size), pixels)
    (gradient,) = torch.autograd.grad((output * start).sum(), pixels)
    return gradient


def prepared(module: nn.Module) -> Network:
    return Network.prepare("small", module, Preprocessing(crop=SIZE, std=STD))


def close(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((one - other).abs().max() <= tolerance * other.abs().max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("unit", [(0, 3, 2), (4, 0, 0), (2, 1, 4)])
def test_a_projection_is_transposed_convolution_unpooling_and_rectification(
    method: str, unit: tuple[int, int, int]
) -> None:
    layers, pixels = overlapping(), photograph()
    network = prepared(layers)
    start = torch.zeros(1, 5, *network.layers[-1].map)
    start[0, unit[0], unit[1], unit[2]] = 1
    expected = told(layers, pixels, start, method)
    assert expected.any()
    assert close(projected(network, pixels, start, method), expected)


def test_the_methods_differ() -> None:
    network, pixels = prepared(overlapping()), photograph()
    start = torch.zeros(1, 5, *network.layers[-1].map)
    start[0, 1, 2, 2] = 1
    one, two, three = (projected(network, pixels, start, method) for method in METHODS)
    assert not close(one, two, 0.1)
    assert not close(one, three, 0.1)
    assert not close(two, three, 0.1)


def test_what_arrives_from_overlapping_windows_adds_up() -> None:
    # One bright pixel in the middle is the maximum of all nine windows that hold it.
    network = prepared(nn.Sequential(nn.MaxPool2d(3, 1), nn.Conv2d(3, 1, (27, 31))))
    with torch.no_grad():
        network.module[1].weight.fill_(1)  # type: ignore[index]
    pixels = torch.zeros(1, 3, *SIZE)
    pixels[:, :, 10, 10] = 100
    found = projected(network, pixels, torch.ones(1, 1, 1, 1), "deconv")
    assert close(found[0, :, 10, 10], 9 / torch.tensor(STD))


def test_the_unit_where_a_projection_starts_has_no_rule_of_its_own() -> None:
    network, pixels = prepared(overlapping()), photograph()
    start = torch.zeros(1, 5, *network.layers[-1].map)
    output, _ = network.values(network.layers[-1], Box.whole(SIZE), pixels)
    lowest = output.flatten().argmin()
    assert output.flatten()[lowest] < 0
    start.view(-1)[lowest] = 1
    assert projected(network, pixels, start, "guided").any()


# The same network in other words


class Reused(nn.Module):
    """One rectifier for all, as in torchvision's ResNet."""

    def __init__(self, layers: nn.Sequential, inplace: bool) -> None:
        super().__init__()
        self.layers = layers
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        for part in self.layers:
            x = self.relu(x) if isinstance(part, nn.ReLU) else part(x)
        return x


class Functional(nn.Module):
    """A rectifier that is not a module."""

    def __init__(self, layers: nn.Sequential, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = layers
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        for part in self.layers:
            x = self.function(x) if isinstance(part, nn.ReLU) else part(x)
        return x


def forgetful(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """In place, and what comes back is ignored."""

    def rectify(x: Tensor) -> Tensor:
        function(x)
        return x

    return rectify


WORDS: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "one module used again and again": lambda layers: Reused(layers, inplace=False),
    "one in-place module used again and again": lambda layers: Reused(layers, inplace=True),
    "F.relu": lambda layers: Functional(layers, F.relu),
    "F.relu by keyword": lambda layers: Functional(layers, lambda x: F.relu(input=x)),
    "F.relu in place": lambda layers: Functional(layers, lambda x: F.relu(x, inplace=True)),
    "F.relu in place, by position": lambda layers: Functional(layers, lambda x: F.relu(x, True)),
    "F.relu_": lambda layers: Functional(layers, F.relu_),
    "torch.relu": lambda layers: Functional(layers, torch.relu),
    "torch.relu_": lambda layers: Functional(layers, torch.relu_),
    "torch.relu_ without its result": lambda layers: Functional(layers, forgetful(torch.relu_)),
    "F.relu in place without its result": lambda layers: Functional(
        layers, forgetful(lambda x: F.relu(x, inplace=True))
    ),
    "F.relu in place by position, without its result": lambda layers: Functional(
        layers, forgetful(lambda x: F.relu(x, True))
    ),
    "Tensor.relu": lambda layers: Functional(layers, Tensor.relu),
    "Tensor.relu_": lambda layers: Functional(layers, Tensor.relu_),
}


def in_place(module: nn.Module) -> None:
    """Bring back the in-place rectifiers that `Network.prepare` turns off."""
    for part in module.modules():
        if isinstance(part, nn.ReLU):
            part.inplace = True


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("words", WORDS)
def test_a_rectifier_is_seen_however_it_is_written(words: str, method: str) -> None:
    pixels = photograph()
    network = prepared(WORDS[words](overlapping()))
    start = torch.zeros(1, 5, *network.layers[-1].map)
    start[0, 3, 1, 3] = 1
    expected = told(overlapping(), pixels, start, method)
    assert close(projected(network, pixels, start, method), expected)
    in_place(network.module)
    assert close(projected(network, pixels, start, method), expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_residual_sends_the_signal_both_ways(method: str) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.branch = nn.Conv2d(4, 4, 3, padding=1)
            self.last = nn.Conv2d(4, 2, 3)
            self.relu = nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.first(x))
            out = self.branch(x)
            out += x
            return self.last(self.relu(out))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net, pixels = Residual(), photograph()
    network = prepared(net)
    start = torch.zeros(1, 2, *network.layers[-1].map)
    start[0, 1, 9, 9] = 1

    x = pixels / torch.tensor(STD)[:, None, None]
    a = net.first(x)
    b = a.clamp(min=0)
    c = net.branch(b) + b
    signal = rectified(deconvolved(start, net.last, c), c, method)
    signal = signal + deconvolved(signal, net.branch, b)
    signal = deconvolved(rectified(signal, a, method), net.first, x)
    expected = signal / torch.tensor(STD)[:, None, None]
    assert close(projected(network, pixels, start, method), expected)


@pytest.mark.parametrize("method", METHODS)
def test_branches_side_by_side_share_the_signal(method: str) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.narrow = nn.Conv2d(4, 2, 1)
            self.wide = nn.Conv2d(4, 3, 3, padding=1)
            self.last = nn.Conv2d(5, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x), inplace=True)
            parts = [F.relu(self.narrow(x), inplace=True), F.relu(self.wide(x), inplace=True)]
            return self.last(torch.cat(parts, 1))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    net, pixels = Branches(), photograph()
    network = prepared(net)
    start = torch.zeros(1, 2, *network.layers[-1].map)
    start[0, 0, 5, 20] = 1

    x = pixels / torch.tensor(STD)[:, None, None]
    a = net.first(x)
    b = a.clamp(min=0)
    narrow, wide = net.narrow(b), net.wide(b)
    joined = torch.cat([narrow, wide], 1)
    signal = rectified(deconvolved(start, net.last, joined), joined, method)
    signal = deconvolved(signal[:, :2], net.narrow, b) + deconvolved(signal[:, 2:], net.wide, b)
    signal = deconvolved(rectified(signal, a, method), net.first, x)
    expected = signal / torch.tensor(STD)[:, None, None]
    assert close(projected(network, pixels, start, method), expected)


@pytest.mark.parametrize("method", METHODS)
def test_normalisation_goes_back_by_its_derivative(method: str) -> None:
    size, alpha, beta, k = 3, 0.9, 0.75, 1.5
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.LocalResponseNorm(size, alpha, beta, k),
        nn.Conv2d(6, 2, 3),
    )
    network, pixels = prepared(layers), photograph()
    start = torch.zeros(1, 2, *network.layers[-1].map)
    start[0, 1, 7, 7] = 1

    x = pixels / torch.tensor(STD)[:, None, None]
    a = layers[0](x)
    b = a.clamp(min=0)
    neighbours = [range(max(c - 1, 0), min(c + 2, 6)) for c in range(6)]
    energy = [k + alpha / size * sum(b[0, n] ** 2 for n in neighbours[c]) for c in range(6)]
    above = deconvolved(start, layers[3], b)[0]  # type: ignore[arg-type]
    signal = torch.zeros_like(b)
    for c in range(6):
        signal[0, c] = above[c] * energy[c] ** -beta
        for n in neighbours[c]:
            slope = -beta * energy[n] ** (-beta - 1) * 2 * alpha / size * b[0, c]
            signal[0, c] += above[n] * b[0, n] * slope
    signal = deconvolved(rectified(signal, a, method), layers[0], x)  # type: ignore[arg-type]
    expected = signal / torch.tensor(STD)[:, None, None]
    assert close(projected(network, pixels, start, method), expected)


@pytest.mark.parametrize("method", METHODS)
def test_a_projection_through_a_window_is_that_of_the_whole_input(
    method: str, dress: Callable[..., Network]
) -> None:
    network = dress("squeezenet1_0", (200, 224))
    layer = network.layer("conv7")
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 200, 224, dtype=torch.float64, generator=generator) * 255 - 120
    row, column = 0, 20
    found = []
    for window in (Box.whole(network.size), network.window(layer, layer.field.box(row, column))):
        rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
        pixels = image[:, :, rows, columns].clone().requires_grad_()
        with rectify(method):
            output, origin = network.values(layer, window, pixels)
        value = output[0, 5, row - origin[0], column - origin[1]]
        frame = torch.zeros_like(image)
        (frame[:, :, rows, columns],) = torch.autograd.grad(value, pixels)
        found.append(frame)
    assert found[0].any()
    assert close(found[1], found[0], 1e-12)


# Going forward


@pytest.mark.parametrize("method", ["deconv", "guided"])
@pytest.mark.parametrize("model", ["squeezenet1_1", "resnet18", "googlenet"])
def test_values_going_forward_are_the_same_to_the_bit(model: str, method: str) -> None:
    torch.manual_seed(0)
    module = blueprint(model).build().eval().requires_grad_(False)
    x = torch.randn(2, 3, 70, 70)
    plain = module(x)
    with rectify(method):
        again = module(x)
    assert torch.equal(plain.view(torch.int32), again.view(torch.int32))


@pytest.mark.parametrize("method", ["deconv", "guided"])
def test_strange_numbers_are_rectified_as_torch_does(method: str) -> None:
    infinity, least = float("inf"), 1e-45
    strange = [0.0, -0.0, float("nan"), infinity, -infinity, least, -least, 1.0, -1.0]
    x = torch.tensor(strange * 9)  # long enough for torch's vector code
    with rectify(method):
        rectified = F.relu(x)
    assert torch.equal(rectified.view(torch.int32), F.relu(x).view(torch.int32))


@pytest.mark.parametrize(("model", "calls"), [("alexnet", 7), ("resnet18", 17), ("googlenet", 57)])
def test_every_rectifier_of_a_known_network_is_seen(
    model: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    forward = Deconv.forward

    def count(ctx: object, x: Tensor, out: Tensor, clamp: Clamp) -> Tensor:
        seen.append(x)
        return forward(ctx, x, out, clamp)

    monkeypatch.setattr(Deconv, "forward", staticmethod(count))
    with torch.device("meta"):
        module = blueprint(model).build().eval()
        x = torch.empty(1, 3, 224, 224)
    with rectify("deconv"):
        module(x)
    assert len(seen) == calls


# What has no rule


@pytest.mark.parametrize("method", ["deconv", "guided"])
@pytest.mark.parametrize(
    ("part", "name"),
    [
        (nn.Hardtanh(), "hardtanh"),
        (Functional(nn.Sequential(nn.ReLU()), lambda x: x.clamp(-1, 6)), "clamp"),
        (nn.Softmax(1), "softmax"),
        (nn.LeakyReLU(0.1), "leaky_relu"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.GELU(), "gelu"),
        (nn.SiLU(), "silu"),
    ],
)
def test_another_activation_function_is_refused_by_name(
    part: nn.Module, name: str, method: str
) -> None:
    network = prepared(nn.Sequential(nn.Conv2d(3, 4, 3), part, nn.Conv2d(4, 2, 3)))
    start = torch.ones(1, 2, *network.layers[-1].map)
    refusal = f"cannot project back through .*{name}.*--method gradient"
    with pytest.raises(CnnvisError, match=refusal):
        projected(network, photograph(), start, method)
    assert projected(network, photograph(), start, "gradient").any()


@pytest.mark.parametrize(
    ("function", "edges", "slope"),
    [
        (F.relu6, (0, 6), 1),
        (nn.ReLU6(inplace=True), (0, 6), 1),
        (lambda x: x.clamp(min=0), (0, 1e9), 1),
        (lambda x: torch.clamp(x, 0, 2), (0, 2), 1),
        (lambda x: x.clamp_min(0), (0, 1e9), 1),
        (F.hardsigmoid, (-3, 3), 1 / 6),
        (lambda x: F.hardtanh(x, 0.0, 1.0), (0, 1), 1),
        (F.hardswish, (0, 1e9), 1),
    ],
)
def test_a_rectifier_that_saturates_has_the_rectifiers_rule(
    function: Callable[[Tensor], Tensor], edges: tuple[float, float], slope: float
) -> None:
    values = [-4.0, -2.0, -0.5, 0.0, 0.5, 1.5, 2.5, 4.0, 7.0]
    above = torch.tensor([1.0, -1.0] * 9)
    x = torch.tensor([v for v in values for _ in (0, 1)], requires_grad=True)
    low, high = edges
    inside = ((x > low) & (x < high)).float()
    for method, on in (("deconv", 1), ("guided", inside)):
        with rectify(method):
            out = function(x * 1)
        assert torch.equal(out, function(x.detach().clone()))
        (found,) = torch.autograd.grad(out, x, above)
        assert torch.allclose(found, slope * on * above.clamp(min=0))


def test_a_layer_before_such_a_function_can_be_projected() -> None:
    network = prepared(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.SiLU()))
    assert projected(network, photograph(), torch.ones(1, 2, 25, 29), "deconv").any()


def test_an_unknown_method_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=re.escape("'deconvnet'; did you mean 'deconv'?")):
        rectify("deconvnet")
    assert list(RULES) == ["gradient", "deconv", "guided"]


def test_outside_the_block_the_gradient_is_the_plain_one_again() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0, 2.0], requires_grad=True)
    above = torch.tensor([3.0, 3.0, 3.0, -3.0])
    inside = {"deconv": [3.0, 3.0, 3.0, 0.0], "guided": [0.0, 0.0, 3.0, 0.0]}
    for method, expected in inside.items():
        with rectify(method):
            (found,) = torch.autograd.grad(F.relu(x), x, above)
        assert found.tolist() == expected
        (found,) = torch.autograd.grad(F.relu(x), x, above)
        assert found.tolist() == [0.0, 0.0, 3.0, -3.0]


class Own(torch.autograd.Function):
    """A rectifier with a way back of its own."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Unlisted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        entropy: Tensor = torch.special.entr(x)
        return entropy


class Hidden(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rectified: Tensor = Own.apply(x)
        return rectified


@pytest.mark.parametrize("part", ["own", "scripted", "traced", "unlisted"])
@pytest.mark.parametrize("method", ["deconv", "guided"])
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_what_may_hide_a_rectifier_is_refused(part: str, method: str) -> None:
    parts: dict[str, Callable[[], Any]] = {
        "own": Hidden,
        "scripted": lambda: torch.jit.script(nn.ReLU()),
        "traced": lambda: torch.jit.trace(nn.ReLU(), torch.zeros(1, 4, 9, 9)),  # type: ignore[no-untyped-call]
        "unlisted": Unlisted,
    }
    network = prepared(nn.Sequential(nn.Conv2d(3, 4, 3), parts[part](), nn.Conv2d(4, 2, 3)))
    names = {"own": "OwnBackward", "unlisted": "torch.special.entr"}
    named = names.get(part, "code that cnnvis cannot look into")
    with pytest.raises(UsageError, match=f"{method} cannot project conv2: .*{named}.*gradient"):
        check_rules(network, network.layers, method)
    check_rules(network, network.layers[:1], method)
    check_rules(network, network.layers, "gradient")
