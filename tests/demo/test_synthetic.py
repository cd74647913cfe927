"""The generated images: every class can be drawn, reproducibly, and no two images are alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cnnvis_cli.demo
from cnnvis_cli.demo.network import INPUT, DemoNet
from cnnvis_cli.demo.synthetic import CLASSES, draw

WEIGHTS = Path(cnnvis_cli.demo.__file__).parent / "demo.safetensors"
NEW = 2_000_000  # images from this seed on were used neither for training nor for demo.json


def test_there_are_24_classes_in_alphabetical_order() -> None:
    assert len(CLASSES) == 24
    assert list(CLASSES) == sorted(set(CLASSES))
    assert all(name == name.lower() and " " not in name for name in CLASSES)


@pytest.mark.parametrize("name", CLASSES)
def test_a_drawing_is_an_image_with_something_in_it(name: str) -> None:
    for seed in range(5):
        image = draw(name, seed)
        assert image.shape == (112, 112, 3)
        assert image.dtype == np.uint8
        assert image.std() > 10


@pytest.mark.parametrize("name", CLASSES)
def test_a_drawing_depends_on_nothing_but_its_arguments(name: str) -> None:
    first = draw(name, 3)
    assert np.abs(first.astype(float) - draw(name, 4)).mean() > 3
    np.random.seed(0)
    np.testing.assert_array_equal(first, draw(name, 3))


@pytest.mark.parametrize("size", [48, 113, 224])
def test_an_image_can_have_any_size(size: int) -> None:
    assert draw("wheel", 0, size).shape == (size, size, 3)


def test_an_image_looks_the_same_at_another_size() -> None:
    small, large = draw("checks", 5, 64).astype(float), draw("checks", 5, 128).astype(float)
    halved = large.reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.corrcoef(small.ravel(), halved.ravel())[0, 1] > 0.9


def test_an_unknown_class_is_named() -> None:
    with pytest.raises(ValueError, match="'unicorn'"):
        draw("unicorn", 0)


def test_the_bundled_network_recognises_new_images() -> None:
    network = DemoNet(len(CLASSES))
    network.load_state_dict(load_file(WEIGHTS))
    network.eval()
    images = np.stack([draw(name, NEW + seed, INPUT) for name in CLASSES for seed in range(10)])
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    inputs = torch.from_numpy((images / 255 - mean) / std).float().permute(0, 3, 1, 2)
    with torch.inference_mode():
        guesses = network(inputs).argmax(1).numpy()
    assert (guesses == np.repeat(np.arange(len(CLASSES)), 10)).mean() >= 0.9


def test_the_facts_beside_the_weights_are_those_of_a_good_network() -> None:
    facts = json.loads(WEIGHTS.with_suffix(".json").read_text())
    assert facts["classes"] == list(CLASSES)
    assert facts["accuracy"] >= 0.9
    assert set(facts["dead"]) == {*(f"conv{n}" for n in range(1, 6)), "fc6", "fc7", "fc8"}
    assert max(facts["dead"].values()) <= 0.05
    assert WEIGHTS.stat().st_size < 3_000_000
