"""Random search and sweeps over the regularizers' parameters: which settings give good images?

Yosinski et al. 2015, section 3, drew 300 combinations at random and kept four by eye: Table 1. A
`Combination` is one of them; it becomes a style, and a saved style becomes a few lines of a plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from random import Random
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, Strict, model_validator
from pydantic.dataclasses import dataclass as checked

from cnnvis_cli.ascent.regularizers import REGULARIZERS, TotalVariation
from cnnvis_cli.ascent.steps import STEPS, Constant, Normalized
from cnnvis_cli.ascent.styles import PixelParameterization, Style, check_name, table_1
from cnnvis_cli.errors import UsageError
from cnnvis_cli.registry import Registry
from cnnvis_cli.validation import STRICT

Spacing = Literal["log", "even", "whole"]

DRAWN_DIGITS = 2  # of a drawn value: more would not be visible in a picture
SWEPT_DIGITS = 3  # of the values of a sweep and of a rate: neighbours must stay distinct
SWEPT = ("decay", "blur_width", "norm", "contribution", "tv")  # one sweep per regularizer


@dataclass(frozen=True)
class Parameter:
    """One number of a row: how its values are spread over a range.

    Parameters of one part, such as the two of the blur, are present or absent together.
    """

    part: str
    scale: Spacing

    def between(self, low: float, high: float, share: float, digits: int) -> float:
        """Return the value at this share, 0..1, of the way from low to high, rounded."""
        if self.scale == "whole":
            return min(int(low) + int(share * (high - low + 1)), int(high))
        value = low * (high / low) ** share if self.scale == "log" else low + (high - low) * share
        return float(min(max(_rounded(value, digits), low), high))


PARAMETERS: Registry[Parameter] = Registry("parameter")


def _parameter(name: str, part: str, scale: Spacing) -> None:
    """Register a parameter; the order is the one in which rows are drawn."""
    PARAMETERS.register(name)(Parameter(part, scale))


_parameter("decay", "decay", "log")
_parameter("blur_width", "blur", "even")
_parameter("blur_every", "blur", "whole")
_parameter("norm", "norm", "even")
_parameter("contribution", "contribution", "even")
_parameter("tv", "tv", "log")
_parameter("rate", "rate", "log")


def _lowest_first(given: tuple[float, float]) -> tuple[float, float]:
    if given[0] > given[1]:
        raise ValueError("must have its lowest number first")
    return given


def _above_zero(given: tuple[float, float]) -> tuple[float, float]:
    if not given[0]:
        raise ValueError("must begin above 0: it is drawn by its logarithm")
    return given


AnyNumber = TypeVar("AnyNumber", int, float)
AtLeast0 = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Percentile = Annotated[float, Field(ge=0, le=100)]
Range = Annotated[tuple[AnyNumber, AnyNumber], Strict(False), AfterValidator(_lowest_first)]
LogRange = Annotated[Range[AnyNumber], AfterValidator(_above_zero)]


@checked(frozen=True, config=STRICT)
class Ranges:
    """The ranges of a search: the lowest and the highest value of each parameter.

    The ranges contain Table 1 with a margin on both sides. Decay, total variation and the rate act
    in proportion, so they are drawn log-uniformly; widths and percentiles are drawn uniformly. The
    rate is a factor on the step, up and down alike. Widths below 0.3 pixels hardly blur.

    Each regularizer is absent with probability `absent`: every row of Table 1 has one to three of
    the four, and when all of them act at once, no picture shows the effect of any one. One row in
    sixteen has none at all, for comparison. Total variation is not from the paper and is absent
    unless `tv_absent` is below 1; its range also applies to sweeps.

    Raise ValueError for an invalid range or probability.
    """

    decay: LogRange[Share] = (1e-5, 0.5)  # above 1 it would invert the picture
    blur_width: Range[AtLeast0] = (0.3, 1.5)  # pixels, sigma
    blur_every: Range[Annotated[int, Field(ge=1)]] = (1, 8)  # iterations
    norm: Range[Percentile] = (0, 80)
    contribution: Range[Percentile] = (0, 95)
    tv: LogRange[AtLeast0] = (1e-3, 1)
    rate: LogRange[AtLeast0] = (0.1, 10)  # times the step
    absent: Share = 0.5
    tv_absent: Share = 1.0

    def absence(self, part: str) -> float:
        """Return the probability that a part of a row is absent; a row always has a rate."""
        return {"tv": self.tv_absent, "rate": 0.0}.get(part, self.absent)


TEXTS = {  # the label of a parameter that differs from plain ascent
    "decay": "decay {decay:g}",
    "blur_width": "blur {blur_width:g}/{blur_every}",
    "norm": "norm {norm:g}",
    "contribution": "contribution {contribution:g}",
    "tv": "tv {tv:g}",
    "rate": "rate {rate:g}x",
}


@checked(frozen=True, config=STRICT)
class Combination:
    """One combination of parameters, as a row of Table 1: its number and settings.

    0 means absent. Without any settings it is plain ascent at the layer's own step.
    """

    number: int = 0
    decay: Share = 0.0
    blur_width: AtLeast0 = 0.0
    blur_every: Annotated[int, Field(ge=0)] = 4  # iterations, as in all rows of Table 1 that blur
    norm: Percentile = 0.0
    contribution: Percentile = 0.0
    tv: AtLeast0 = 0.0
    rate: AtLeast0 = 1.0

    @model_validator(mode="after")
    def _blurs_at_some_step(self) -> Combination:
        if self.blur_width and not self.blur_every:
            raise ValueError(f"blur_width = {self.blur_width:g} also needs blur_every, from 1 up")
        return self

    @property
    def name(self) -> str:
        """The name of its style."""
        return f"row{self.number:03d}"

    def style(self, iterations: int, step: Normalized | Constant) -> Style:
        """Return the row as a style; its `rate` multiplies the step."""
        regularizers = table_1(
            self.decay, self.blur_width, self.blur_every, self.norm, self.contribution
        )
        if self.tv:
            regularizers = (*regularizers, TotalVariation(self.tv))
        if isinstance(step, Normalized):
            step = Normalized(_rounded(step.size * self.rate, SWEPT_DIGITS))
        else:
            step = Constant(_rounded(step.rate * self.rate, SWEPT_DIGITS))
        return Style(self.name, regularizers, step, iterations)

    def label(self) -> str:
        """Return its settings, short enough to go under a picture; "plain" if there are none.

        >>> Combination(decay=0.003, blur_width=0.8, norm=30, rate=2.5).label()
        'decay 0.003 · blur 0.8/4 · norm 30 · rate 2.5x'
        """
        plain = Combination()
        changed = (name for name in TEXTS if getattr(self, name) != getattr(plain, name))
        return " · ".join(TEXTS[name] for name in changed).format_map(vars(self)) or "plain"


def draw_rows(ranges: Ranges, count: int, seed: int) -> tuple[Combination, ...]:
    """Return random rows, numbered from 0, each a function of ranges, seed and its number alone.

    So a longer search begins with the rows of a shorter one, and any row can be reproduced.
    """
    return tuple(_draw_row(ranges, seed, number) for number in range(count))


def _draw_row(ranges: Ranges, seed: int, number: int) -> Combination:
    """Return a random row; all numbers are drawn, used or not, so ranges stay independent."""
    random = Random(f"{seed} row {number}")  # Python keeps this sequence across its versions
    parts = dict.fromkeys(parameter.part for parameter in PARAMETERS.values())
    present = {part: random.random() >= ranges.absence(part) for part in parts}
    values: dict[str, Any] = {}
    for name, parameter in PARAMETERS.items():
        low, high = getattr(ranges, name)
        value = parameter.between(low, high, random.random(), DRAWN_DIGITS)
        values[name] = value if present[parameter.part] else type(value)()
    return Combination(number, **values)


def spread_values(parameter: str, ranges: Ranges, count: int) -> tuple[float, ...]:
    """Return `count` values over a parameter's range, geometric if it is drawn log-uniformly.

    There are fewer if the range does not contain enough whole numbers.
    """
    if count < 1:
        raise UsageError(f"a sweep over {count} values: give at least 1")
    scale = PARAMETERS[parameter]
    low, high = getattr(ranges, parameter)
    shares = [i / max(count - 1, 1) for i in range(count)]
    return tuple(dict.fromkeys(scale.between(low, high, x, SWEPT_DIGITS) for x in shares))


def sweep(parameter: str, values: Sequence[float], base: Combination) -> tuple[Combination, ...]:
    """Return rows that differ in one parameter only, numbered from the base row's number on."""
    PARAMETERS.require(parameter)
    if parameter == "blur_every" and not base.blur_width:
        raise UsageError("a sweep of blur_every needs a base row with a blur_width above 0")
    rows = []
    for number, value in enumerate(values, start=base.number):
        change: dict[str, Any] = {parameter: value}
        rows.append(replace(base, number=number, **change))
    return tuple(rows)


