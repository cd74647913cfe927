"""Random search and sweeps: rows are reproducible, and can be saved in a plan."""

from __future__ import annotations

import doctest
import re
import tomllib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from cnnvis_cli.ascent import search
from cnnvis_cli.ascent.regularizers import Blur, Decay, TotalVariation
from cnnvis_cli.ascent.search import (
    PARAMETERS,
    SWEPT,
    Combination,
    Ranges,
    draw_rows,
    every_sweep,
    spread_values,
    sweep,
    toml,
)
from cnnvis_cli.ascent.steps import Constant, Normalized, Progress, Progress01
from cnnvis_cli.ascent.styles import STYLES, PixelParameterization, Style, read_style, table_1
from cnnvis_cli.errors import UsageError
from cnnvis_cli.validation import read_settings

CASES = settings(max_examples=40, deadline=None)
PARTS = ("decay", "blur_width", "norm", "contribution", "tv")
ALL_ON = Ranges(absent=0, tv_absent=0)


def column(rows: tuple[Combination, ...], name: str) -> list[float]:
    return [getattr(row, name) for row in rows]


def test_the_example_in_the_docs() -> None:
    assert doctest.testmod(search).failed == 0


@given(st.integers(-5, 2**40), st.integers(0, 20), st.integers(0, 20))
@CASES
def test_a_longer_search_begins_with_a_shorter_one(seed: int, few: int, more: int) -> None:
    rows = draw_rows(Ranges(), few + more, seed)
    assert rows[:few] == draw_rows(Ranges(), few, seed)
    assert column(rows, "number") == list(range(few + more))


def test_rows_and_seeds_differ() -> None:
    rows = {replace(row, number=0) for seed in range(3) for row in draw_rows(ALL_ON, 50, seed)}
    assert len(rows) == 150


def test_the_same_rows_on_every_machine() -> None:
    assert draw_rows(Ranges(), 9, 0)[8].label() == "decay 5e-05 · blur 0.52/2 · rate 0.17x"


@given(st.integers(0, 999))
@CASES
def test_drawn_values_lie_in_their_ranges_with_two_digits(seed: int) -> None:
    for row in draw_rows(ALL_ON, 5, seed):
        for name in PARAMETERS:
            low, high = getattr(ALL_ON, name)
            value = getattr(row, name)
            assert low <= value <= high
            assert value == float(f"{value:.2g}")
        assert isinstance(row.blur_every, int)


@pytest.mark.parametrize("name", ["decay", "tv", "rate"])
def test_proportional_parameters_are_drawn_evenly_by_their_logarithm(name: str) -> None:
    low, high = getattr(ALL_ON, name)
    values = np.log(column(draw_rows(ALL_ON, 2000, 1), name))
    share = (np.sort(values) - np.log(low)) / np.log(high / low)
    np.testing.assert_allclose(share, np.linspace(0, 1, 2000), atol=0.05)


@pytest.mark.parametrize("name", ["blur_width", "norm", "contribution"])
def test_the_others_are_drawn_evenly(name: str) -> None:
    low, high = getattr(ALL_ON, name)
    share = (np.sort(column(draw_rows(ALL_ON, 2000, 1), name)) - low) / (high - low)
    np.testing.assert_allclose(share, np.linspace(0, 1, 2000), atol=0.08)  # two digits of 1.2


def test_every_whole_number_comes_up_equally_often() -> None:
    values, counts = np.unique(column(draw_rows(ALL_ON, 4000, 1), "blur_every"), return_counts=True)
    assert values.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    np.testing.assert_allclose(counts, 500, atol=80)


@pytest.mark.parametrize("absent", [0.0, 0.2, 0.5, 1.0])
def test_each_regularizer_is_absent_by_chance(absent: float) -> None:
    rows = draw_rows(Ranges(absent=absent, tv_absent=absent), 2000, 2)
    gone = np.array([[not getattr(row, name) for name in PARTS] for row in rows])
    np.testing.assert_allclose(gone.mean(axis=0), absent, atol=0.04)
    none = gone.all(axis=1).mean()  # they are drawn independently
    assert none == pytest.approx(absent**5, abs=0.04)
    assert all(bool(row.blur_width) == bool(row.blur_every) for row in rows)
    assert all(row.rate for row in rows)


def test_total_variation_stays_away_unless_asked_for() -> None:
    assert not any(column(draw_rows(Ranges(), 300, 0), "tv"))


