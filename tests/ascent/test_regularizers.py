"""The regularizers against scipy's filter and numpy's percentile, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from cnnvis_cli.ascent.regularizers import (
    REGULARIZERS,
    Blur,
    ClipContribution,
    ClipNorm,
    Decay,
    TotalVariation,
    below_percentile,
    gaussian,
    total_variation_gradient,
)

CASES = settings(max_examples=100, deadline=None)
sizes = st.tuples(st.integers(1, 3), st.integers(1, 19), st.integers(1, 19))
percentiles = st.sampled_from([0.5, 5.0, 20.0, 33.3, 50.0, 66.7, 90.0, 99.9, 100.0])


def images(seed: int, size: tuple[int, int, int], levels: int = 0) -> Tensor:
    """Random images (B, 3, H, W); with few `levels` most values are tied."""
    random = np.random.default_rng(seed)
    batch, height, width = size
    shape = (batch, 3, height, width)
    values = random.integers(-levels, levels + 1, shape) if levels else random.normal(0, 9, shape)
    return torch.from_numpy(np.asarray(values, np.float64))


def blurred(x: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """Return each channel of each image, filtered alone with scipy's defaults."""
    out = np.empty_like(x)
    for b in range(x.shape[0]):
        for c in range(3):
            out[b, c] = gaussian_filter(x[b, c], sigma)
    return out


def test_the_registry_names_them_all() -> None:
    assert dict(REGULARIZERS) == {
        "decay": Decay,
        "blur": Blur,
        "norm": ClipNorm,
        "contribution": ClipContribution,
        "tv": TotalVariation,
    }


@given(st.integers(0, 999), sizes)
@CASES
def test_total_variation_goes_down_its_gradient(seed: int, size: tuple[int, int, int]) -> None:
    x = images(seed, size)

    def variation(x: torch.Tensor) -> torch.Tensor:
        down = torch.diff(x, dim=2, append=x[:, :, -1:])
        right = torch.diff(x, dim=3, append=x[:, :, :, -1:])
        return (down.square() + right.square()).sum(dim=1).add(1).sqrt().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(variation(leaf), leaf)
    torch.testing.assert_close(total_variation_gradient(x), expected)
    assert variation(TotalVariation(1e-3)(x, x, 0)) <= variation(x)


@given(st.integers(0, 999), sizes, st.floats(0, 0.9))
@CASES
def test_decay_multiplies(seed: int, size: tuple[int, int, int], rate: float) -> None:
    x = images(seed, size)
    np.testing.assert_array_equal(Decay(rate)(x, x, 5).numpy(), x.numpy() * (1 - rate))


@given(st.integers(0, 999), sizes, st.sampled_from([0.3, 0.5, 1.0, 1.7, 4.0]))
@CASES
def test_blur_is_scipy_s_also_where_the_kernel_is_larger_than_the_image(
    seed: int, size: tuple[int, int, int], sigma: float
) -> None:
    x = images(seed, size)
    found = Blur(sigma, 1)(x, x, 0).numpy()
    np.testing.assert_allclose(found, blurred(x.numpy(), sigma), atol=1e-12)
    single = Blur(sigma, 1)(x.float(), x.float(), 0)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), blurred(x.numpy(), sigma), atol=1e-4)


@given(st.floats(0.3, 5))
@CASES
def test_a_blur_moves_no_mass(sigma: float) -> None:
    weights = gaussian(sigma)
    assert len(weights) == 2 * int(4 * sigma + 0.5) + 1
    assert sum(weights) == pytest.approx(1)
    assert min(weights) >= 0
    assert weights == weights[::-1]


@pytest.mark.parametrize("side", [1, 7, 11, 51])
def test_an_image_is_blurred_alike_in_any_batch(side: int) -> None:
    x = images(3, (8, side, side)).float().contiguous(memory_format=torch.channels_last)
    whole = Blur(1.0, 4)(x, x, 0)
    for rows in ([0], [7], [1, 2], [3, 5, 6], [2, 3, 4, 5, 6]):
        part = x[rows].contiguous(memory_format=torch.channels_last)
        assert torch.equal(Blur(1.0, 4)(part, part, 0), whole[rows])


@pytest.mark.parametrize(("every", "iterations"), [(1, [0, 1, 2, 3]), (4, [0, 4, 8])])
def test_blur_comes_every_so_many_iterations_and_at_the_first(
    every: int, iterations: list[int]
) -> None:
    x = images(0, (1, 5, 5))
    done = [i for i in range(9) if not torch.equal(Blur(1.0, every)(x, x, i), x)]
    assert done[: len(iterations)] == iterations


@pytest.mark.parametrize(
    "off", [Decay(0), Blur(0, 4), Blur(1.0, 0), ClipNorm(0), ClipContribution(0)]
)
def test_nothing_happens_at_zero(off: Decay | Blur | ClipNorm | ClipContribution) -> None:
    x = images(0, (2, 5, 5))
    assert torch.equal(off(x, x, 0), x)


@given(st.integers(0, 999), sizes, percentiles, st.integers(0, 2))
@CASES
def test_small_norms_are_zeroed(
    seed: int, size: tuple[int, int, int], percentile: float, levels: int
) -> None:
    x = images(seed, size, levels)
    found = ClipNorm(percentile)(x, x, 0).numpy()
    for image, result in zip(x.numpy(), found, strict=True):
        norm = x.new_tensor(image).norm(dim=0).numpy()  # torch's own sums, so that ties are ties
        np.testing.assert_allclose(norm, np.sqrt((image**2).sum(axis=0)), rtol=1e-12)
        gone = norm < exactly(norm, percentile)
        np.testing.assert_array_equal(result, np.where(gone, 0, image))


@given(st.integers(0, 999), sizes, percentiles, st.integers(0, 2))
@CASES
def test_small_contributions_are_zeroed(
    seed: int, size: tuple[int, int, int], percentile: float, levels: int
) -> None:
    x, gradient = images(seed, size, levels), images(seed + 1, size, levels)
    found = ClipContribution(percentile)(x, gradient, 0).numpy()
    for image, slope, result in zip(x.numpy(), gradient.numpy(), found, strict=True):
        effect = np.abs(sum(image[c] * slope[c] for c in range(3)))
        gone = effect < exactly(effect, percentile)
        np.testing.assert_array_equal(result, np.where(gone, 0, image))


def exactly(values: NDArray[np.float64], percentile: float) -> float:
    """Return numpy's percentile, without the rounding that may lift it above an equal value."""
    ranked = np.sort(values, axis=None)
    rank = (len(ranked) - 1) * percentile / 100
    low, high = ranked[int(rank)], ranked[min(int(rank) + 1, len(ranked) - 1)]
    found = float(np.percentile(values, percentile))
    assert found == pytest.approx(low + (high - low) * (rank - int(rank)), rel=1e-9, abs=1e-9)
    return float(low) if low == high else found


@given(st.integers(0, 999), st.integers(1, 60), percentiles)
@CASES
def test_images_of_a_batch_do_not_see_each_other(seed: int, count: int, percentile: float) -> None:
    x = images(seed, (3, 1, count), levels=2)[:, 0]
    x[1] *= 1000
    together = below_percentile(x, percentile)
    for image, alone in zip(x, together, strict=True):
        assert torch.equal(below_percentile(image[None], percentile)[0], alone)
