"""A traced pass gives the numbers of the pass that it was traced from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cnnvis_cli.network.network import Network
from cnnvis_cli.network.trace import gradient_by_phases, phases, trace
from cnnvis_cli.network.weights import load
from cnnvis_cli.network.zoo import blueprint
from cnnvis_cli.nouns import Box, Preprocessing, Size

Forward = Callable[[Tensor], Tensor]
Pass = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
EITHER = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def noise(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
    return drawn.contiguous(memory_format=torch.channels_last) if drawn.dim() == 4 else drawn


def near(one: Tensor, other: Tensor) -> bool:
    """Equal to the last bits of the largest number."""
    bound = 1e-12 if one.dtype == torch.float64 else 1e-5
    return one.dtype == other.dtype and bool((one - other).abs().max() <= bound * other.abs().max())


def looking(forward: Forward) -> Pass:
    """Forward, then backward from a direction: (pixels, direction) -> output, gradient."""

    def run(pixels: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        inputs = pixels.detach().requires_grad_()
        output = forward(inputs)
        (gradient,) = torch.autograd.grad(output, inputs, direction)
        return output.detach(), gradient

    return run


def check(forward: Forward, pixels: Tensor) -> Pass:
    """Check that the traced pass equals the untraced one, for these pixels and for others.

    It leaves its arguments as they were, and gives the same bits again. Returns it.
    """
    plain = looking(forward)
    direction = noise(*forward(pixels).shape, dtype=pixels.dtype, seed=1)
    traced = trace(plain, pixels, direction)
    for shown in (pixels, pixels.flip(0, 2) * 1.5 - 0.1):
        arguments = shown.clone(), direction.clone()
        output, gradient = traced(*arguments)
        expected, expected_gradient = plain(shown, direction)
        assert torch.equal(output, expected)
        assert near(gradient, expected_gradient)
        assert torch.equal(arguments[0], shown)
        assert torch.equal(arguments[1], direction)
        kept = output.clone(), gradient.clone()
        again = traced(*arguments)
        for first, held, second in zip((output, gradient), kept, again, strict=True):
            assert torch.equal(first, held)
            assert torch.equal(second, held)
    return traced


def small(*parts: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*parts).to(dtype).eval().requires_grad_(False)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The names of torch's operations that run in this block."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ran: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ran[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def recorded(run: Pass, pixels: Tensor, direction: Tensor) -> Counter[str]:
    recorder = Recorder()
    with recorder:
        run(pixels, direction)
    return recorder.ran


# The demo network, through `Network.values`


@EITHER
@pytest.mark.parametrize("name", ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc8"])
def test_a_layer_of_the_demo_network(name: str, dtype: torch.dtype) -> None:
    module, _ = load(blueprint("demo"), None)
    preprocessing = Preprocessing(crop=(112, 112), std=(57.0, 56.0, 58.0))
    network = Network.prepare("demo", module.to(dtype), preprocessing).to(torch.device("cpu"))
    layer = network.layer(name)
    canvas, whole = network.canvas(layer), Box.whole(network.size)
    assert (canvas == whole) == name.startswith("fc")
    for box in {canvas, whole}:

        def forward(pixels: Tensor, box: Box = box) -> Tensor:
            return network.values(layer, box, pixels)[0]

        check(forward, noise(2, 3, *box.size, dtype=dtype) * 60)


# A network of everything that could go wrong


class Trap(nn.Module):
    """Rectifiers of every kind, and values that are used again after one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 5, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=False)  # used three times
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)  # overlapping
        self.norm = nn.LocalResponseNorm(3, alpha=0.5)
        self.near, self.far = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)
        self.batch = nn.BatchNorm2d(8)
        self.mix = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.mean = nn.AvgPool2d(2, 1)
        self.drop = nn.Dropout(0.5)
        self.one, self.two = nn.Linear(8 * 4 * 5, 16), nn.Linear(16, 7)
        nn.init.uniform_(self.batch.weight, 0.5, 1.5)
        nn.init.uniform_(self.batch.bias, -0.5, 0.5)
        self.batch.running_mean = torch.linspace(-1, 1, 8)
        self.batch.running_var = torch.linspace(0.5, 2, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.pool(self.relu(self.first(x))))
        x = self.batch(torch.cat([self.near(x).relu(), F.relu(self.far(x))], 1))
        x = self.relu(self.mix(x) + x)  # a residual
        x = self.mean(self.pool(x))
        x = self.drop(torch.flatten(x, 1))
        found: Tensor = self.two(self.drop(self.relu(self.one(x))))
        return found


