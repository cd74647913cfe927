"""A network with every trap of a deconvnet, against a hand-written reference without autograd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from cnnvis_cli.network.network import Network
from cnnvis_cli.nouns import Preprocessing
from cnnvis_cli.report import Report
from cnnvis_cli.settings import Plan, ProjectPlan
from cnnvis_cli.stages.common.session import Session
from cnnvis_cli.stages.project.batching import StoredPlaces
from cnnvis_cli.stages.project.job import Projections
from cnnvis_cli.store.run import Run
from cnnvis_cli.store.topk import TopK
from cnnvis_cli.store.topk_file import LayerTopK, boxes

SIZE, STD = (47, 53), (57.0, 56.0, 58.0)
MEAN = (120.0, 110.0, 100.0)
LAYERS = ("first", "second", "side", "last")


class Traps(nn.Module):
    """A module used twice, functions in place, overlapping and rounding pools, branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 5, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2)
        self.norm = nn.LocalResponseNorm(3, alpha=0.9, beta=0.75, k=1.5)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.side = nn.Conv2d(6, 4, 1)
        self.up = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.last = nn.Conv2d(10, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(self.pool(self.relu(self.first(x))))
        sums = self.relu(self.second(normed)) + normed
        side = self.side(sums)
        torch.relu_(side)
        joined = torch.cat([F.relu(sums - 0.5), side], 1)
        out: Tensor = self.last(self.up(joined))
        return out


class Told:
    """One image through the network, every map kept, and back by hand; (C, h, w) throughout."""

    def __init__(self, net: Traps, image: NDArray[np.uint8], method: str, passing: bool) -> None:
        self.net, self.method, self.passing = net, method, passing
        centred = image.astype(np.float64) - np.array(MEAN)
        self.x = torch.from_numpy(centred / np.array(STD)).permute(2, 0, 1)
        self.a = convolved(net.first, self.x)
        self.on = self.a.clamp(min=0)
        self.pooled, self.switches = pooled(self.on, ceil=False)
        self.energy = energies(self.pooled)
        self.normed = self.pooled * self.energy**-0.75
        self.b = convolved(net.second, self.normed)
        self.sums = self.b.clamp(min=0) + self.normed
        self.c = convolved(net.side, self.sums)
        self.joined = torch.cat([(self.sums - 0.5).clamp(min=0), self.c.clamp(min=0)])
        self.top, self.ups = pooled(self.joined, ceil=True)
        self.maps = {
            "first": self.a,
            "second": self.b,
            "side": self.c,
            "last": convolved(net.last, self.top),
        }

    def back(self, layer: str, signal: Tensor) -> NDArray[np.float64]:
        """From a layer's map to the pixels: (H, W, 3)."""
        if layer == "last":
            signal = transposed(self.net.last, signal, self.top)
            signal = unpooled(signal, self.ups, self.joined)
            direct = self.rectified(signal[:6], self.sums - 0.5)
            side = self.rectified(signal[6:], self.c)
            signal = direct + transposed(self.net.side, side, self.sums)
        if layer == "side":
            signal = transposed(self.net.side, signal, self.sums)
        if layer in ("last", "side"):
            branch = self.rectified(signal, self.b)
            signal = signal + transposed(self.net.second, branch, self.normed)
        if layer == "second":
            signal = transposed(self.net.second, signal, self.normed)
        if layer != "first":
            signal = unpooled(self.unnormalised(signal), self.switches, self.on)
            signal = self.rectified(signal, self.a)
        pixels = transposed(self.net.first, signal, self.x).permute(1, 2, 0)
        found: NDArray[np.float64] = pixels.numpy() / np.array(STD)
        return found

    def rectified(self, signal: Tensor, forward: Tensor) -> Tensor:
        on = (forward > 0).to(signal)
        rules = {
            "deconv": signal.clamp(min=0),
            "guided": signal.clamp(min=0) * on,
            "gradient": signal * on,
        }
        return rules[self.method]

    def unnormalised(self, signal: Tensor) -> Tensor:
        """Divide each channel by its own and its neighbours' energy."""
        if self.passing:
            return signal
        result = signal * self.energy**-0.75
        for c in range(6):
            for n in range(max(c - 1, 0), min(c + 2, 6)):  # n's energy has c in it
                slope = -0.75 * self.energy[n] ** -1.75 * 2 * 0.9 / 3 * self.pooled[c]
                result[c] += signal[n] * self.pooled[n] * slope
        return result


def convolved(layer: nn.Conv2d, below: Tensor) -> Tensor:
    weight, bias = layer.weight.double(), layer.bias
    assert bias is not None
    stride, padding = int(layer.stride[0]), int(layer.padding[0])
    return F.conv2d(below[None], weight, bias.double(), stride, padding)[0]


def transposed(layer: nn.Conv2d, signal: Tensor, below: Tensor) -> Tensor:
    stride, padding = int(layer.stride[0]), int(layer.padding[0])
    up = F.conv_transpose2d(signal[None], layer.weight.double(), None, stride, padding)[0]
    unseen = below.shape[2] - up.shape[2], below.shape[1] - up.shape[1]
    return F.pad(up, (0, unseen[0], 0, unseen[1]))


def energies(below: Tensor) -> Tensor:
    rows = []
    for c in range(len(below)):
        near = below[max(c - 1, 0) : c + 2]
        rows.append(1.5 + 0.9 / 3 * (near**2).sum(0))
    return torch.stack(rows)


def pooled(below: Tensor, ceil: bool) -> tuple[Tensor, dict[Any, tuple[int, int]]]:
    """Return 3x3 maxima at every second place, with `ceil` also over the rest; and their places."""
    channels, height, width = below.shape
    rows, columns = ((length - 3 + int(ceil)) // 2 + 1 for length in (height, width))
    result = below.new_zeros(channels, rows, columns)
    switches = {}
    for c, i, j in np.ndindex(channels, rows, columns):
        part = below[c, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].numpy()
        row, column = np.unravel_index(int(part.argmax()), part.shape)
        result[c, i, j] = float(part[row, column])
        switches[c, i, j] = (2 * i + int(row), 2 * j + int(column))
    return result, switches


def unpooled(signal: Tensor, switches: dict[Any, tuple[int, int]], below: Tensor) -> Tensor:
    result = torch.zeros_like(below)
    for (c, i, j), (row, column) in switches.items():
        result[c, row, column] += signal[c, i, j]
    return result


@pytest.fixture(scope="module")
def net() -> Traps:
    torch.manual_seed(4)
    return Traps().requires_grad_(False)


IMAGES = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
CHANNELS = [0, 3]


def places_of(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Corners, edges and the middle of a map."""
    rows, columns = (sorted({0, 1, n // 2, n - 1}) for n in size)
    return [(row, column) for row in rows for column in columns]


def top_of(network: Network, alias: str, told: list[Told]) -> LayerTopK:
    """Return every one of these places in every channel, as if they were the strongest."""
    layer = network.layer(alias)
    places = np.array(places_of(layer.map))
    shape = layer.channels, len(places)
    image = np.broadcast_to(np.arange(len(places)) % 2, shape)
    row, column = (np.broadcast_to(places[:, axis], shape) for axis in (0, 1))
    activation = np.empty(shape, np.float32)
    for c, k in np.ndindex(shape):
        values = told[int(image[c, k])].maps[layer.module]
        activation[c, k] = float(values[c, row[c, k], column[c, k]])
    top = TopK(activation, image.astype(np.int64), row, column)
    return LayerTopK(top, boxes(layer.field, top), {}, "float32")


def made(
    net: Traps, folder: Path, layer: str, method: str, settings: ProjectPlan, told: list[Told]
) -> Iterator[tuple[StoredPlaces, NDArray[np.float32]]]:
    """Yield what the stage makes before it is scaled and rounded, batch by batch."""
    preprocessing = Preprocessing(crop=SIZE, mean=MEAN, std=STD)
    network = Network.prepare("traps", net, preprocessing)
    net.relu.inplace = True  # `prepare` turns it off
    session = Session(Plan(project=settings), network, Run(folder), Report(quiet=True))
    found = network.layer(layer)
    top = top_of(network, layer, told)
    projections = Projections(session, found, method, top, "")
    for slots, whole in projections.batching.batches(StoredPlaces.of(top, CHANNELS)):
        yield slots, projections.backward.project(slots, whole, IMAGES.__getitem__)


@pytest.mark.parametrize("cost", [-1, 1e9], ids=["windows", "whole input"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", ["deconv", "guided", "gradient"])
def test_every_place_is_as_told(
    method: str, layer: str, cost: float, net: Traps, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("cnnvis_cli.stages.project.batching.PASS", cost)
    told = [Told(net, image, method, False) for image in IMAGES]
    seen = 0
    for slots, frames in made(net, tmp_path, layer, method, ProjectPlan(), told):
        for number, frame in enumerate(frames):
            one = told[int(slots.image[number])]
            signal = torch.zeros_like(one.maps[layer])
            signal[slots.channel[number], *slots.place[number].tolist()] = 1
            compare(frame, framed(one.back(layer, signal), slots.box[number].tolist()))
            seen += 1
    assert seen >= 18


@pytest.mark.parametrize("passing", [False, True], ids=["derivative", "pass"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", ["deconv", "guided", "gradient"])
def test_a_whole_map_is_as_told(
    method: str, layer: str, passing: bool, net: Traps, tmp_path: Path
) -> None:
    told = [Told(net, image, method, passing) for image in IMAGES]
    settings = ProjectPlan(start="map", lrn="pass" if passing else "derivative")
    expected = {}
    for c in CHANNELS:
        for image, one in enumerate(told):
            signal = torch.zeros_like(one.maps[layer])
            signal[c] = one.maps[layer][c].clamp(min=0)
            expected[c, image] = one.back(layer, signal)
    for slots, frames in made(net, tmp_path, layer, method, settings, told):
        for number, frame in enumerate(frames):
            compare(frame, expected[int(slots.channel[number]), int(slots.image[number])])


def framed(whole: NDArray[np.float64], box: list[int]) -> NDArray[np.float64]:
    """Return a window of an image, 0 outside of it; outside the window the image must be 0."""
    top, left, bottom, right = box
    frame = np.zeros((bottom - top, right - left, 3))
    outside = whole.copy()
    for row in range(max(top, 0), min(bottom, SIZE[0])):
        for column in range(max(left, 0), min(right, SIZE[1])):
            frame[row - top, column - left] = whole[row, column]
            outside[row, column] = 0
    assert not outside.any()
    return frame


def compare(frame: NDArray[np.float32], expected: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(frame, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
