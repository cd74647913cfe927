"""The style maco: a step against the paper's formulas, its spectrum, crops, and what it keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.ascent.climb import Ascent, AscentBatch, AscentSpec, climb
from cnnvis_cli.ascent.maco import Crop, MacoParameterization, MacoUpdater, odd
from cnnvis_cli.ascent.spectrum import ImageSpectrum, measured, variances
from cnnvis_cli.ascent.styles import STYLES, Style

MEAN = torch.tensor([123.675, 116.28, 103.53], dtype=torch.float64).view(1, 3, 1, 1)
CANVASES = [(1, 1), (2, 3), (7, 7), (6, 8), (15, 12)]


def photographs(count: int = 4, size: tuple[int, int] = (16, 18)) -> list[Pixels]:
    """Return images with slopes of light and noise."""
    random, (h, w) = np.random.default_rng(5), size
    slopes = np.linspace(-70, 70, w)[None, :, None] * random.uniform(-1, 1, (count, 1, 1, 1))
    noisy = 120 + slopes + random.normal(0, 20, (count, h, w, 3))
    return list(np.clip(noisy, 0, 255).astype(np.uint8))


def spectrum_of(images: list[Pixels]) -> ImageSpectrum:
    return measured(images.__getitem__, range(len(images)), lambda: None)


SPECTRUM = spectrum_of(photographs())


def style_of(iterations: int = 40, **settings: Any) -> Style:
    image = MacoParameterization(SPECTRUM)
    return replace(STYLES["maco"], iterations=iterations, image=replace(image, **settings))


def begun(
    canvas: tuple[int, int], seeds: list[int], style: Style, mean: Tensor = MEAN
) -> tuple[Tensor, MacoUpdater]:
    shown, updater = style.image.begin(style, torch.zeros(len(seeds), 3, *canvas), mean, seeds)
    assert isinstance(updater, MacoUpdater)
    return shown, updater


def test_the_spectrum_is_that_of_the_images_logits() -> None:
    """By other means: all pixels at once, torch's complex transform, components by their names."""
    images = np.stack(photographs(size=(6, 7))).astype(np.float64)
    found = spectrum_of(photographs(size=(6, 7)))
    logit = torch.logit(torch.from_numpy((images + 0.5) / 256))
    colours = logit.reshape(-1, 3)
    torch.testing.assert_close(torch.from_numpy(found.offset).double(), colours.mean(0))
    root = torch.from_numpy(found.colour).double()
    torch.testing.assert_close(root.T @ root, torch.eye(3).double(), rtol=0, atol=1e-6)
    apart = root.T @ torch.cov(colours.T) @ root
    assert float((apart - apart.diag().diag()).abs().max()) < 1e-5
    assert apart.diag().tolist() == sorted(apart.diag().tolist())
    components = (logit - colours.mean(0)) @ root
    whole = torch.fft.fft2(components, dim=(1, 2)).abs().mean(0).permute(2, 0, 1)[:, :, :4]
    whole[:, 0, 0] = 0
    torch.testing.assert_close(torch.from_numpy(found.magnitude).double(), whole, rtol=1e-5, atol=0)
    assert found.width == 7


def test_spectra_are_equal_by_their_numbers() -> None:
    other = replace(SPECTRUM, offset=SPECTRUM.offset + np.float32(1e-6))
    again = spectrum_of(photographs())
    assert (again, hash(again), again.digest) == (SPECTRUM, hash(SPECTRUM), SPECTRUM.digest)
    assert other != SPECTRUM
    assert replace(SPECTRUM, width=19) != SPECTRUM


