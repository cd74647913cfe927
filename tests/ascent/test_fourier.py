"""The Fourier image against a reference: sums of cosines, scipy's resampling, slow loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from torch import Tensor, nn

from cnnvis_cli.ascent.climb import Ascent, AscentBatch, AscentSpec, climb
from cnnvis_cli.ascent.fourier import (
    FourierParameterization,
    FourierUpdater,
    Motion,
    PictureModel,
    unit_rms,
)
from cnnvis_cli.ascent.regularizers import Regularizer, TotalVariation
from cnnvis_cli.ascent.steps import Constant
from cnnvis_cli.ascent.styles import Style

MEAN = torch.tensor([123.675, 116.28, 103.53], dtype=torch.float64).view(1, 3, 1, 1)
CANVASES = [(1, 1), (2, 3), (7, 7), (6, 8), (15, 12)]
STILL = FourierParameterization(jitter=0, scale=0, rotate=0)


def style_of(
    image: FourierParameterization, iterations: int = 40, regularizers: tuple[Regularizer, ...] = ()
) -> Style:
    return Style("fourier", regularizers, Constant(1), iterations, "", image)


def begin(
    style: Style, canvas: tuple[int, int], seeds: Sequence[int], mean: Tensor = MEAN
) -> tuple[Tensor, FourierUpdater]:
    start = torch.zeros(len(seeds), 3, *canvas)
    shown, updater = style.image.begin(style, start, mean, seeds)
    assert isinstance(updater, FourierUpdater)
    return shown, updater


def drawn(*size: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator, dtype=torch.float64)


def slow_picture(spectrum: NDArray[np.float64], w: int, decay: float) -> NDArray[np.float64]:
    """(3, h, w // 2 + 1, 2) -> (3, h, w): each wave drawn on its own, then colours and sigmoid."""
    h = spectrum.shape[1]
    plane = np.zeros((3, h, w))
    y, x = np.mgrid[:h, :w]
    for v in range(h):
        for u in range(w // 2 + 1):
            cycles = np.hypot(min(v, h - v) / h, u / w)
            height = 1 / max(cycles, 1 / max(h, w)) ** decay * np.sqrt(h * w) / 4 / (h * w)
            twice = 1 if u in (0, w / 2) else 2  # the wave of -u is its mirror image
            angle = 2 * np.pi * (v * y / h + u * x / w)
            for c in range(3):
                real, imaginary = spectrum[c, v, u]
                wave = real * np.cos(angle) - imaginary * np.sin(angle)
                plane[c] += twice * height * wave
    root = np.array([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
    largest = max(np.sqrt((root[:, k] ** 2).sum()) for k in range(3))
    mixed = np.einsum("ck,kyx->cyx", root / largest, plane)
    picture: NDArray[np.float64] = 255 / (1 + np.exp(-mixed)) - MEAN[0].numpy()
    return picture


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_the_picture_is_a_sum_of_waves(canvas: tuple[int, int], decay: float) -> None:
    h, w = canvas
    spectra = drawn(2, 3, h, w // 2 + 1, 2)
    pictures = PictureModel(canvas, FourierParameterization(decay=decay).statistics(canvas), MEAN)(
        spectra
    ).numpy()
    for spectrum, picture in zip(spectra.numpy(), pictures, strict=True):
        np.testing.assert_allclose(picture, slow_picture(spectrum, w, decay), atol=1e-9)


def motion(
    canvas: tuple[int, int],
    down: float = 0,
    right: float = 0,
    zoom: float = 1,
    degrees: float = 0,
) -> Motion:
    angle = np.radians(degrees)
    moves = [[down, right, zoom, np.tan(angle / 2), np.sin(angle)]]
    return Motion.of(torch.tensor(moves, dtype=torch.float64), canvas)


@pytest.mark.parametrize("canvas", CANVASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_jitter_is_a_roll_exactly(canvas: tuple[int, int], dtype: torch.dtype) -> None:
    picture = drawn(1, 3, *canvas).to(dtype)
    for down, right in ((0, 0), (2, 0), (0, -1), (-3, 5)):
        moves = torch.tensor([[down, right, 1, 0, 0]], dtype=dtype)
        moved = Motion.of(moves, canvas).forth(picture)
        assert torch.equal(moved, picture.roll((down, right), (2, 3)))


def scipy_moved(
    picture: NDArray[np.float64], zoom: float, degrees: float, down: float, right: float
) -> NDArray[np.float64]:
    """scipy's linear resampling of a periodic picture (3, h, w), about its centre."""
    angle = np.radians(degrees)
    back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / zoom
    centre = (np.array(picture.shape[1:]) - 1) / 2
    offset = centre - back @ (centre + np.array([down, right]))
    moved = [affine_transform(c, back, offset, order=1, mode="grid-wrap") for c in picture]
    return np.stack(moved)


@pytest.mark.parametrize("canvas", [(7, 7), (6, 8), (15, 12)])
@pytest.mark.parametrize("zoom", [0.8, 0.9, 1.1, 1.3])
def test_zoom_is_scipy_s(canvas: tuple[int, int], zoom: float) -> None:
    picture = drawn(1, 3, *canvas)
    moved = motion(canvas, zoom=zoom).forth(picture)[0].numpy()
    np.testing.assert_allclose(moved, scipy_moved(picture[0].numpy(), zoom, 0, 0, 0), atol=1e-12)


def smooth(canvas: tuple[int, int]) -> Tensor:
    """Broad waves, not periodic: (1, 3, h, w), of height 1."""
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in canvas), indexing="ij")
    return torch.stack([torch.sin(x / 5), torch.cos(y / 6), torch.sin((x + y) / 7)])[None]


@pytest.mark.parametrize(("degrees", "zoom"), [(10, 1), (-7, 1), (10, 1.1), (-10, 0.9)])
def test_rotation_is_scipy_s_away_from_the_border(degrees: float, zoom: float) -> None:
    canvas = (41, 48)
    picture = smooth(canvas)
    moved = motion(canvas, 0, 0, zoom, degrees).forth(picture)[0].numpy()
    expected = scipy_moved(picture[0].numpy(), zoom, degrees, 0, 0)
    inner = (slice(None), slice(9, -9), slice(9, -9))
    assert np.abs(moved - expected)[inner].max() < 0.02  # two linear interpolations or four
    assert np.abs(moved - picture[0].numpy())[inner].max() > 0.2


def test_a_counter_clockwise_turn_takes_the_right_up() -> None:
    picture = torch.zeros(1, 3, 21, 21, dtype=torch.float64)
    picture[:, :, 10, 20] = 1
    moved = motion((21, 21), degrees=12).forth(picture)[0, 0]
    assert moved.sum() == pytest.approx(1)
    assert (moved.sum(dim=1) * torch.arange(21)).sum() == pytest.approx(10 - 10 * 0.2079, abs=0.01)


def slow_shear(line: list[float], far: float) -> list[float]:
    n = len(line)
    whole = int(np.floor(far))
    part = far - whole
    return [(1 - part) * line[(i - whole) % n] + part * line[(i - whole - 1) % n] for i in range(n)]


@pytest.mark.parametrize("canvas", CANVASES)
def test_rotation_is_three_shears_line_by_line(canvas: tuple[int, int]) -> None:
    h, w = canvas
    picture = drawn(1, 3, h, w)
    angle, down, right = np.radians(25), 1, -2
    moved = motion(canvas, down, right, 1, 25).forth(picture)[0].numpy()
    for c in range(3):
        p = picture[0, c].numpy().copy()
        for y in range(h):
            p[y] = slow_shear(list(p[y]), right + np.tan(angle / 2) * (y - (h - 1) / 2))
        for x in range(w):
            p[:, x] = slow_shear(list(p[:, x]), down - np.sin(angle) * (x - (w - 1) / 2))
        for y in range(h):
            p[y] = slow_shear(list(p[y]), np.tan(angle / 2) * (y - (h - 1) / 2))
        np.testing.assert_allclose(moved[c], p, atol=1e-12)


@pytest.mark.parametrize("canvas", CANVASES)
def test_the_way_back_is_the_transpose(canvas: tuple[int, int]) -> None:
    moves = torch.tensor([[1, -2, 0.9, 0.09, 0.17], [0, 3, 1.1, -0.05, -0.1]]).double()
    both = Motion.of(moves, canvas)
    x, y = drawn(2, 3, *canvas), drawn(2, 3, *canvas, seed=2)
    there = (both.forth(x) * y).sum(dim=(1, 2, 3))
    assert torch.allclose(there, (x * both.back(y)).sum(dim=(1, 2, 3)), rtol=1e-12)
    flat = torch.full_like(x, 7)
    assert torch.allclose(both.forth(flat), flat, rtol=1e-12)  # nothing comes in from outside


@pytest.mark.parametrize("canvas", CANVASES)
def test_the_gradient_is_that_of_what_is_shown(canvas: tuple[int, int]) -> None:
    """Adam's first step hides the length of a gradient, so its moments are compared."""
    image = FourierParameterization(jitter=0.3, every=50, spread=0.2)
    shown, updater = begin(style_of(image), canvas, [4, 5])
    push = drawn(2, 3, *canvas)
    shown = updater.advance(shown, torch.zeros(2), push, 0)
    before, moving = updater.first.clone(), updater.motion()
    spectra = updater.spectra.clone()
    back = moving.back(push)
    length = back.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    updater.advance(shown, torch.zeros(2), push, 1)
    uphill = (updater.first - 0.9 * before) / 0.1

    def height(at: Tensor) -> Tensor:
        shown = moving.forth(updater.model(at))
        return (shown * push / length).sum()

    for i in range(0, spectra.numel(), max(1, spectra.numel() // 25)):
        change = torch.zeros(spectra.numel(), dtype=torch.float64)
        change[i] = 1e-5
        change = change.view_as(spectra)
        slope = (height(spectra + change) - height(spectra - change)) / 2e-5
        assert uphill.flatten()[i].item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-5)


def test_adam_is_torch_s_and_goes_up() -> None:
    shown, updater = begin(style_of(STILL), (6, 8), [4])
    weights = updater.spectra.detach().clone().requires_grad_()
    adam = torch.optim.Adam([weights], lr=0.05, maximize=True)
    for age in range(5):
        push = drawn(1, 3, 6, 8, seed=age) * 10.0 ** (3 * age - 6)  # its length does not matter
        shown = updater.advance(shown, torch.zeros(1), push, age)
        picture = updater.model(weights.detach())
        weights.grad = updater.model.back(picture, push / push.square().mean().sqrt())
        adam.step()
        assert torch.allclose(updater.spectra, weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("canvas", CANVASES)
def test_the_gradient_of_the_spectra_is_the_pictures_slope(canvas: tuple[int, int]) -> None:
    _, updater = begin(style_of(STILL), canvas, [4])
    aside, push = drawn(*updater.spectra.shape, seed=1), drawn(1, 3, *canvas, seed=2)
    before, after = (updater.model(updater.spectra + far * aside) for far in (-1e-6, 1e-6))
    slope = ((after - before) * push).sum() / 2e-6
    found = updater.model.back(updater.model(updater.spectra), push)
    assert (found * aside).sum().item() == pytest.approx(slope.item(), rel=1e-6)


def test_a_gradient_of_zero_stays_zero_and_a_tiny_one_counts() -> None:
    gradient = torch.tensor([0.0, 1e-30, 5.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    assert torch.allclose(unit_rms(gradient), (gradient > 0).float())
    shown, updater = begin(style_of(STILL), (7, 7), [1, 2])
    push = drawn(2, 3, 7, 7)
    push[0] = 0
    after = updater.advance(shown, torch.zeros(2), push, 0)
    assert torch.equal(after[0], shown[0])
    assert not torch.equal(after[1], shown[1])


@pytest.mark.parametrize("canvas", CANVASES)
def test_plain_steps_show_the_picture_itself(canvas: tuple[int, int]) -> None:
    style = style_of(FourierParameterization(every=4, jitter=0.4, spread=0.5), iterations=11)
    shown, updater = begin(style, canvas, [3, 9])
    plain = []
    for age in range(11):
        picture = updater.model(updater.spectra.detach())
        assert shown.is_contiguous(memory_format=torch.channels_last)
        assert shown.dtype == torch.float64
        assert not shown.requires_grad
        assert (shown + MEAN).min() >= 0
        assert (shown + MEAN).max() <= 255
        if updater.plain(age):
            plain.append(age)
        else:
            assert torch.equal(shown, Motion.of(updater.moves[:, age], canvas).forth(picture))
        if canvas != (1, 1):  # which nothing moves
            assert torch.equal(shown, picture) == updater.plain(age)
        if age < 10:
            shown = updater.advance(shown, torch.zeros(2), drawn(2, 3, *canvas, seed=age), age)
    assert plain == [0, 4, 8, 10]


def test_every_ascent_and_step_has_its_own_moves_within_bounds() -> None:
    _, updater = begin(style_of(FourierParameterization(), 300), (112, 60), [1, 2])
    assert not torch.equal(updater.moves[0], updater.moves[1])
    down, right, zoom, tan, sin = updater.moves.abs().amax(dim=(0, 1)).tolist()
    assert (down, right) == (6, 3)  # 0.05 of the side
    assert zoom == pytest.approx(1.1, abs=0.01)
    assert updater.moves[:, :, 2].min().item() == pytest.approx(0.9, abs=0.01)
    assert np.degrees(2 * np.arctan(tan)) == pytest.approx(10, abs=0.1)
    assert np.degrees(np.arcsin(sin)) == pytest.approx(10, abs=0.1)


def climbed(
    canvas: tuple[int, int], seeds: Sequence[int], lost: Sequence[int] = (), steps: int = 12
) -> dict[int, Tensor]:
    """Return spectra after some steps in float32, each moved by random numbers of its own seed.

    Those in `lost` leave in the middle of the way.
    """
    style = style_of(FourierParameterization(every=5), steps, (TotalVariation(0.5),))
    shown, updater = begin(style, canvas, seeds, MEAN.float())
    left = list(seeds)
    for age in range(steps - 1):
        if age == 7 and lost:
            stay = [i for i, seed in enumerate(left) if seed not in lost]
            left = [left[i] for i in stay]
            kept = updater.keep(stay)
            assert isinstance(kept, FourierUpdater)
            shown, updater = shown[stay], kept
        push = torch.stack([drawn(3, *canvas, seed=100 * seed + age) for seed in left])
        shown = updater.advance(shown, torch.zeros(len(left)), push.float(), age)
    spectra = updater.spectra.detach()
    return {
        seed: torch.cat([spectra[i].flatten(), shown[i].flatten()]) for i, seed in enumerate(left)
    }


@pytest.mark.parametrize("canvas", [*CANVASES, (33, 32)])
def test_an_ascent_does_not_depend_on_its_neighbours(canvas: tuple[int, int]) -> None:
    one = climbed(canvas, [1, 2, 3, 4, 5])
    for other in (
        climbed(canvas, [9, 3, 8, 1, 7]),
        climbed(canvas, [9, 3, 8, 1, 7], lost=[9, 8]),
        climbed(canvas, [9, 3, 1, 7], lost=[9, 7, 1]),
        climbed(canvas, [3]),
    ):
        for seed in set(one) & set(other):
            assert torch.equal(one[seed], other[seed])
    assert not torch.equal(one[1], one[2])


def network() -> nn.Sequential:
    """Two layers; smooth, so that no unit is inactive."""
    generator = torch.Generator().manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.Softplus(), nn.Conv2d(8, 5, 3))
    for parameter in made.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.dim() == 4 else 0
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread
    return made.requires_grad_(False)


def evaluate(x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        found = network()(x / 60).mean(dim=(2, 3))
        value = found.gather(1, targets[:, None])[:, 0]
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), found.argmax(dim=1) == targets, gradient


def ascents(style: Style, size: int = 4, channels: Sequence[int] = range(5)) -> dict[int, Ascent]:
    start = torch.zeros(3, 17, 15)
    run_groups = [[AscentSpec(c, c, style, start, seed=c)] for c in channels]
    with torch.no_grad():
        return {
            int(str(a.key)): a
            for a in climb(evaluate, run_groups, AscentBatch(size, last=True), MEAN.float())
        }


def variation(image: Tensor) -> float:
    return float(image.diff(dim=1).abs().sum() + image.diff(dim=2).abs().sum())


def test_it_ascends() -> None:
    for ascent in ascents(style_of(FourierParameterization())).values():
        assert ascent.activation > ascent.start + 0.3
        assert ascent.best_step in (16, 32, 39)
        assert ascent.activation == ascent.history[ascent.best_step]
        value = evaluate(ascent.image[None], torch.tensor([int(str(ascent.key))]))[0]
        assert value.item() == pytest.approx(ascent.activation, abs=1e-4)


def test_the_same_seeds_give_the_same_images_in_whatever_order() -> None:
    style = style_of(FourierParameterization())
    one, other = ascents(style), ascents(style, channels=[4, 2, 0, 1, 3])
    for channel, ascent in one.items():
        assert torch.equal(ascent.image, other[channel].image)
        assert ascent.history.tolist() == other[channel].history.tolist()


def test_total_variation_goes_down_with_its_regularizer() -> None:
    free, held = (
        ascents(style_of(FourierParameterization(), regularizers=(TotalVariation(rate),)))
        for rate in (0, 2)
    )
    for channel, ascent in held.items():
        assert variation(ascent.last) < 0.8 * variation(free[channel].last)
        assert ascent.activation > ascent.start
