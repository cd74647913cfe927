"""Rectifiers right after a layer: found where it is certain, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from cnnvis_cli.network.fusion import left_out, rectifiers
from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Preprocessing


def network_of(module: nn.Module, size: int = 64) -> Network:
    return Network.prepare("net", module, Preprocessing(size, (size, size)))


def found_in(module: nn.Module, size: int = 64) -> set[str]:
    network = network_of(module, size)
    with network.in_place(), network.rectified_by_reader(network.layers) as found:
        return set(found)


@pytest.mark.parametrize(
    ("builder", "size", "wanted"),
    [
        (torchvision.models.squeezenet1_0, 64, {f"conv{i}" for i in range(1, 27)}),
        (torchvision.models.alexnet, 64, {*(f"conv{i}" for i in range(1, 6)), "fc6", "fc7"}),
        (torchvision.models.resnet18, 64, set()),  # normalised before they are rectified
    ],
    ids=["squeezenet", "alexnet", "resnet18"],
)
def test_of_torchvision(builder: Callable[..., nn.Module], size: int, wanted: set[str]) -> None:
    assert found_in(builder(weights=None), size) == wanted


class Net(nn.Module):
    """A convolution whose output goes on in some way."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.conv, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return self.rectified(self.conv(x))

    def rectified(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(x)
        return y


class LookedAtBefore(Net):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y.mean() + self.rectified(y)


class Shared(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.rectified(self.second(self.rectified(self.conv(x))))


class Functional(Net):
    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x), inplace=True)


class View(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.rectified(self.conv(x).flatten(1))


@pytest.mark.parametrize(
    ("module", "wanted"),
    [
        (Net(), {"conv1"}),
        (Net(inplace=False), set()),
        (LookedAtBefore(), set()),
        (Shared(), set()),
        (Functional(), set()),
        (View(), set()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_only_the_very_next_step_counts(module: nn.Module, wanted: set[str]) -> None:
    assert found_in(module) == wanted


def test_another_kind_of_rectifier_is_none() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(inplace=True), nn.Conv2d(4, 4, 1))
    assert found_in(module) == set()


def test_a_block_of_it_changes_no_output_and_leaves_nothing_behind() -> None:
    module = torchvision.models.squeezenet1_0(weights=None)
    network = network_of(module)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = module(pixels)
        kept: list[Tensor] = []

        def see(_layer: object, output: Tensor) -> None:
            kept.append(output.clone())
            output.relu_()

        with network.in_place(), network.rectified_by_reader(network.layers):
            with network.tap(network.layers, see) as run:
                run(pixels)
            handed_on = module.features[1]
            assert handed_on(torch.tensor([-1.0])).item() == -1
        assert torch.equal(module(pixels), wanted)
        assert handed_on(torch.tensor([-1.0])).item() == 0
        plain: list[Tensor] = []
        with network.tap(network.layers, lambda _, output: plain.append(output)) as run:
            run(pixels)
    assert all(torch.equal(a, b) for a, b in zip(kept, plain, strict=True))
    assert not any(getattr(child, "inplace", False) for child in module.modules())


def test_modules_are_put_back_after_an_error() -> None:
    relu = nn.ReLU()
    with pytest.raises(ValueError, match="odd"), left_out([relu]):
        raise ValueError("odd")
    assert relu(torch.tensor([-1.0])).item() == 0


def test_rectifiers_wants_them_in_place() -> None:
    network = network_of(Net())
    blank = torch.zeros(1, 3, 64, 64)
    assert rectifiers(network.module, network.layers, blank) == {}
    with network.in_place():
        assert set(rectifiers(network.module, network.layers, blank)) == {"conv1"}