def every_sweep(ranges: Ranges, values: int) -> dict[str, tuple[Combination, ...]]:
    """Return a sweep of each regularizer alone, from none to strong, as in the paper's figure 3.

    Each sweep has `values` rows, the first without any regularizer; the numbers run through all of
    them.
    """
    if values < 2:
        raise UsageError(f"sweeps over {values} values: give at least 2, none and some")
    sheet: dict[str, tuple[Combination, ...]] = {}
    for parameter in SWEPT:
        base = Combination(number=len(sheet) * values)
        if getattr(ranges, parameter)[0]:
            some: tuple[float, ...] = (0.0, *_distinct(parameter, ranges, values - 1))
        else:
            some = _distinct(parameter, ranges, values)
        sheet[parameter] = sweep(parameter, some, base)
    return sheet


def _distinct(parameter: str, ranges: Ranges, count: int) -> tuple[float, ...]:
    """Return `spread_values`, or raise `UsageError` if it has fewer values."""
    found = spread_values(parameter, ranges, count)
    if len(found) < count:
        raise UsageError(f"the range of {parameter} is too narrow for {count} different values")
    return found


def toml(name: str, style: Style) -> str:
    """Return the lines of a plan that define a style, for `read_style` to read back."""
    if style.image != PixelParameterization():
        kind = type(style.image).__name__
        raise UsageError(f"style {style.name}: a plan keeps styles of pixels, not of {kind}")
    parts = [f"  {_inline(REGULARIZERS, part)},\n" for part in style.regularizers]
    return (
        f"[styles.{check_name(name)}]\n"
        f"iterations = {style.iterations}\n"
        f"step = {_inline(STEPS, style.step)}\n"
        f"regularizers = [\n{''.join(parts)}]\n"
    )


def _inline(registry: Registry[Any], part: Any) -> str:
    """Return a registered dataclass as an inline table: its kind and its numbers."""
    kind = next(kind for kind, cls in registry.items() if cls is type(part))
    numbers = ((field.name, getattr(part, field.name)) for field in fields(part))
    settings = ", ".join(f"{key} = {_toml_number(value)}" for key, value in numbers)
    return f'{{ kind = "{kind}", {settings} }}'


def _toml_number(value: float) -> str:
    """Return exactly the same number in TOML."""
    return str(value) if isinstance(value, int) else repr(float(value))


def _rounded(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")