@EITHER
def test_a_network_of_every_trap(dtype: torch.dtype) -> None:
    check(small(Trap(), dtype=dtype), noise(3, 3, 45, 51, dtype=dtype))


@EITHER
@pytest.mark.parametrize("inplace", [False, True])
def test_pools_that_overlap_and_round_up_behind_a_rectifier(
    inplace: bool, dtype: torch.dtype
) -> None:
    module = small(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.ReLU(inplace=inplace),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.ReLU(inplace=inplace),  # of what is rectified already
        nn.Conv2d(6, 6, 3),
        nn.MaxPool2d(3, 1),
        nn.ReLU(inplace=inplace),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        dtype=dtype,
    )
    check(module, noise(2, 3, 30, 33, dtype=dtype))


# Rewriting in place, where a value is used again

CONV = small(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Conv2d(6, 6, 3, padding=1))
FIRST, SECOND = CONV[0], CONV[1]  # type: ignore[index]

AGAIN: dict[str, Forward] = {
    "beside its rectified form": lambda x: FIRST(x) * 2 + FIRST(x).relu(),
    "added to its rectified form": lambda x: (y := FIRST(x)).relu() + y,
    "rectified, then added": lambda x: (y := FIRST(x)) + F.relu(y),
    "rectified twice": lambda x: torch.cat([(y := FIRST(x)).relu() * 2, y.relu()], 1),
    "rectified twice over": lambda x: SECOND(FIRST(x).relu().relu()),
    "multiplied by its rectified form": lambda x: (y := SECOND(FIRST(x))) * y.relu(),
    "rectified with the other sign": lambda x: (y := FIRST(x)).relu() - (-y).relu(),
    "seen through a view": lambda x: (y := FIRST(x)).flatten(2) + y.relu().flatten(2),
    "a view rectified": lambda x: (y := FIRST(x)).flatten(2).relu() + y.flatten(2),
    "a part of it rectified": lambda x: (y := FIRST(x))[:, :3].relu() + y[:, :3],
    "an empty padding rectified": lambda x: F.pad((y := FIRST(x)), (0, 0, 0, 0)).relu() + y,
    "rectified before an empty padding": lambda x: F.pad((y := FIRST(x)).relu(), (0,) * 4) + y,
    "pooled beside its rectified form": lambda x: (
        F.max_pool2d(y := FIRST(x), 3, 1, 1) + F.max_pool2d(y.relu(), 3, 1, 1)
    ),
    "a rectified residual": lambda x: SECOND(y := FIRST(x).relu()).relu() + y,
    "rectified in place": lambda x: F.relu_(SECOND(F.relu_(FIRST(x)))),
    "a copy rectified in place": lambda x: F.relu_((y := FIRST(x)).clone()) * y,
    "two ways back to one map": lambda x: (
        (y := FIRST(x).relu()).amax((2, 3)) + SECOND(y)[..., 0, 0]
    ),
    "the pixels rectified": lambda x: FIRST(x.relu()) + FIRST(x),
    "scaled in place by the way": lambda x: ((y := FIRST(x)).mul_(2), y.relu())[1],
    "added to in place": lambda x: SECOND(FIRST(x).add_(FIRST(x).relu()).relu()),
    "a part of it scaled in place": lambda x: ((y := FIRST(x))[:, :2].mul_(2), y.relu() + y)[1],
}


@pytest.mark.parametrize("name", AGAIN)
def test_a_value_that_is_used_again_is_not_overwritten(name: str) -> None:
    check(AGAIN[name], noise(2, 3, 17, 20))


