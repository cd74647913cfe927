"""Line plots: a line goes through its points, and the axis encloses them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnvis_cli.figure.lines import INKS, Plot, plots, round_numbers
from cnnvis_cli.figure.sheets import Caption

CAPTION = Caption("a title", "a note")
NUMBERS = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)


@given(NUMBERS, NUMBERS)
def test_round_numbers_enclose_the_range_with_few_ticks(one: float, other: float) -> None:
    low, high = sorted((one, other))
    ticks = round_numbers(low, high)
    step = ticks[1] - ticks[0]
    slack = 1e-9 * max(abs(low), abs(high), step)
    assert ticks[0] <= low + slack
    assert high <= ticks[-1] + slack
    assert 2 <= len(ticks) <= 7
    leading = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(leading - k) for k in (1, 2, 5, 10)) < 1e-3


def panel(values: list[list[float]], best: list[int] | None = None) -> Plot:
    array = np.array(values, np.float32)
    return Plot("7", np.arange(array.shape[1]) * 8, array, np.array(best or [0] * len(array)))


def inked(plot: Plot, run: int) -> np.ndarray:
    """Return where on the sheet the colour of a run is, rows and columns."""
    sheet = plots([plot], CAPTION).pixels.astype(int)
    return np.argwhere((np.abs(sheet - INKS[run]).sum(axis=2)) < 90)


def test_a_rising_line_rises_and_ends_where_it_should() -> None:
    places = inked(panel([[0, 1, 2, 3, 4]]), 0)
    left = places[places[:, 1] == places[:, 1].min() + 6][:, 0].mean()
    right = places[places[:, 1] == places[:, 1].max()][:, 0].mean()
    assert right < left - 50  # rows count downwards
    assert np.ptp(places[:, 1]) > 150


def test_the_dot_is_at_the_best_step() -> None:
    flat = panel([[1.0] * 11], best=[40])
    places = inked(flat, 0)
    columns, counts = np.unique(places[:, 1], return_counts=True)
    middle = columns[counts == counts.max()].mean()
    assert abs(middle - (columns.min() + columns.max()) / 2) < 3


@pytest.mark.parametrize(
    "values",
    [
        [[float("nan")] * 4],
        [[1.0]],
        [[2.0, 2.0, 2.0]],
        [[1e-9, 2e-9], [1e-9, float("nan")]],
        [[-1e9, 1e9]],
    ],
)
def test_strange_values_are_drawn_too(values: list[list[float]]) -> None:
    sheet = plots([panel(values)] * 3, CAPTION).pixels
    assert (sheet != 255).any()
    assert (sheet[-8:] == 255).all()


def test_a_run_that_ended_early_ends_early() -> None:
    whole = inked(panel([[0, 1, 2, 3, 4, 5]]), 0)
    broken = inked(panel([[0, 1, 2, *[float("nan")] * 3]]), 0)
    assert np.ptp(broken[:, 1]) < 0.6 * np.ptp(whole[:, 1])
