"""What feeds a unit: against numbers computed by hand, through all that stands between layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's own abbreviation

from cnnvis_cli.network.circuits import extremes, fed_by_weight, fed_in_images, feeds
from cnnvis_cli.network.network import Network
from cnnvis_cli.network.tracing import TracedPlaces, Tracer, Traces
from cnnvis_cli.network.wiring import Wiring, wirings
from cnnvis_cli.nouns import Preprocessing

SIZE = (12, 12)


def place(unit: int, row: int, column: int, image: int) -> TracedPlaces:
    """Return one unit's strongest place, in the first row of the results."""
    zero = np.zeros(1, np.int64)
    return TracedPlaces(zero, zero + unit, zero, np.array([[row, column]]), zero + image)


def prepared(module: nn.Module) -> Network:
    return Network.prepare("small", module, Preprocessing(12, SIZE, (0, 0, 0), (58, 58, 58)))


class Between(nn.Module):
    """Two branches, normalised and rectified, joined, pooled, and read by grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 2, 1)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Conv2d(6, 4, 3, groups=2, bias=False)
        self.head = nn.Linear(4 * 3 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        joined = F.relu6(self.norm(torch.cat((self.two(x), self.one(x)), dim=1)))
        maps = self.last(F.max_pool2d(joined, 2))
        found: Tensor = self.head(F.adaptive_avg_pool2d(F.relu(maps), 3).flatten(1))
        return found


class Adding(nn.Module):
    """A residual connection, a gate, and a normalisation across channels before the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.gate, self.next = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
        self.after = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.body(F.relu(x)))
        x = x * torch.sigmoid(self.gate(x.mean(dim=(2, 3), keepdim=True)))
        found: Tensor = self.after(F.local_response_norm(F.relu(self.next(x)), 3, alpha=1.0))
        return found


@pytest.fixture
def between() -> tuple[Network, dict[str, Wiring]]:
    torch.manual_seed(0)
    module = Between()
    assert module.norm.running_var is not None
    assert module.norm.running_mean is not None
    with torch.no_grad():
        module.norm.running_var.uniform_(0.5, 2)
        module.norm.running_mean.normal_()
        module.norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 1.0, 3.0, -1.0]))
        module.norm.bias.normal_()
    network = prepared(module)
    return network, wirings(network)


def test_each_input_is_fed_by_the_unit_whose_channel_it_is(
    between: tuple[Network, dict[str, Wiring]],
) -> None:
    network, wired = between
    assert [layer.module for layer in network.layers] == ["two", "one", "last", "head"]
    assert set(wired) == {"conv3", "fc4"}
    last = wired["conv3"]
    assert last.source.tolist() == [0, 0, 1, 1, 1, 1]
    assert last.unit.tolist() == [0, 1, 0, 1, 2, 3]
    norm: Any = network.module.norm
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    assert last.scale == pytest.approx(scale.numpy(), rel=1e-4)
    head = wired["fc4"]
    assert (head.source.tolist(), head.unit.tolist()) == ([2] * 4, [0, 1, 2, 3])
    assert head.weight.shape == (5, 4, 1, 9)


def test_expanded_weights_are_those_computed_by_hand(
    between: tuple[Network, dict[str, Wiring]],
) -> None:
    network, wired = between
    whole: Any = network.module
    norm, weight = whole.norm, whole.last.weight
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    by_hand = (weight[3] * scale[3:, None, None]).numpy()  # unit 3 sees the second group
    share = by_hand.sum(axis=(1, 2)) / np.abs(by_hand).sum()
    found = fed_by_weight(wired["conv3"], 3)
    order = [place for place in np.argsort(-share) if share[place] > 0]
    order += [place for place in np.argsort(share) if share[place] < 0]
    assert [(each.layer, each.unit) for each in found] == [(1, 1 + place) for place in order]
    assert [each.value for each in found] == pytest.approx(share[order].tolist(), rel=1e-4)
    after = feeds({2: wired["conv3"]})
    values = {each.unit: each.value for each in after[1, 1]}
    assert values[3] == pytest.approx(float(share[0]), rel=1e-4)
    assert set(values) == {2, 3}, "only the units of its group"


