"""Scores of pictures against pixel-by-pixel references, and on pictures made for them."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, gaussian_filter
from torch import Tensor

from cnnvis_cli.ascent.scores import (
    SCORES,
    Scores,
    clipped_share,
    disturbances,
    grey_share,
    most_shift,
    order,
    rescale,
    robustness,
    score,
    shift,
    variation,
)
from cnnvis_cli.ascent.styles import PixelUpdater
from cnnvis_cli.errors import UsageError

CASES = settings(max_examples=40, deadline=None)
MEAN = torch.tensor([104.0, 116.7, 122.7])[None, :, None, None]
sizes = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40))
seeds = st.integers(0, 999)
EIGHT = {change.name: change for change in disturbances()}


def images(seed: int, size: tuple[int, int, int], scale: float = 9) -> Tensor:
    batch, height, width = size
    random = np.random.default_rng(seed)
    return torch.from_numpy(random.normal(0, scale, (batch, 3, height, width)))


def moved(x: NDArray[np.float64], down: int, right: int) -> NDArray[np.float64]:
    """Return each pixel from its source, or the nearest place in the image."""
    out = np.empty_like(x)
    height, width = x.shape[2:]
    for i in range(height):
        for j in range(width):
            source = min(max(i - down, 0), height - 1), min(max(j - right, 0), width - 1)
            out[:, :, i, j] = x[:, :, source[0], source[1]]
    return out


@given(seeds, sizes, st.integers(-50, 50), st.integers(-50, 50))
@CASES
def test_a_shift_repeats_the_edge(
    seed: int, size: tuple[int, int, int], down: int, right: int
) -> None:
    x = images(seed, size)
    np.testing.assert_array_equal(shift(x, down, right).numpy(), moved(x.numpy(), down, right))


@given(seeds, sizes, st.sampled_from([0.5, 0.9, 1.0, 1.1, 2.0]))
@CASES
def test_rescaling_is_scipy_s_about_the_centre(
    seed: int, size: tuple[int, int, int], factor: float
) -> None:
    x = images(seed, size)
    found = rescale(x, factor).numpy()
    centre = (np.array(size[1:]) - 1) / 2
    for b in range(size[0]):
        for c in range(3):
            again = affine_transform(
                x[b, c].numpy(),
                np.array([1 / factor, 1 / factor]),
                offset=centre - centre / factor,
                order=1,
                mode="nearest",
            )
            np.testing.assert_allclose(found[b, c], again, atol=1e-9)


def test_rescaling_enlarges() -> None:
    """A square of 20 pixels has 22 or 18 afterwards, and stays where it was."""
    x = torch.zeros(1, 3, 60, 60)
    x[:, :, 20:40, 20:40] = 1
    for factor, side in ((1.1, 22), (0.9, 18)):
        found = rescale(x, factor)
        assert float(found[0, 0].sum()) == pytest.approx(side**2, rel=0.02)
        torch.testing.assert_close(found, found.flip(2, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("side", "by"), [(1, 1), (8, 1), (15, 1), (16, 2), (32, 4), (227, 4)])
def test_a_shift_suits_the_canvas(side: int, by: int) -> None:
    assert (
        most_shift(torch.zeros(1, 3, side, 300)) == most_shift(torch.zeros(1, 3, 300, side)) == by
    )


@given(seeds, sizes)
@CASES
def test_the_disturbances_are_what_they_are_called(seed: int, size: tuple[int, int, int]) -> None:
    x = images(seed, size)
    by = most_shift(x)
    plain = x.numpy()
    right = moved(plain, 0, by)
    told = {
        "left": moved(plain, 0, -by),
        "right": right,
        "up": moved(plain, -by, 0),
        "down": moved(plain, by, 0),
        "blurred": gaussian_filter(plain, (0, 0, 1, 1)),
        "smaller": rescale(x, 0.9).numpy(),
        "larger": rescale(x, 1.1).numpy(),
        "right and blurred": gaussian_filter(right, (0, 0, 1, 1)),
    }
    assert told.keys() == EIGHT.keys()
    for name, again in told.items():
        np.testing.assert_allclose(EIGHT[name](x).numpy(), again, atol=1e-12)


@pytest.mark.parametrize("name", EIGHT)
@given(seeds, sizes)
@CASES
def test_laws_of_disturbances(name: str, seed: int, size: tuple[int, int, int]) -> None:
    """Same shape and type, nothing brighter or darker than before, an even picture stays."""
    change, x = EIGHT[name], images(seed, size).float()
    before = x.clone()
    found = change(x)
    assert torch.equal(x, before)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    assert float(found.max()) <= float(x.max()) + 1e-4
    assert float(found.min()) >= float(x.min()) - 1e-4
    torch.testing.assert_close(change(torch.full_like(x, 7)), torch.full_like(x, 7))
    alone = torch.cat([change(image[None]) for image in x])
    torch.testing.assert_close(found, alone)


@pytest.mark.parametrize("name", EIGHT)
def test_every_disturbance_changes_something(name: str) -> None:
    for side in (4, 11, 64):
        x = images(0, (1, side, side))
        assert not torch.allclose(EIGHT[name](x), x)


def test_robustness_is_the_share_of_what_is_survived() -> None:
    """The first leads always, the second never, the third unless it was moved sideways."""
    x = torch.zeros(3, 3, 8, 8)
    x[2, :, :, 3] = 9

    def leads(shown: Tensor) -> Tensor:
        still = shown[2, 0, :, 3].max() > 3
        return torch.stack([torch.tensor(True), torch.tensor(False), still])

    assert robustness(leads, x).tolist() == [1.0, 0.0, 5 / 8]


def test_robustness_never_asks_about_the_picture_itself() -> None:
    x, asked = images(0, (2, 12, 12)), []

    def leads(shown: Tensor) -> Tensor:
        asked.append(shown)
        return torch.tensor([True, False])

    robustness(leads, x)
    assert len(asked) == len(EIGHT) == 8
    assert not any(torch.equal(shown, x) for shown in asked)


@given(seeds, sizes)
@CASES
def test_variation_pixel_by_pixel(seed: int, size: tuple[int, int, int]) -> None:
    x = images(seed, size)
    _, height, width = size
    for image, found in zip(x.numpy(), variation(x), strict=True):
        total = 0.0
        for i in range(height):
            for j in range(width):
                down = image[:, i + 1, j] - image[:, i, j] if i + 1 < height else np.zeros(3)
                right = image[:, i, j + 1] - image[:, i, j] if j + 1 < width else np.zeros(3)
                total += float(np.sqrt((down**2 + right**2).sum() / 3))
        assert float(found) == pytest.approx(total / (height * width), abs=1e-9)


def test_variation_is_in_grey_levels() -> None:
    """One step of 10 levels between the halves of a picture 20 wide: 10 in each twentieth pixel."""
    x = torch.zeros(1, 3, 6, 20)
    x[..., 10:] = 10
    assert float(variation(x)) == pytest.approx(0.5)


@given(seeds, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)))
@CASES
def test_grey_pixel_by_pixel(seed: int, size: tuple[int, int, int]) -> None:
    x = images(seed, size) ** 3 / 50
    for image, found in zip(x.numpy(), grey_share(x), strict=True):
        pixels = np.abs(image).max(axis=0)
        threshold = max(pixels.max() / 10, 0.1)
        assert float(found) == pytest.approx((pixels < threshold).mean())


def test_grey_is_what_looks_grey() -> None:
    x = torch.zeros(4, 3, 10, 10)
    x[1] = 0.09  # too faint to be anything
    x[2, :, :5] = 50  # half a picture
    x[3, 1] = 40  # one channel is enough
    assert grey_share(x).tolist() == pytest.approx([1, 1, 0.5, 0])
    assert grey_share(x * 3)[2:].tolist() == pytest.approx([0.5, 0])


def test_clipped_counts_what_the_ascent_clips() -> None:
    """Exactly at the updater's own bounds, whatever their rounding."""
    updater = PixelUpdater(None, -MEAN, 255 - MEAN)  # type: ignore[arg-type]
    x = torch.zeros(3, 3, 10, 10)
    x[0, :, :2] = 999
    x[1, :, :3] = -999
    x[2] = 100
    found = clipped_share(x.clamp(updater.low, updater.high), MEAN)
    assert found.tolist() == pytest.approx([0.2, 0.3, 0])


