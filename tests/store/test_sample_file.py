"""sample.h5: the same bytes however its rows arrive, and values to 11 bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Axis, Layer, ReceptiveField
from cnnvis_cli.store.sample_file import IMAGES_PER_CHUNK, SampledImages, SampleFile, scales

FIELD = ReceptiveField(Axis(), Axis())
LAYERS = (
    Layer("conv1", "0", "conv", 3, (2, 3), FIELD),
    Layer("fc2", "1", "fc", 5, (1, 1), FIELD),
)
PLAN = {
    **dict.fromkeys(("model", "weights_sha256", "precision", "decode"), "x"),
    **{"preprocessing": {}, "layers": ["conv1", "fc2"], "sample": 300},
}
COUNT = 300  # images: two bands and a rest


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Values over 70 octaves and their places, some missing, some infinite, a channel of zeros."""
    rng = np.random.default_rng(0)
    value = (rng.standard_normal((COUNT, 8)) * 10.0 ** rng.integers(-9, 12, 8)).astype(np.float32)
    place = rng.integers(0, 6, (COUNT, 8)).astype(np.int32)
    value[:, 4] = 0
    value[7, 5] = np.inf
    value[rng.random((COUNT, 8)) < 0.1] = np.nan
    return value, np.where(np.isnan(value), -1, place).astype(np.int32)


def publish(path: Path, rows: tuple[np.ndarray, np.ndarray], cuts: list[int]) -> SampleFile:
    value, place = rows
    finite = np.where(np.isfinite(value), np.abs(value), 0)
    images = SampledImages(
        np.arange(COUNT),
        np.array([f"{i}.png".encode() for i in range(COUNT)]),
        np.zeros(COUNT, np.int32),
        np.zeros(COUNT, np.bool_),
        np.zeros(COUNT, np.uint32),
    )
    pieces = zip(np.split(value, cuts), np.split(place, cuts), strict=True)
    file = SampleFile(path)
    file.publish(PLAN, images, LAYERS, finite.max(axis=0), pieces)
    return file


def test_any_cut_of_the_rows_gives_the_same_bytes(
    tmp_path: Path, rows: tuple[np.ndarray, np.ndarray]
) -> None:
    whole = publish(tmp_path / "whole.h5", rows, []).path.read_bytes()
    for cuts in (
        [IMAGES_PER_CHUNK],
        [1, 2, 3, 250],
        list(range(1, COUNT, 7)),
        [0, 129, 129, COUNT],
    ):
        assert publish(tmp_path / "cut.h5", rows, cuts).path.read_bytes() == whole, cuts


def test_values_are_rounded_to_eleven_bits(
    tmp_path: Path, rows: tuple[np.ndarray, np.ndarray]
) -> None:
    file = publish(tmp_path / "sample.h5", rows, [50])
    value, place = rows
    found = np.concatenate([file.values("conv1"), file.values("fc2")], axis=1)
    stored = np.concatenate([file.places("conv1"), file.places("fc2")], axis=1)
    assert file.layers() == ["conv1", "fc2"]
    np.testing.assert_array_equal(stored, place)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(value))
    known = np.isfinite(value)
    np.testing.assert_array_equal(found[~known], value[~known])
    apart = np.abs(found[known] - value[known])
    assert (apart <= np.abs(value[known]) * 2.0**-11).all()
    for column in range(8):  # rounding keeps the order
        order = np.argsort(value[:, column][known[:, column]], kind="stable")
        assert (np.diff(found[:, column][known[:, column]][order]) >= 0).all()
    with pytest.raises(UsageError, match="holds no conv9"):
        file.values("conv9")


def test_a_scale_is_a_power_of_two_below_half_floats_limit() -> None:
    sizes = np.array([0, 1e-45, 1e-30, 0.999, 1, 1.5, 3e38], np.float32)
    found = scales(sizes)
    assert (np.frexp(found)[0] == 0.5).all()  # powers of two
    assert (sizes / found < 2**15).all()
    assert (sizes[2:] / found[2:] >= 2**14).all()
    assert found[0] == 1