@pytest.mark.parametrize(("alias", "unit", "row", "column"), [("conv3", 1, 2, 3), ("fc4", 2, 0, 0)])
def test_parts_are_those_computed_by_hand_and_sum_to_the_value(
    between: tuple[Network, dict[str, Wiring]], alias: str, unit: int, row: int, column: int
) -> None:
    network, wired = between
    pixels = torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8)
    kept: dict[str, Tensor] = {}
    layer = network.layer(alias)
    module: Any = network.module.get_submodule(layer.module)
    module.register_forward_hook(lambda _, given, out: kept.update(given=given[0], out=out))
    numbers = np.array([7, 9])
    asked = place(unit, row, column, 9)
    width = wired[alias].weight.shape[1]
    result = Traces(np.zeros((1, width), np.float32), np.zeros(1, np.int64))
    Tracer(network, wired, {alias: asked}, {alias: result}).run(pixels, numbers)
    weight = module.weight[unit]
    if alias == "fc4":
        by_hand = (kept["given"][1] * weight).reshape(4, 9).sum(dim=1)
        value = kept["out"][1, unit]
    else:  # unit 1 sees the first three channels
        window = kept["given"][1, :3, row : row + 3, column : column + 3]
        by_hand, value = (window * weight).sum(dim=(1, 2)), kept["out"][1, unit, row, column]
        assert result.maps or value < 0
    assert result.parts[0] == pytest.approx(by_hand.numpy(), rel=1e-4, abs=1e-3)
    bias = 0 if module.bias is None else float(module.bias[unit])
    assert result.parts[0].sum() + bias == pytest.approx(float(value), rel=1e-4)
    assert (result.count.tolist(), result.wrong) == ([1], 0)
    strongest = fed_in_images(wired[alias], unit, result.parts[0])[0]
    if strongest.value > 0:
        assert strongest.value == pytest.approx(float(by_hand.max()), rel=1e-4)


def test_sums_gates_and_mixed_channels() -> None:
    torch.manual_seed(0)
    network = prepared(Adding())
    wired = wirings(network)
    assert [layer.module for layer in network.layers] == ["stem", "body", "gate", "next", "after"]
    assert wired["conv4"].source.tolist() == [1] * 4, "the last writer, and not the gate"
    assert wired["conv4"].others == ("conv3", "conv1")
    assert "conv5" not in wired, "channels are mixed before it"
    assert wired["conv2"].source.tolist() == [0] * 4


def test_a_map_shows_where_a_unit_answers() -> None:
    first = nn.Conv2d(3, 1, 1, bias=False)
    nn.init.ones_(first.weight)
    module = nn.Sequential(first, nn.Flatten(), nn.Linear(144, 2))
    network = prepared(module)
    pixels = torch.zeros(1, *SIZE, 3, dtype=torch.uint8)
    pixels[0, 3, 8], pixels[0, 9, 1] = 100, 50
    asked = place(0, 3, 8, 4)
    result = Traces(np.zeros((1, 0), np.float32), np.zeros(1, np.int64))
    Tracer(network, {}, {"conv1": asked}, {"conv1": result}).run(pixels, np.array([4]))
    found = result.maps[0, 0]
    assert (found.shape, found[3, 8], found[9, 1]) == ((12, 12), 15, 8)
    assert found.sum() == 23


@pytest.mark.parametrize("few", [1, 2, 9])
def test_extremes_are_the_largest_then_the_lowest(few: int) -> None:
    values = np.array([0.0, 3, -1, 2, -5, 0], np.float32)
    assert extremes(values, few).tolist() == [1, 3][:few] + [4, 2][:few]


def test_units_behind_closed_rectifiers_are_unknown() -> None:
    """A unit whose rectifier no value of it opens is told as unknown, not as another one."""
    norm = nn.BatchNorm2d(3)
    module = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.ReLU(), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 0.0, 1.0]))
        norm.bias.copy_(torch.tensor([0.0, -1.0, 0.0]))
    assert wirings(prepared(module))["conv2"].source.tolist() == [0, -1, 0]