@given(seeds, st.sampled_from([0.5, 5.0, 80.0]))
@CASES
def test_all_scores_of_each_image(seed: int, scale: float) -> None:
    x = images(seed, (4, 12, 10), scale).float().clamp(-MEAN, 255 - MEAN)
    found = score(x, torch.arange(4.0), lambda shown: shown[:, 0, 0, 0] > 0, MEAN)
    for field in fields(found):
        values = getattr(found, field.name)
        assert (values.shape, values.dtype) == ((4,), torch.float32)
        assert bool(torch.isfinite(values).all())
    for share in (found.robustness, found.grey, found.clipped):
        assert bool(((share >= 0) & (share <= 1)).all())
    again = x.numpy().reshape(4, -1).std(axis=1, ddof=1)
    np.testing.assert_allclose(found.deviation, again, rtol=1e-5)
    np.testing.assert_allclose(found.roughness, variation(x).numpy() / again, rtol=1e-5)
    one = score(x[1:2], torch.tensor([1.0]), lambda shown: shown[:, 0, 0, 0] > 0, MEAN)
    for field in fields(found):
        torch.testing.assert_close(getattr(one, field.name), getattr(found, field.name)[1:2])


def test_roughness_does_not_see_contrast() -> None:
    noise = images(0, (1, 60, 60), 1.0).float()
    smooth = torch.from_numpy(gaussian_filter(noise.numpy(), (0, 0, 2, 2)))
    x = torch.cat([noise, 50 * noise, smooth, torch.zeros_like(noise)])
    found = score(x, torch.zeros(4), lambda shown: torch.ones(4, dtype=torch.bool), MEAN).roughness
    assert found[:2].tolist() == pytest.approx([1.92, 1.92], abs=0.05)
    assert found[2] < 0.8
    assert found[3] == torch.inf


