"""The nouns: units as text, boxes, and receptive fields against sets of pixels."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Axis, Box, ReceptiveField, Unit, parse_units, units_text

WINDOWS = st.tuples(
    st.integers(1, 5),  # kernel
    st.integers(1, 3),  # stride
    st.integers(0, 3),  # padding
    st.integers(1, 3),  # dilation
)
AXES = st.builds(Axis, st.integers(1, 40), st.integers(1, 8), st.integers(-30, 30))


def seen(windows: list[tuple[int, int, int, int]], index: int) -> set[int]:
    """Return the input pixels of one output, found by walking back from it, tap by tap."""
    pixels = {index}
    for kernel, stride, padding, dilation in reversed(windows):
        pixels = {
            place * stride - padding + tap * dilation for place in pixels for tap in range(kernel)
        }
    return pixels


@given(st.lists(WINDOWS, max_size=4), st.integers(-3, 20))
def test_a_field_is_what_walking_back_from_an_output_reaches(
    windows: list[tuple[int, int, int, int]], index: int
) -> None:
    axis = Axis()
    for window in windows:
        axis = axis.then(*window)
    pixels = seen(windows, index)
    assert axis.interval(index) == (min(pixels), max(pixels) + 1)


@given(AXES, AXES, st.integers(-5, 20))
def test_two_branches_see_the_smallest_interval_that_covers_both(
    one: Axis, other: Axis, index: int
) -> None:
    other = Axis(other.size, one.stride, other.start)
    both = set(range(*one.interval(index))) | set(range(*other.interval(index)))
    assert one.join(other).interval(index) == (min(both), max(both) + 1)
    assert one.join(other) == other.join(one)
    assert one.join(one) == one


def test_branches_of_different_strides_cannot_meet() -> None:
    with pytest.raises(ValueError, match="strides 2 and 4"):
        Axis(3, 2).join(Axis(3, 4))


def test_a_box_takes_rows_from_rows_and_columns_from_columns() -> None:
    field = ReceptiveField(Axis(5, 2, -1), Axis(7, 3, -4))
    assert field.box(2, 10) == Box(3, 26, 8, 33)
    assert field.size == field.box(2, 10).size == (5, 7)
    assert field.stride == (2, 3)


@given(st.integers(-3, 9), st.integers(-3, 9))
def test_an_output_that_sees_everything_sees_the_whole_input_wherever_it_is(
    row: int, column: int
) -> None:
    whole = ReceptiveField.whole((20, 30))
    assert whole.box(row, column) == Box.whole((20, 30))
    after = ReceptiveField(whole.rows.then(3, 2, 1), whole.columns.then(5, 1, 2))
    assert after.box(row, column) == Box.whole((20, 30))


@given(
    st.tuples(st.integers(-9, 9), st.integers(-9, 9)),
    st.tuples(st.integers(0, 20), st.integers(0, 20)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_clipping_keeps_exactly_the_pixels_inside_the_image(
    corner: tuple[int, int], extent: tuple[int, int], size: tuple[int, int]
) -> None:
    box = Box(*corner, corner[0] + extent[0], corner[1] + extent[1])
    image = {(row, column) for row in range(size[0]) for column in range(size[1])}

    def pixels(box: Box) -> set[tuple[int, int]]:
        rows, columns = range(box.top, box.bottom), range(box.left, box.right)
        return {(row, column) for row in rows for column in columns}

    assert pixels(box.clip(size)) == pixels(box) & image
    if all(extent):
        assert box.inside(size) == (pixels(box) <= image)


@given(st.text(min_size=1), st.integers(0, 10**6))
def test_a_unit_reads_what_it_prints(layer: str, channel: int) -> None:
    unit = Unit(layer, channel)
    assert Unit.parse(str(unit)) == unit


def test_a_unit_has_one_spelling_and_sorts_by_channel() -> None:
    assert str(Unit("conv5", 42)) == "conv5/0042"
    assert Unit.parse("conv5/42") == Unit.parse("conv5/0042")
    assert Unit.parse("features.10/7") == Unit("features.10", 7)
    assert Unit("conv5", 9) < Unit("conv5", 10) < Unit("conv6", 0)


@pytest.mark.parametrize(
    "text", ["", "conv5", "conv5/", "/3", "conv5/x", "conv5/-1", "conv5/1.5", "conv5/²", "conv5/٣"]
)
def test_what_is_not_a_unit_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="is not a unit; write it as layer/channel") as caught:
        Unit.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("", tuple(range(100))),
        ("7", (7,)),
        ("0-3,9", (0, 1, 2, 3, 9)),
        ("9, 0-3", (0, 1, 2, 3, 9)),
        ("5,3-6,4", (3, 4, 5, 6)),
        ("99", (99,)),
        ("42-42", (42,)),
        ("96,3", (3, 96)),
    ],
)
def test_a_selection_of_units_is_sorted_and_without_repeats(
    text: str, units: tuple[int, ...]
) -> None:
    assert parse_units(text, 100, "conv1") == units


@pytest.mark.parametrize(
    "text", ["x", "1-", "-1", "3-1", "1,,2", "1;2", "1-2-3", "1.5", ",", " ", "²"]
)
def test_a_malformed_selection_is_shown(text: str) -> None:
    with pytest.raises(UsageError, match="is not a channel or range") as caught:
        parse_units(text, 100, "conv1")
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "unit"), [("100", 100), ("0-100", 100), ("3,250-260", 260), ("3,260", 260)]
)
def test_a_unit_that_the_layer_lacks_is_named_with_those_it_has(text: str, unit: int) -> None:
    with pytest.raises(UsageError, match=f"conv1 has no unit {unit}.*0 to 99"):
        parse_units(text, 100, "conv1")


def test_one_unit_is_not_a_range() -> None:
    assert units_text((1,)) == "unit 1"
    assert units_text((2, 3, 4)) == "units 2 to 4"