def test_one_range_changes_no_other_parameter() -> None:
    usual = draw_rows(ALL_ON, 20, 0)
    other = draw_rows(replace(ALL_ON, decay=(0.1, 0.2), absent=0), 20, 0)
    assert [replace(row, decay=0) for row in usual] == [replace(row, decay=0) for row in other]
    for row, fewer in zip(usual, draw_rows(Ranges(tv_absent=0.3), 20, 0), strict=True):
        for name in PARAMETERS:
            assert getattr(fewer, name) in (0, getattr(row, name))


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_range_may_be_one_value(name: str) -> None:
    one = (3, 3) if name == "blur_every" else (0.5, 0.5)
    change: dict[str, Any] = {name: one}
    ranges = replace(ALL_ON, **change)
    assert set(column(draw_rows(ranges, 5, 0), name)) == {one[0]}
    assert spread_values(name, ranges, 4) == (one[0],)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decay": [0.5, 0.1]}, "decay = [0.5, 0.1] must have its lowest number first"),
        ({"decay": [0, 0.1]}, "must begin above 0"),
        ({"decay": [0.1, 1.5]}, "must be at most 1"),
        ({"blur_width": [-1, 1]}, "must be at least 0"),
        ({"blur_width": [1, float("inf")]}, "must be finite"),
        ({"blur_width": [float("nan"), 1]}, "must be finite"),
        ({"blur_every": [0, 4]}, "must be at least 1"),
        ({"blur_every": [1.5, 4]}, "is not a whole number"),
        ({"norm": [0, 101]}, "must be at most 100"),
        ({"norm": [True, 50]}, "is not a number"),
        ({"contribution": [-1, 50]}, "must be at least 0"),
        ({"tv": [0, 1]}, "must begin above 0"),
        ({"rate": [0, 1]}, "must begin above 0"),
        ({"rate": [1]}, "is not a list of two numbers"),
        ({"rate": [1, 2, 3]}, "is not a list of two numbers"),
        ({"rate": 1}, "is not a list"),
        ({"absent": 1.1}, "must be at most 1"),
        ({"tv_absent": float("nan")}, "must be finite"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError):
        Ranges(**change)
    with pytest.raises(UsageError, match=re.escape(f"here: {next(iter(change))} = ")) as error:
        read_settings(Ranges, change, "here")
    assert words in str(error.value)
    assert next(iter(change)) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decay": -0.1}, "decay = -0.1 must be at least 0"),
        ({"norm": 101}, "norm = 101 must be at most 100"),
        ({"rate": float("nan")}, "rate = nan must be finite"),
        ({"blur_every": 1.5}, "is not a whole number"),
        ({"blur_width": 1.0, "blur_every": 0}, "also needs blur_every"),
    ],
)
def test_rows_that_make_no_sense_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError):
        Combination(**change)
    with pytest.raises(UsageError, match=re.escape(words)):
        read_settings(Combination, change, "here")


def test_a_row_is_a_style() -> None:
    row = Combination(
        12, decay=0.003, blur_width=0.8, blur_every=2, norm=30, contribution=5, rate=2.5
    )
    style = row.style(300, Constant(123.456))
    assert style == Style("row012", table_1(0.003, 0.8, 2, 30, 5), Constant(309.0), 300)
    assert style.regularizers[1] == Blur(0.8, 2)
    assert row.style(300, Normalized(2)).step == Normalized(5.0)
    smooth = replace(row, tv=0.1).style(300, Constant(1.0))
    assert smooth.regularizers == (*style.regularizers, TotalVariation(0.1))


def test_labels_leave_out_what_is_absent() -> None:
    assert Combination().label() == "plain"
    assert Combination(rate=0.3).label() == "rate 0.3x"
    full = Combination(1, 1e-05, 0.8, 4, 30, 90, 0.02, 12)
    assert full.label() == (
        "decay 1e-05 · blur 0.8/4 · norm 30 · contribution 90 · tv 0.02 · rate 12x"
    )


@given(st.integers(0, 999))
@CASES
def test_what_a_label_says_is_what_is_used(seed: int) -> None:
    """The row can be read back from its label."""
    (*_, row) = draw_rows(ALL_ON, 3, seed)
    words = dict(part.split() for part in row.label().split(" · "))
    width, every = words.pop("blur").split("/")
    rate = words.pop("rate", "1x").removesuffix("x")
    values = {name: float(word) for name, word in words.items()}
    assert row == Combination(
        2, **values, blur_width=float(width), blur_every=int(every), rate=float(rate)
    )


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_a_spread_goes_from_end_to_end_and_up(name: str, count: int) -> None:
    low, high = getattr(Ranges(), name)
    found = spread_values(name, Ranges(), count)
    assert len(found) == count
    assert found[0] == low
    assert count == 1 or found[-1] == high
    assert list(found) == sorted(set(found))
    log = name in ("decay", "tv", "rate")
    even = (np.geomspace if log else np.linspace)(low, high, count)
    np.testing.assert_allclose(found, even, rtol=0.01, atol=0.99 if name == "blur_every" else 1e-9)


def test_a_spread_over_whole_numbers_has_no_more_than_there_are() -> None:
    assert spread_values("blur_every", Ranges(), 30) == tuple(range(1, 9))


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_sweep_changes_one_parameter(name: str) -> None:
    base = Combination(7, blur_width=0.5, norm=10)
    values = spread_values(name, Ranges(), 4)
    rows = sweep(name, values, base)
    assert column(rows, name) == list(values)
    assert column(rows, "number") == [7, 8, 9, 10]
    change: dict[str, Any] = {name: getattr(base, name)}
    assert {replace(row, number=7, **change) for row in rows} == {base}