def made(**given: list[float]) -> Scores:
    """Scores of which only the given ones differ."""
    count = len(next(iter(given.values())))
    same = dict.fromkeys((field.name for field in fields(Scores)), [1.0] * count)
    return Scores(**{name: torch.tensor(values) for name, values in {**same, **given}.items()})


def test_each_score_sorts_by_itself() -> None:
    values = [2.0, 3.0, 1.0]
    up, down = [1, 0, 2], [2, 0, 1]
    wanted = {
        "activation": (made(activation=values), up),
        "robustness": (made(robustness=values), up),
        "variation": (made(variation=values), down),
        "roughness": (made(variation=values), down),
        "grey": (made(grey=values), down),
        "balanced": (made(robustness=values), up),
    }
    assert wanted.keys() == SCORES.keys()
    for name, (scores, ranking) in wanted.items():
        assert order(scores, name) == ranking, name


@pytest.mark.parametrize("by", SCORES)
def test_equal_images_stay_in_order_and_the_unmeasured_come_last(by: str) -> None:
    assert order(made(grey=[1.0] * 5), by) == [0, 1, 2, 3, 4]
    nan, inf = float("nan"), float("inf")
    broken = [nan, 1.0, -inf]
    scores = made(activation=broken, robustness=broken, variation=[nan, 1, inf], grey=[nan, 1, inf])
    assert order(scores, by)[0] == 1


def test_a_score_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="no score 'robust'; did you mean 'robustness'"):
        order(made(grey=[1.0]), "robust")


@given(st.data(), st.integers(1, 30))
@CASES
def test_balanced_puts_robustness_first_and_then_adds_two_ranks(
    data: st.DataObject, count: int
) -> None:
    def drawn(values: list[float]) -> list[float]:
        return data.draw(st.lists(st.sampled_from(values), min_size=count, max_size=count))

    eighths = drawn([i / 8 for i in range(9)])
    strong, rough = drawn([0.5, 1, 2, 3, 50]), drawn([0.25, 0.5, 1, 2])

    def merit(i: int) -> tuple[float, float]:
        weaker = sum(value < strong[i] for value in strong)
        rougher = sum(value > rough[i] for value in rough)
        return eighths[i], weaker + rougher

    scores = made(robustness=eighths, activation=strong, variation=rough)
    again = sorted(range(count), key=merit, reverse=True)  # stable: the earlier of equal ones
    assert order(scores) == order(scores, "balanced") == again


def test_balanced_does_not_prefer_faint_pictures() -> None:
    scores = made(variation=[1.0, 0.1], deviation=[2.0, 0.05])
    assert order(scores) == [0, 1]
    assert order(scores, "variation") == [1, 0]
    assert order(replace(scores, deviation=torch.tensor([2.0, 0.0]))) == [0, 1]