@pytest.mark.parametrize("canvas", [(16, 18), (7, 7), (5, 18), (8, 9)])
def test_a_canvas_has_the_images_contrast(canvas: tuple[int, int]) -> None:
    found = SPECTRUM.on(canvas)
    assert found.shape == (3, canvas[0], canvas[1] // 2 + 1)
    if canvas == (16, 18):
        np.testing.assert_allclose(found, SPECTRUM.magnitude, rtol=1e-6)
    had = variances(SPECTRUM.magnitude.astype(np.float64), 18)
    np.testing.assert_allclose(variances(found, canvas[1]), had, rtol=1e-6)
    assert (found[:, 0, 0] == 0).all()


def whole_plane(half: Tensor, w: int, sign: float) -> Tensor:
    """(..., h, w // 2 + 1) -> (..., h, w): the other half is that of opposite frequencies."""
    h = half.shape[-2]
    found = torch.zeros(*half.shape[:-1], w, dtype=half.dtype)
    for v in range(h):
        for u in range(w):
            found[..., v, u] = half[..., v, u] if u <= w // 2 else sign * half[..., -v % h, w - u]
    return found


def reference(phases: Tensor, canvas: tuple[int, int]) -> Tensor:
    """The paper's x = F^-1(r exp(i phi)) with the whole complex transform, colours and sigmoid."""
    magnitude = whole_plane(torch.from_numpy(SPECTRUM.on(canvas)), canvas[1], 1)
    waves = torch.fft.ifft2(torch.polar(magnitude, whole_plane(phases, canvas[1], -1)))
    assert float(waves.imag.detach().abs().max()) < 1e-9
    colour, offset = (
        torch.from_numpy(part).double() for part in (SPECTRUM.colour, SPECTRUM.offset)
    )
    mixed = torch.einsum("ck,nkyx->ncyx", colour, waves.real) + offset[:, None, None]
    return 255 * torch.sigmoid(mixed) - MEAN


@pytest.mark.parametrize("canvas", CANVASES)
def test_pictures_have_the_magnitudes_of_the_spectrum(canvas: tuple[int, int]) -> None:
    shown, updater = begun(canvas, [3, 8], style_of())
    expected = reference(updater.spectra, canvas)
    torch.testing.assert_close(updater.picture, expected, rtol=0, atol=1e-6)
    assert torch.equal(shown, updater.picture)
    logit = torch.logit((expected + MEAN) / 255) - torch.from_numpy(SPECTRUM.offset)[:, None, None]
    plain = torch.einsum("ck,ncyx->nkyx", torch.from_numpy(SPECTRUM.colour).double(), logit)
    found = torch.fft.rfft2(plain).abs()
    wanted = torch.from_numpy(SPECTRUM.on(canvas)).expand_as(found)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def slow_crop(picture: NDArray[np.float64], crop: list[float]) -> NDArray[np.float64]:
    """Return a crop of (3, h, w), each pixel the mean of its four neighbours, round the edges."""
    _, h, w = picture.shape
    down, right, side = crop
    found = np.empty_like(picture)
    for i in range(h):
        for j in range(w):
            y = (h - 1) / 2 + down * h + side * (i - (h - 1) / 2)
            x = (w - 1) / 2 + right * w + side * (j - (w - 1) / 2)
            v, u = int(np.floor(y)), int(np.floor(x))
            for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = abs(1 - a - (y - v)) * abs(1 - b - (x - u))
                part = weight * picture[:, (v + a) % h, (u + b) % w]
                found[:, i, j] = part + (found[:, i, j] if (a, b) != (0, 0) else 0)
    return found


def test_steps_equal_the_slow_reference() -> None:
    """Plain and cropped ones: autograd through the whole transform, torch's own Adam."""
    canvas, target = (15, 12), torch.randn(2, 3, 15, 12, dtype=torch.float64)
    shown, updater = begun(canvas, [3, 8], style_of(every=3))
    phases = updater.spectra.clone().requires_grad_()
    adam = torch.optim.Adam([phases], lr=0.1, maximize=True)
    sums = torch.zeros(2, 15, 12, dtype=torch.float64)
    for age in range(8):
        picture = reference(odd(phases, 12), canvas)
        seen = picture
        if age % 3:
            crops = updater.moves[:, age]
            both = zip(picture.detach().numpy(), crops[:, :3].tolist(), strict=True)
            noise = [
                updater.grain[i].roll((int(crops[i, 5]), int(crops[i, 6])), (1, 2)) * crops[i, 7]
                for i in range(2)
            ]
            cropped = torch.from_numpy(np.stack([slow_crop(*each) for each in both]))
            torch.testing.assert_close(shown, cropped + torch.stack(noise), rtol=0, atol=1e-4)
            seen = Crop.of(crops[:, :3], canvas).forth(picture) + torch.stack(noise)
        else:
            torch.testing.assert_close(shown, picture.detach(), rtol=0, atol=1e-4)
        (slope,) = torch.autograd.grad((seen * target).sum(), picture, retain_graph=True)
        sums += slope.abs().sum(dim=1)
        pull = slope / slope.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        adam.zero_grad()
        (phases.grad,) = torch.autograd.grad(picture, phases, pull)
        adam.step()
        shown = updater.advance(shown, torch.zeros(2), target, age)
        torch.testing.assert_close(updater.spectra, odd(phases.detach(), 12), rtol=0, atol=1e-4)
        torch.testing.assert_close(updater.opacity, sums, rtol=1e-4, atol=0)


def test_small_canvases_are_cropped_less_and_noise_is_uniform() -> None:
    for side, least in ((64, 0.5), (16, 1 - 16 / 64 * 0.5)):
        _, updater = begun((side, side), [1], style_of(600))
        crops = updater.moves[0]
        assert float(crops[:, 2].min()) == pytest.approx(least, abs=0.01)
        assert float(crops[:, 2].max()) == pytest.approx(1, abs=0.01)
        assert float(crops[:, :2].std()) == pytest.approx(0.15 * side / 64, rel=0.1)
        assert 19 < float(crops[:, 7].max()) <= 20
        assert float(updater.grain.abs().max()) == pytest.approx(1, abs=0.05)
        assert float(updater.grain.std()) == pytest.approx(1 / np.sqrt(3), rel=0.1)


def ascend(size: int, order: tuple[int, ...] = (0, 1, 2)) -> list[Ascent]:
    """Return ascents towards the left half of the picture alone."""

    def evaluate(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient = torch.zeros_like(x)
        gradient[..., :8] = torch.cos(x[..., :8] / 30)
        return torch.sin(x[..., :8] / 30).sum(dim=(1, 2, 3)), targets >= 0, gradient

    style = style_of(70, noise=0, least=1)
    specs = [[AscentSpec(i, i, style, torch.zeros(3, 16, 16), seed=i)] for i in order]
    mean = MEAN.float()
    found = {int(str(a.key)): a for a in climb(evaluate, specs, AscentBatch(size), mean)}
    return [found[i] for i in range(3)]


def test_an_ascent_keeps_where_it_looked_and_is_the_same_in_any_company() -> None:
    for one, other in zip(ascend(3), ascend(1, (2, 0, 1)), strict=True):
        assert one.activation > one.start
        assert torch.equal(one.image, other.image)
        assert one.opacity is not None
        assert other.opacity is not None
        assert torch.equal(one.opacity, other.opacity)
        assert one.opacity.shape == (16, 16)
        assert np.array_equal(one.history, other.history)


def test_other_styles_keep_no_gradients() -> None:
    start = torch.zeros(1, 3, 8, 8)
    for name in ("3", "natural"):
        assert STYLES[name].image.begin(STYLES[name], start, MEAN, [1])[1].transparency is None
