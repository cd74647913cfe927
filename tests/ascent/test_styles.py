"""Your own styles: a TOML table does what it says, and mistakes are named."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnnvis_cli.ascent.fourier import FourierParameterization
from cnnvis_cli.ascent.regularizers import (
    REGULARIZERS,
    Blur,
    ClipContribution,
    ClipNorm,
    Decay,
    TotalVariation,
)
from cnnvis_cli.ascent.search import toml
from cnnvis_cli.ascent.steps import STEPS, Constant, Progress, Progress01
from cnnvis_cli.ascent.styles import STYLES, PixelParameterization, Style, read_style
from cnnvis_cli.errors import UsageError
from cnnvis_cli.registry import Registry

GOOD: dict[str, tuple[str, Style]] = {
    "empty": ("", Style("mine", (), Constant(100), 1000)),
    "iterations": ("iterations = 7", Style("mine", (), Constant(100), 7)),
    "a regularizer": (
        '[[regularizers]]\nkind = "decay"\nrate = 0.01',
        Style("mine", (Decay(0.01),), Constant(100), 1000),
    ),
    "all, in this order": (
        """
        iterations = 20
        regularizers = [
            {kind = "tv", rate = 0.5},
            {kind = "contribution", percentile = 50},
            {kind = "norm", percentile = 30},
            {kind = "blur", width = 1.5, every = 3},
            {kind = "decay", rate = 0},
            {kind = "decay", rate = 0.1},
        ]
        step = {kind = "progress01", max_rate = 1e8, early = 0.1, late = 0.2}
        """,
        Style(
            "mine",
            (
                TotalVariation(0.5),
                ClipContribution(50),
                ClipNorm(30),
                Blur(1.5, 3),
                Decay(0),
                Decay(0.1),
            ),
            Progress01(1e8, 0.1, 0.2),
            20,
        ),
    ),
    "constant": ('step = {kind = "constant", rate = 5}', Style("mine", (), Constant(5), 1000)),
    "progress": (
        '[step]\nkind = "progress"\ndesired = 2\nmax_rate = 100',
        Style("mine", (), Progress(100, 2), 1000),
    ),
}


def read(text: str) -> Style:
    return read_style("mine", tomllib.loads(text), "plan.toml")


@pytest.mark.parametrize(("text", "style"), GOOD.values(), ids=GOOD.keys())
def test_a_table_is_read(text: str, style: Style) -> None:
    assert read(text) == style
    assert style.image == PixelParameterization()
    assert style.calibrates


# the text -> what the message must contain
BAD: dict[str, tuple[str, ...]] = {
    "iteration = 5": ("setting", "'iteration'", "did you mean 'iterations'?"),
    "regularisers = []": ("'regularisers'", "did you mean 'regularizers'?"),
    "Step = 3": ("'Step'", "did you mean 'step'?"),
    "zzz = 3": ("'zzz'", "iterations, step, regularizers"),
    "image = {kind = 'fourier'}": ("'image'",),
    "iterations = 0": ("iterations = 0", "must be at least 1"),
    "iterations = -3": ("iterations = -3", "must be at least 1"),
    "iterations = 5.0": ("iterations = 5.0", "whole number"),
    "iterations = '5'": ("iterations = '5'", "whole number"),
    "regularizers = 3": ("regularizers", "list"),
    "regularizers = {kind = 'decay', rate = 1}": ("regularizers", "list"),
    "regularizers = [3]": ("regularizer", "kind", "'decay'", "'blur'"),
    "regularizers = [[]]": ("regularizer", "kind"),
    "regularizers = [{rate = 3}]": ("regularizer", "kind"),
    "regularizers = [{kind = 'decai', rate = 1}]": ("regularizer", "did you mean 'decay'?"),
    "regularizers = [{kind = 'Blur', width = 1, every = 4}]": ("did you mean 'blur'?",),
    "regularizers = [{kind = 3}]": ("'3'", "decay"),
    "regularizers = [{kind = 'constant', rate = 3}]": ("regularizer 'constant'",),
    "regularizers = [{kind = 'decay', rat = 3}]": ("'rat'", "did you mean 'rate'?", "decay"),
    "regularizers = [{kind = 'decay'}]": ("decay needs rate",),
    "regularizers = [{kind = 'blur', width = 3}]": ("blur needs every",),
    "regularizers = [{kind = 'blur'}]": ("blur needs width, every",),
    "regularizers = [{kind = 'decay', rate = '3'}]": ("decay", "rate = '3'", "not a number"),
    "regularizers = [{kind = 'decay', rate = true}]": ("rate = True", "not a number"),
    "regularizers = [{kind = 'decay', rate = [1]}]": ("rate = [1]", "not a number"),
    "step = 3": ("step policy", "kind", "'constant'"),
    "step = 'constant'": ("step policy", "kind"),
    "step = {rate = 3}": ("step policy", "kind"),
    "step = {kind = 'constnt', rate = 3}": ("step policy", "did you mean 'constant'?"),
    "step = {kind = 'decay', rate = 3}": ("step policy 'decay'",),
    "step = {kind = 'constant'}": ("constant needs rate",),
    "step = {kind = 'progress', desired = 1, max = 2}": ("'max'", "did you mean 'max_rate'?"),
    "step = {kind = 'constant', rate = 'x'}": ("rate = 'x'", "not a number"),
}
TAKEN = {
    "iterations = true": "a bool counts as 1 iteration",
    "regularizers = [{kind = 'decay', rate = nan}]": "NaN counts as a number",
    "regularizers = [{kind = 'decay', rate = inf}]": "infinite numbers are taken",
    "regularizers = [{kind = 'norm', percentile = 150}]": "ends in torch's RuntimeError later",
    "regularizers = [{kind = 'norm', percentile = -1}]": "is taken",
    "regularizers = [{kind = 'blur', width = -1, every = 4}]": "ends in numpy's ValueError later",
    "regularizers = [{kind = 'blur', width = 1, every = 2.5}]": "is taken: blurs every 5th step",
    "step = {kind = 'constant', rate = -1}": "goes downhill",
}


@pytest.mark.parametrize(("text", "says"), BAD.items(), ids=BAD.keys())
def test_a_slip_is_one_clear_line(text: str, says: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as found:
        read(text)
    (line,) = str(found.value).splitlines()
    for words in says:
        assert words in line


@pytest.mark.parametrize(
    "text",
    [
        "iterations = 0",
        "zzz = 3",
        "regularizers = [{kind = 'decay'}]",
        "regularizers = [{kind = 'decay', rat = 1}]",
        "step = 3",
        "regularizers = [{kind = 'decai', rate = 1}]",
        "step = {kind = 'decay'}",
    ],
)
def test_the_line_says_where(text: str) -> None:
    with pytest.raises(UsageError, match=r"plan\.toml: \[styles\.mine\]"):
        read(text)


@pytest.mark.parametrize(
    "text",
    TAKEN,
)
def test_numbers_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read(text)


def test_a_style_that_is_no_table_is_refused() -> None:
    table: Any = tomllib.loads("mine = 3")["mine"]
    with pytest.raises(UsageError, match="mine"):
        read_style("mine", table, "plan.toml")


def table_of(style: Style) -> dict[str, Any]:
    """Return the table that would be written for a style, from its record."""
    record = style.parameters()
    assert record.pop("image") == {"kind": "Pixels"}

    def named(registry: Registry[Any], part: dict[str, Any]) -> dict[str, Any]:
        (name,) = (name for name, cls in registry.items() if cls.__name__ == part["kind"])
        return {**part, "kind": name}

    return {
        "iterations": record["iterations"],
        "step": named(STEPS, record["step"]),
        "regularizers": [named(REGULARIZERS, part) for part in record["regularizers"]],
    }


NUMBERS = st.floats(0.01, 1) | st.just(1)


def parts(registry: Registry[Any]) -> st.SearchStrategy[Any]:
    strategies: list[st.SearchStrategy[Any]] = [
        st.builds(
            cls,
            **{f.name: st.integers(1, 9) if f.name == "every" else NUMBERS for f in fields(cls)},
        )
        for cls in registry.values()
    ]
    return st.one_of(*strategies)


OWN: st.SearchStrategy[Style] = st.builds(
    Style,
    st.just("mine"),
    st.lists(parts(REGULARIZERS), max_size=5).map(tuple),
    parts(STEPS),
    st.integers(1, 5000),
)


@settings(max_examples=50, deadline=None)
@given(OWN)
def test_a_style_s_record_tells_it_all(style: Style) -> None:
    assert read_style("mine", table_of(style), "here") == style


@settings(max_examples=50, deadline=None)
@given(OWN)
def test_a_style_that_search_writes_is_read_as_it_was(style: Style) -> None:
    table = tomllib.loads(toml("mine", style))["styles"]["mine"]
    assert read_style("mine", table, "here") == style


@pytest.mark.parametrize("name", ["1", "2", "3", "4"])
def test_a_row_of_table_1_can_be_written_as_one_s_own(name: str) -> None:
    own = read_style("mine", table_of(STYLES[name]), "here")
    assert own.parameters() == STYLES[name].parameters()


def test_the_record_is_plain_values() -> None:
    assert STYLES["3"].parameters() == {
        "regularizers": [
            {"kind": "Decay", "rate": 0.0001},
            {"kind": "Blur", "width": 1.0, "every": 4},
            {"kind": "ClipNorm", "percentile": 0},
            {"kind": "ClipContribution", "percentile": 0},
        ],
        "step": {"kind": "Constant", "rate": 100},
        "iterations": 1000,
        "image": {"kind": "Pixels"},
    }
    fourier = STYLES["fourier"]
    assert fourier.parameters()["image"] == {"kind": "Fourier", **asdict(FourierParameterization())}
    assert not fourier.calibrates
