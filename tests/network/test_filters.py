"""First-layer filters: clipping's laws, and the frequency of gratings that are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cnnvis_cli.network.filters import clipped, rms, spatial_frequency

SIZES = st.sampled_from([(1, 1), (3, 3), (7, 7), (11, 11), (5, 8)])
RADII = st.floats(1e-3, 10)


def drawn(seed: int, size: tuple[int, int], spread: float = 3) -> Tensor:
    """Filters whose RMS differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(24, 3, *size, generator=generator)
    return weights * 10 ** (spread * (torch.rand(24, 1, 1, 1, generator=generator) - 0.5))


@given(st.integers(0, 999), SIZES)
def test_rms_is_the_root_of_the_mean_square(seed: int, size: tuple[int, int]) -> None:
    weights = drawn(seed, size)
    wanted = [math.sqrt(sum(v * v for v in w) / len(w)) for w in weights.flatten(1).tolist()]
    np.testing.assert_allclose(rms(weights), wanted, rtol=1e-12)


@given(st.integers(0, 999), SIZES, RADII)
def test_clipping_keeps_every_filter_within_the_radius(
    seed: int, size: tuple[int, int], radius: float
) -> None:
    weights = drawn(seed, size)
    found = clipped(weights, radius)
    above = rms(weights) > radius
    assert (rms(found) <= radius).all()
    np.testing.assert_allclose(rms(found)[above], radius, rtol=1e-6)
    assert torch.equal(found[~above], weights[~above])
    direction = found / rms(found).view(-1, 1, 1, 1)
    np.testing.assert_allclose(direction, weights / rms(weights).view(-1, 1, 1, 1), rtol=1e-5)


@given(st.integers(0, 999), SIZES, RADII)
def test_clipping_twice_is_clipping_once(seed: int, size: tuple[int, int], radius: float) -> None:
    once = clipped(drawn(seed, size), radius)
    assert torch.equal(clipped(once, radius), once)


def test_a_filter_of_zeros_stays_one() -> None:
    nothing = torch.zeros(1, 3, 3, 3)
    assert torch.equal(clipped(nothing, 0.1), nothing)
    assert spatial_frequency(nothing).tolist() == [0]


def grating(size: int, across: float, down: float, phase: float) -> Tensor:
    """Return a wave of so many cycles per pixel in both directions: (1, 3, size, size)."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    wave = torch.cos(2 * math.pi * (across * x + down * y) + phase)
    return wave.expand(1, 3, size, size) * torch.tensor([0.2, 1.0, -0.4]).view(1, 3, 1, 1)


@pytest.mark.parametrize(("across", "down"), [(0, 1), (1, 0), (2, 3), (5, 5), (-4, 1)])
@pytest.mark.parametrize("phase", [0.0, 1.0])
def test_a_grating_has_its_own_frequency(across: int, down: int, phase: float) -> None:
    found = float(spatial_frequency(grating(11, across / 11, down / 11, phase)))
    assert found == pytest.approx(math.hypot(across, down) / 11, rel=1e-6)


@pytest.mark.parametrize("size", [7, 11, 16])
@pytest.mark.parametrize("cycles", [0.18, 0.25, 0.31])
def test_a_grating_between_the_bins_has_nearly_its_own(size: int, cycles: float) -> None:
    assert float(spatial_frequency(grating(size, cycles, 0, 0.7))) == pytest.approx(
        cycles, abs=0.05
    )


def test_a_blob_has_none_and_a_chessboard_the_most() -> None:
    assert float(spatial_frequency(torch.ones(1, 3, 5, 5))) == pytest.approx(0, abs=1e-12)
    board = torch.ones(8, 8)
    board[::2, ::2] = board[1::2, 1::2] = -1
    found = float(spatial_frequency(board.expand(1, 3, 8, 8)))
    assert found == pytest.approx(math.sqrt(0.5))


@given(st.integers(0, 999), SIZES, st.floats(1e-3, 1e3))
def test_frequency_knows_no_contrast_and_no_order_of_colours(
    seed: int, size: tuple[int, int], factor: float
) -> None:
    weights = drawn(seed, size)
    wanted = spatial_frequency(weights)
    np.testing.assert_allclose(spatial_frequency(weights * factor), wanted, atol=1e-6)
    np.testing.assert_allclose(spatial_frequency(weights.flip(1)), wanted, atol=1e-12)
