"""The style natural: statistics against slow loops, grain, and the way out of dead starts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cnnvis_cli.ascent.climb import Ascent, AscentBatch, AscentSpec, Outcome, climb
from cnnvis_cli.ascent.fourier import FourierUpdater, Motion
from cnnvis_cli.ascent.natural import (
    FALL,
    HEIGHT,
    OFFSET,
    PHOTOGRAPH_COLOURS,
    SMALL,
    UPRIGHT,
    NaturalParameterization,
    natural_spectrum,
)
from cnnvis_cli.ascent.styles import STYLES

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
NATURAL = STYLES["natural"]


def begun(canvas: tuple[int, int], seeds: list[int]) -> tuple[Tensor, FourierUpdater]:
    shown, updater = NATURAL.image.begin(NATURAL, torch.zeros(len(seeds), 3, *canvas), MEAN, seeds)
    assert isinstance(updater, FourierUpdater)
    return shown, updater


@pytest.mark.parametrize("canvas", [(3, 3), (6, 8), (15, 12)])
def test_the_spectrum_is_the_power_law_frequency_by_frequency(canvas: tuple[int, int]) -> None:
    h, w = canvas
    found = natural_spectrum(canvas)
    for colour in range(3):
        for v in range(h):
            for u in range(w // 2 + 1):
                down, right = min(v, h - v) / h, u / w
                cycles = max((down**2 + right**2) ** 0.5, 1 / max(h, w))
                # cos 4a is 1 along rows and columns and -1 across
                length = max(down**2 + right**2, 1e-30)
                upright = 1 if v == u == 0 else 1 - 8 * (down * right / length) ** 2
                expected = HEIGHT[colour] * cycles ** -FALL[colour] * (h * w) ** 0.5
                expected *= np.exp(UPRIGHT[colour] * upright)
                assert found[colour, v, u] == pytest.approx(expected)


def test_pictures_begin_with_the_colours_and_the_contrast_of_photographs() -> None:
    shown, _ = begun((224, 224), list(range(8)))
    values = (shown + MEAN) / 255
    logits = torch.log(values / (1 - values)).double()
    centred = logits - torch.tensor(OFFSET).view(3, 1, 1)
    covariance = torch.einsum("nchw,ndhw->cd", centred, centred) * 3 / centred.numel()
    colour = torch.tensor(PHOTOGRAPH_COLOURS, dtype=torch.float64)
    expected = colour @ colour.T
    # A fifth of half of the contrast has a fiftieth of the energy: both parts of normal numbers.
    share = float(covariance.trace() / expected.trace())
    assert 0.01 < share < 0.04
    angle = (covariance * expected).sum() / (covariance.norm() * expected.norm())
    assert angle > 0.95


def test_small_canvases_have_more_contrast() -> None:
    image = NaturalParameterization()
    for side, more in ((7, SMALL / 7), (SMALL, 1), (224, 1)):
        scale = image.statistics((side, side)).scale
        np.testing.assert_allclose(scale, natural_spectrum((side, side)) * image.contrast * more)


def test_moves_are_smaller_on_small_canvases() -> None:
    for side, share in ((8, 8 / SMALL), (SMALL, 1), (100, 1)):
        _, updater = begun((side, side), [1, 2, 3])
        zoom, turn = updater.moves[:, :, 2], updater.moves[:, :, 4].asin().rad2deg()
        assert float((zoom - 1).abs().max()) == pytest.approx(0.25 * share, rel=0.03)
        assert float(turn.abs().max()) == pytest.approx(15 * share, rel=0.03)
        assert float(updater.spectra.std()) == pytest.approx(0.2 * share, rel=0.2)


def test_moved_pictures_are_shown_under_grain_and_plain_ones_are_not() -> None:
    canvas = (20, 24)
    shown, updater = begun(canvas, [3, 8])
    assert float(updater.grain.std()) == pytest.approx(1, abs=0.1)
    deviations = updater.moves[:, :, 7]
    assert 0 <= deviations.min() < 1
    assert 19 < deviations.max() <= 20
    for age in range(18):
        if updater.plain(age):
            assert age in (0, 16)
            assert torch.equal(shown, updater.picture)
        else:
            moved = Motion.of(updater.moves[:, age, :5], canvas).forth(updater.picture)
            for i in range(2):
                down, right, deviation = updater.moves[i, age, 5:].tolist()
                grain = updater.grain[i].roll((int(down), int(right)), (1, 2)) * deviation
                torch.testing.assert_close(shown[i], moved[i] + grain, rtol=0, atol=1e-4)
        shown = updater.advance(shown, torch.zeros(2), torch.randn(2, 3, *canvas), age)


def ascend(threshold: float, size: int = 3) -> list[Ascent]:
    """Return ascents of units that see nothing of pictures with less deviation than this."""

    def evaluate(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centred = x - x.mean(dim=(1, 2, 3), keepdim=True)
        spread = centred.square().mean(dim=(1, 2, 3)).sqrt()
        wakes = (spread > threshold) & (targets != 1)
        gradient = torch.where(wakes[:, None, None, None], centred, 0)
        return torch.where(wakes, spread, 0), wakes, gradient

    style = replace(NATURAL, iterations=70)
    specs = [[AscentSpec(i, i, style, torch.zeros(3, 16, 16), seed=i)] for i in range(3)]
    found = {int(str(a.key)): a for a in climb(evaluate, specs, AscentBatch(size), MEAN)}
    return [found[i] for i in range(3)]


def test_an_ascent_without_a_gradient_wanders_until_it_finds_one() -> None:
    (first,) = begun((16, 16), [0])[0].std(dim=(1, 2, 3)).tolist()
    awake, dead, _ = ascend(first * 1.1)
    assert awake.start == 0
    assert awake.outcome is Outcome.LARGEST
    assert awake.activation > first * 1.1
    assert dead.outcome is Outcome.NO_GRADIENT
    assert dead.best_step == 0


def test_an_ascent_is_the_same_in_any_company() -> None:
    for one, other in zip(ascend(0, 3), ascend(0, 1), strict=True):
        assert torch.equal(one.image, other.image)
        assert np.array_equal(one.history, other.history)
        assert (one.outcome, one.best_step) == (other.outcome, other.best_step)


def test_what_wandering_has_found_counts_though_it_is_flat() -> None:
    """As with a probability of 1: the unit leads there, and no gradient has led to it."""

    def evaluate(
        x: torch.Tensor, targets: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        wakes = x.std(dim=(1, 2, 3)) > level
        return wakes.to(x), wakes, torch.zeros_like(x)

    level = begun((16, 16), [0])[0].std(dim=(1, 2, 3)).item() * 1.1
    spec = AscentSpec(0, 0, replace(NATURAL, iterations=70), torch.zeros(3, 16, 16), seed=0)
    (found,) = climb(evaluate, [[spec]], AscentBatch(1), MEAN)
    assert (found.activation, found.start) == (1, 0)
    assert found.outcome is Outcome.LARGEST
