"""The training of the bundled network: folding changes nothing, and a seed decides everything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cnnvis_cli.demo.network import DemoNet
from cnnvis_cli.demo.synthetic import CLASSES, draw
from cnnvis_cli.demo.training import (
    HELD_OUT,
    LAYERS,
    DrawnImages,
    Recipe,
    drawn,
    examined,
    fold,
    prepared,
    save,
    soften,
    train,
    varied,
    with_norms,
)

QUICK = Recipe(per_class=2, epochs=2, batch=16, held_out=1)


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def images() -> DrawnImages:
    return drawn(0, QUICK.per_class)


def test_a_folded_network_answers_like_the_normalised_one(images: DrawnImages) -> None:
    network = DemoNet()
    normed = with_norms(network, 0.5)
    for start in (0, 24):
        normed(prepared(images.pixels[start : start + 24].float()))
    normed.eval()
    for norm in normed.modules():
        if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    inputs = prepared(images.pixels)
    with torch.inference_mode():
        expected = normed(inputs)
    fold(normed)
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(inputs), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(normed(inputs), expected, atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_bits(images: DrawnImages) -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(QUICK.seed)
        network = DemoNet()
        train(network, images, QUICK)
        found.append(network.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_weights_on_the_way_are_kept_and_change_nothing(
    images: DrawnImages, tmp_path: Path
) -> None:
    networks = []
    for keep in ({}, {epoch: tmp_path / f"{epoch}.safetensors" for epoch in (0, 1, 2)}):
        torch.manual_seed(QUICK.seed)
        networks.append(DemoNet())
        train(networks[-1], images, QUICK, keep)
    early, middle, last = (load_file(tmp_path / f"{epoch}.safetensors") for epoch in (0, 1, 2))
    for name, values in networks[0].state_dict().items():
        assert torch.equal(values, networks[1].state_dict()[name])
        assert torch.equal(values, last[name])
        assert not torch.equal(middle[name], last[name])
        assert not torch.equal(middle[name], early[name])


def test_images_come_class_by_class(images: DrawnImages) -> None:
    assert images.pixels.shape == (2 * len(CLASSES), 3, 112, 112)
    wanted = torch.from_numpy(draw(CLASSES[5], 1)).permute(2, 0, 1)
    assert torch.equal(wanted, images.pixels[11])
    assert int(images.labels[11]) == 5
    assert Recipe().per_class < HELD_OUT


def test_variation_keeps_shape_and_range(images: DrawnImages) -> None:
    seen = varied(images.pixels[:8], torch.Generator().manual_seed(1))
    assert seen.shape == images.pixels[:8].shape
    assert float(seen.min()) >= 0
    assert float(seen.max()) <= 255
    assert not torch.equal(seen, images.pixels[:8].float())


def test_softening_keeps_the_strength_and_removes_the_grain() -> None:
    filters = torch.randn(32, 3, 7, 7)
    strength = filters.std()
    soften(filters)
    torch.testing.assert_close(filters.std(), strength)
    assert float(filters.diff(dim=3).std()) < 0.8 * float(strength)


def test_a_unit_that_never_fires_is_counted_as_dead(images: DrawnImages) -> None:
    network = DemoNet()
    with torch.no_grad():
        bias = list(network.parameters())[1]  # of conv1
        bias[:8] = -1e3
    accuracy, dead = examined(network, images)
    assert tuple(dead) == LAYERS
    assert dead["conv1"] == pytest.approx(8 / 32, abs=1 / 32)
    assert 0 <= accuracy <= 1


def test_what_is_saved_can_be_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    network, output = DemoNet(), folder / "demo.safetensors"
    save(network, output, {"classes": list(CLASSES)})
    assert sorted(path.name for path in folder.iterdir()) == ["demo.json", "demo.safetensors"]
    assert json.loads((folder / "demo.json").read_text())["classes"] == list(CLASSES)
    DemoNet().load_state_dict(load_file(output))