EMPTY: dict[str, Forward] = {
    "of a map": lambda x: F.relu_(F.pad((y := FIRST(x)), (0, 0, 0, 0))) + y,
    "of a map, a part of it": lambda x: (
        (y := FIRST(x)) + ((z := F.pad(y, (0, 0, 0, 0)))[:, :2].mul_(2), z)[1]
    ),
    "of the pixels": lambda x: FIRST(F.pad(x, (0, 0, 0, 0)).mul_(2)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_network_may_change_an_empty_padding_in_place(name: str) -> None:
    check(EMPTY[name], noise(2, 3, 17, 20))


def test_a_layers_own_output_is_returned_as_it_is_before_its_rectifier() -> None:
    """The map, the map rectified, and the gradients of both."""

    def run(pixels: Tensor) -> tuple[Tensor, ...]:
        inputs = pixels.detach().requires_grad_()
        output = FIRST(inputs)
        after = SECOND(F.relu(output))
        gradients = [
            torch.autograd.grad(value.sum(), inputs, retain_graph=True)[0]
            for value in (output, after, F.relu(after))
        ]
        return output, after, *gradients

    pixels = noise(2, 3, 17, 20)
    expected, found = run(pixels), trace(run, pixels)(pixels)
    assert (expected[0] < 0).any()
    assert (expected[1] < 0).any()
    for one, other in zip(found[:2], expected[:2], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(found[2:], expected[2:], strict=True):
        assert near(one, other)


def test_a_gradient_that_is_returned_is_not_overwritten_by_the_next() -> None:
    def run(pixels: Tensor) -> tuple[Tensor, ...]:
        inputs = pixels.detach().requires_grad_()
        middle = FIRST(inputs)
        lit = F.relu(middle)
        return torch.autograd.grad(SECOND(lit).square().sum(), (lit, middle, inputs))

    pixels = noise(2, 3, 17, 20)
    for one, other in zip(trace(run, pixels)(pixels), run(pixels), strict=True):
        assert near(one, other)


def test_a_pass_is_only_its_own_arithmetic() -> None:
    """Rectifiers work in place both ways, and nothing is copied to be padded by nothing."""
    module = small(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.ZeroPad2d(0), nn.Conv2d(6, 6, 3), nn.ReLU()
    )
    pixels = noise(2, 3, 17, 20)
    direction = torch.ones_like(module(pixels))
    ran = recorded(check(module, pixels), pixels, direction)
    assert ran["relu_"] == 2
    assert not {"relu", "constant_pad_nd", "alias", "detach", "clone"} & set(ran)
    assert {"relu", "constant_pad_nd"} <= set(recorded(looking(module), pixels, direction))


# The input gradient of a strided convolution, by phases

GEOMETRIES = [
    pytest.param(kernel, stride, padding, size, id=f"{kernel} by {stride} pad {padding} of {size}")
    for kernel, stride, padding, size in [
        ((11, 11), 4, (2, 2), (51, 51)),  # AlexNet conv1
        ((11, 11), 4, (0, 0), (227, 30)),  # CaffeNet conv1
        ((7, 7), 2, (3, 3), (40, 41)),  # GoogLeNet, ResNet
        ((7, 7), 2, (1, 1), (31, 32)),
        ((3, 3), 2, (0, 0), (3, 3)),  # one place
        ((3, 3), 2, (0, 0), (14, 15)),  # a last row that no window reaches
        ((3, 3), 2, (1, 1), (14, 15)),
        ((5, 5), 4, (0, 0), (16, 19)),  # trailing pixels
        ((5, 5), 7, (2, 2), (23, 30)),  # pixels between windows
        ((2, 2), 5, (0, 0), (14, 21)),
        ((1, 1), 2, (0, 0), (9, 10)),
        ((1, 1), 3, (1, 1), (9, 10)),  # windows that see nothing but padding
        ((3, 5), 2, (0, 2), (13, 18)),
        ((2, 7), 3, (1, 0), (13, 18)),
        ((4, 4), 4, (0, 0), (16, 20)),  # patches side by side
        ((4, 4), 4, (4, 4), (17, 21)),  # more padding than a window hides
        ((3, 3), 3, (5, 5), (4, 4)),
        ((6, 6), 4, (5, 1), (11, 30)),
    ]
]


@EITHER
@pytest.mark.parametrize("channels", [(1, 1), (3, 8), (4, 5)])
@pytest.mark.parametrize(("kernel", "stride", "padding", "size"), GEOMETRIES)
def test_the_phases_of_a_convolution_give_its_input_gradient(
    kernel: Size,
    stride: int,
    padding: Size,
    size: Size,
    channels: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    inputs, outputs = channels
    pixels = noise(2, inputs, *size, dtype=dtype).requires_grad_()
    weight = noise(outputs, inputs, *kernel, dtype=dtype, seed=1)
    output = F.conv2d(pixels, weight, stride=stride, padding=padding)
    gradient = noise(*output.shape, dtype=dtype, seed=2)
    (expected,) = torch.autograd.grad(output, pixels, gradient)

    kernels = phases(weight, stride)
    rows, columns = (-(-length // stride) for length in kernel)
    assert kernels.shape == (inputs * stride**2, outputs, rows, columns)
    found = gradient_by_phases(gradient, kernels, stride, size, padding)
    assert found.shape == pixels.shape
    assert near(found, expected)


Sight = Callable[[Tensor, Tensor], Tensor]

LEFT_ALONE: dict[str, tuple[Size, Sight]] = {  # shape of the weights but for the kernel
    "stride 1": ((5, 4), lambda x, w: F.conv2d(x, w, padding=1)),
    "groups": ((6, 2), lambda x, w: F.conv2d(x, w, stride=2, groups=2)),
    "dilation": ((5, 4), lambda x, w: F.conv2d(x, w, stride=2, padding=2, dilation=2)),
    "a wide stride": ((5, 4), lambda x, w: F.conv2d(x, w, stride=(1, 2))),
    "a high stride": ((5, 4), lambda x, w: F.conv2d(x, w, stride=(3, 2), padding=(1, 0))),
    "a transposed convolution": ((4, 5), lambda x, w: F.conv_transpose2d(x, w, stride=2)),
    "many channels": ((5, 8), lambda x, w: F.conv2d(torch.cat([x, x], 1), w, stride=2)),
    "weights of the pixels": ((5, 4), lambda x, w: F.conv2d(x, w * x[:1, :, :3, :3], stride=2)),
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_a_convolution_that_has_no_phases_keeps_its_gradient(name: str) -> None:
    channels, forward = LEFT_ALONE[name]
    weight = noise(*channels, 3, 3, seed=2)
    pixels = noise(2, 4, 13, 16)
    direction = torch.ones_like(forward(pixels, weight))
    traced = check(lambda pixels: forward(pixels, weight), pixels)
    assert recorded(traced, pixels, direction)["convolution_backward"]


@pytest.mark.parametrize(("kernel", "stride", "padding", "size"), GEOMETRIES)
def test_a_traced_strided_convolution(kernel: Size, stride: int, padding: Size, size: Size) -> None:
    module = small(nn.Conv2d(3, 5, kernel, stride, padding), nn.ReLU(), nn.Conv2d(5, 4, 1))
    pixels = noise(2, 3, *size)
    ran = recorded(check(module, pixels), pixels, torch.ones_like(module(pixels)))
    assert ran["convolution_backward"] == 1  # that of the last convolution


def test_one_weight_with_two_strides() -> None:
    weight = noise(5, 3, 5, 5)
    check(
        lambda x: F.conv2d(x, weight, stride=2)[..., :3, :3] + F.conv2d(x, weight, stride=4),
        noise(2, 3, 13, 13),
    )


def test_a_weight_that_is_used_twice_with_one_stride() -> None:
    weight = noise(3, 3, 3, 3)
    check(
        lambda x: F.conv2d(F.conv2d(x, weight, stride=2).relu(), weight, stride=2, padding=1),
        noise(2, 3, 17, 20),
    )


def test_two_strided_convolutions_of_the_pixels() -> None:
    near_, far = small(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 7, 2, 3)).children()
    check(lambda x: torch.cat([near_(x).relu(), far(x).relu()], 1), noise(2, 3, 20, 23))
