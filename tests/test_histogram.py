"""The mean of rectified values from counts is nearly that of the values themselves."""

from __future__ import annotations

import numpy as np
import pytest

from cnnvis_cli.histogram import BINS, bins, rectified_mean


@pytest.mark.parametrize("spread", [1e-3, 1.0, 500.0])
@pytest.mark.parametrize("shift", [-2.0, 0.0, 3.0])
def test_the_rectified_mean_is_known_to_a_hundredth(spread: float, shift: float) -> None:
    values = (np.random.default_rng(0).normal(shift, 1, 20000) * spread).astype(np.float32)
    counts = np.bincount(bins(values), minlength=BINS)[None]
    assert rectified_mean(counts)[0] == pytest.approx(values.clip(0).mean(), rel=0.01)


def test_what_is_never_on_has_none_and_what_was_never_seen_is_unknown() -> None:
    zeros = np.bincount(bins(np.zeros(5, np.float32)), minlength=BINS)
    below = np.bincount(bins(np.full(5, -3, np.float32)), minlength=BINS)
    found = rectified_mean(np.stack([zeros, below, np.zeros(BINS, np.int64)]))
    assert found[:2].tolist() == [0, 0]
    assert np.isnan(found[2])