def test_a_sweep_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="no parameter 'dekay'; did you mean 'decay'"):
        sweep("dekay", [0.1], Combination())
    with pytest.raises(UsageError, match="no parameter 'dekay'; did you mean 'decay'"):
        spread_values("dekay", Ranges(), 3)
    with pytest.raises(UsageError, match="needs a base row with a blur_width"):
        sweep("blur_every", [1, 2], Combination())
    with pytest.raises(ValidationError, match=r"norm\n.* less than or equal to 100"):
        sweep("norm", [120], Combination())
    with pytest.raises(ValidationError, match=r"blur_every\n.* valid integer"):
        sweep("blur_every", [1.5], Combination(blur_width=1))
    with pytest.raises(UsageError, match="at least 1"):
        spread_values("norm", Ranges(), 0)
    with pytest.raises(UsageError, match="at least 2"):
        every_sweep(Ranges(), 1)
    with pytest.raises(UsageError, match="range of norm is too narrow for 3"):
        every_sweep(Ranges(norm=(50, 50)), 4)


@pytest.mark.parametrize("values", [2, 3, 9])
def test_every_regularizer_is_swept_by_itself_from_none(values: int) -> None:
    sheet = every_sweep(Ranges(), values)
    assert tuple(sheet) == SWEPT
    rows = [row for rows in sheet.values() for row in rows]
    assert column(tuple(rows), "number") == list(range(5 * values))
    for name, swept in sheet.items():
        assert len(set(column(swept, name))) == values
        assert swept[0] == Combination(swept[0].number)
        for row in swept[1:]:
            assert [part for part in PARTS if getattr(row, part)] == [name]
            assert row.blur_every == 4


numbers = st.floats(0, 1e9, allow_subnormal=False) | st.integers(0, 100)
steps = (
    st.builds(Constant, numbers)
    | st.builds(Progress, numbers, numbers)
    | st.builds(Progress01, numbers, numbers, numbers)
)
shares = st.floats(0, 1, allow_subnormal=False)
widths = st.floats(0, 1000, allow_subnormal=False)
parts = st.builds(Decay, shares) | st.builds(Blur, widths, st.integers(0, 9))
styles = st.builds(
    Style,
    st.text(),
    st.lists(parts | st.builds(TotalVariation, widths)).map(tuple),
    steps,
    st.integers(1, 9999),
)
names = st.text("abcXYZ0189-_", min_size=1).filter(lambda name: name not in STYLES)


def read_back(text: str) -> Style:
    ((name, table),) = tomllib.loads(text)["styles"].items()
    return read_style(name, table, "plan.toml")


@given(names, styles)
@CASES
def test_a_plan_reads_back_the_style_that_it_keeps(name: str, style: Style) -> None:
    again = read_back(toml(name, style))
    assert again == replace(style, name=name)
    assert again.parameters() == style.parameters()


@given(st.integers(0, 999))
@CASES
def test_a_plan_keeps_rows(seed: int) -> None:
    for row in draw_rows(Ranges(tv_absent=0.5), 5, seed):
        style = row.style(250, Normalized(7.3))
        assert read_back(toml(style.name, style)) == style


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_a_plan_keeps_every_style_of_pixels(style: Style) -> None:
    if style.image == PixelParameterization():
        assert read_back(toml("mine", style)) == replace(style, name="mine", look="")


def test_a_plan_s_lines_can_be_read_by_people() -> None:
    style = Combination(1, decay=0.003, blur_width=0.8).style(300, Constant(20))
    assert toml("soft", style) == (
        "[styles.soft]\n"
        "iterations = 300\n"
        'step = { kind = "constant", rate = 20.0 }\n'
        "regularizers = [\n"
        '  { kind = "decay", rate = 0.003 },\n'
        '  { kind = "blur", width = 0.8, every = 4 },\n'
        '  { kind = "norm", percentile = 0.0 },\n'
        '  { kind = "contribution", percentile = 0.0 },\n'
        "]\n"
    )


@pytest.mark.parametrize("name", ["", "a b", "a.b", 'a"', "ü", "a\n", "[x]"])
def test_a_name_that_a_plan_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="use letters, digits, - and _ only"):
        toml(name, STYLES["3"])


def test_a_built_in_style_is_not_replaced() -> None:
    with pytest.raises(UsageError, match="'3' is a built-in style's"):
        toml("3", STYLES["3"])


def test_a_style_of_another_kind_of_image_cannot_be_kept() -> None:
    other: Any = object()
    with pytest.raises(UsageError, match="keeps styles of pixels, not of object"):
        toml("mine", replace(STYLES["3"], image=other))
