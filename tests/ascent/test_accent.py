"""The style accent: it begins at the photograph, ends near it, and is higher there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cnnvis_cli.ascent.accent import AccentParameterization, spectrum_of
from cnnvis_cli.ascent.climb import Ascent, AscentBatch, AscentSpec, climb
from cnnvis_cli.ascent.fourier import PictureModel
from cnnvis_cli.ascent.styles import STYLES

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)


def photograph(size: tuple[int, int], seed: int = 0) -> Tensor:
    """Return a slope of light under noise, (3, h, w) mean-subtracted, with black and white."""
    random, (h, w) = np.random.default_rng(seed), size
    values = np.linspace(-40, 300, w)[None, None] + random.normal(0, 30, (3, h, w))
    return torch.from_numpy(values.round().clip(0, 255)).float() - MEAN[0]


@pytest.mark.parametrize("canvas", [(1, 1), (2, 3), (7, 7), (15, 12), (16, 16)])
def test_it_begins_at_the_photograph(canvas: tuple[int, int]) -> None:
    """In its own colours and frequencies; black and white are half a grey level off."""
    style, one = STYLES["accent"], photograph(canvas)
    shown, _ = style.image.begin(style, one[None], MEAN, [3])
    pixels = (one + MEAN[0]).clamp(0.5, 254.5)
    assert float((shown[0] + MEAN[0] - pixels).abs().max()) < 0.02
    statistics = AccentParameterization().statistics(canvas)
    spectrum = spectrum_of((one + MEAN[0]).double(), statistics)
    again = PictureModel(canvas, statistics, MEAN.double())(spectrum[None])
    assert float((again[0] + MEAN[0] - pixels).abs().max()) < 1e-9


def accentuated(apart: float, size: int = 3, order: tuple[int, ...] = (0, 1, 2)) -> list[Ascent]:
    """Return three photographs made redder on the left, and bluer on the right."""
    wanted = torch.zeros(3, 16, 16)
    wanted[0, :, :8], wanted[2, :, 8:] = 1, 1

    def evaluate(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            (x * wanted).mean(dim=(1, 2, 3)),
            targets >= 0,
            (wanted / wanted.numel()).expand_as(x),
        )

    style = STYLES["accent"]
    image = replace(AccentParameterization(), apart=apart)
    style = replace(style, iterations=50, image=image)
    specs = [[AscentSpec(i, i, style, photograph((16, 16), i), seed=i)] for i in order]
    found = {int(str(a.key)): a for a in climb(evaluate, specs, AscentBatch(size), MEAN)}
    return [found[i] for i in range(3)]


@pytest.mark.parametrize("apart", [4.0, 12.0])
def test_it_climbs_and_stays_as_near_as_it_says(apart: float) -> None:
    """Adam alone goes far beyond it in fifty steps: it ends at the bound."""
    for number, ascent in enumerate(accentuated(apart)):
        gone = float((ascent.image - photograph((16, 16), number)).square().mean().sqrt())
        assert apart * 0.9 < gone < apart * 1.05
        assert ascent.activation > ascent.start + apart * 0.1
    free = accentuated(1000.0)[0]
    assert float((free.image - photograph((16, 16))).square().mean().sqrt()) > 20


def test_it_is_the_same_in_any_company() -> None:
    for one, other in zip(accentuated(12.0), accentuated(12.0, 1, (2, 0, 1)), strict=True):
        assert torch.equal(one.image, other.image)
        assert np.array_equal(one.history, other.history)
