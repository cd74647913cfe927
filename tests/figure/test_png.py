"""PNG files: another decoder reads back every pixel, every text, and how large it is in print."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from cnnvis_cli.arrays import Pixels
from cnnvis_cli.figure.png import ROWS_AT_ONCE, encode


def picture(height: int, width: int, noise: int, seed: int = 0) -> Pixels:
    """Return a colour gradient with noise of so many levels; 256 is only noise, 0 is flat."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    slope = np.stack([rows, columns, rows + columns], axis=-1) * bool(noise)
    found: Pixels = (slope + random.integers(0, noise + 1, slope.shape)).astype(np.uint8)
    return found


def opened(content: bytes) -> Image.Image:
    """Return what Pillow makes of a file; it checks every chunk's sum."""
    image = Image.open(io.BytesIO(content), formats=("PNG",))
    image.load()
    return image


@given(
    st.integers(1, 2 * ROWS_AT_ONCE + 3),
    st.integers(1, 40),
    st.sampled_from([0, 1, 9, 256]),
    st.integers(0, 99),
)
@example(1, 1, 256, 0)
@example(1, 37, 256, 0)
@example(ROWS_AT_ONCE, 5, 256, 0)
@example(ROWS_AT_ONCE + 1, 5, 256, 0)
@example(2 * ROWS_AT_ONCE + 1, 1, 0, 0)
@settings(max_examples=60, deadline=None)
def test_every_pixel_is_read_back(height: int, width: int, noise: int, seed: int) -> None:
    pixels = picture(height, width, noise, seed)
    image = opened(encode(pixels, {}))
    assert (image.mode, image.size) == ("RGB", (width, height))
    assert np.array_equal(np.asarray(image), pixels)


def test_a_view_with_strides_is_read_back() -> None:
    pixels = picture(90, 60, 256)
    for view in (pixels[::2, ::3], pixels[::-1], pixels.transpose(1, 0, 2), pixels[..., ::-1]):
        assert np.array_equal(np.asarray(opened(encode(view, {}))), view)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=300))
@settings(max_examples=50, deadline=None)
def test_any_text_is_read_back(value: str) -> None:
    image = opened(encode(picture(2, 3, 9), {"Title": value, "cnnvis": "{}"}))
    assert (image.info["Title"], image.info["cnnvis"]) == (value, "{}")


def test_a_long_text_is_read_back() -> None:
    value = "conv5 · Köpfe, 顔, лица " * 30_000
    assert opened(encode(picture(2, 3, 9), {"cnnvis": value})).info["cnnvis"] == value


@pytest.mark.parametrize("dpi", [1, 72, 300, 1200])
def test_pixels_an_inch_are_read_back(dpi: int) -> None:
    found = opened(encode(picture(2, 3, 9), {}, dpi)).info["dpi"]
    np.testing.assert_allclose(found, (dpi, dpi), atol=0.02)  # the file counts them by the metre


def test_without_a_size_in_print_none_is_stated() -> None:
    assert "dpi" not in opened(encode(picture(2, 3, 9), {})).info


def test_the_same_picture_is_the_same_file_and_another_is_not() -> None:
    pixels, text = picture(ROWS_AT_ONCE + 9, 31, 256), {"Title": "one", "cnnvis": "two"}
    once = encode(pixels, text, 300)
    assert encode(pixels.copy(), dict(text), 300) == once
    changed = pixels.copy()
    changed[-1, -1, -1] += 1
    others = [encode(changed, text, 300), encode(pixels, text, 301), encode(pixels, {}, 300)]
    assert once not in others


def test_what_is_smooth_or_repeats_is_small() -> None:
    raw = 300 * 200 * 3
    for pixels in (np.full((300, 200, 3), 255, np.uint8), picture(300, 200, 1) // 2 * 2):
        assert len(encode(pixels, {})) < raw / 4
    assert len(encode(picture(300, 200, 256), {})) < 1.01 * raw
