"""Named settings of the ascent: the four rows of Table 1 of Yosinski et al. 2015, and others."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from cnnvis_cli.ascent.accent import AccentParameterization
from cnnvis_cli.ascent.fourier import FourierParameterization
from cnnvis_cli.ascent.maco import MacoParameterization
from cnnvis_cli.ascent.natural import NaturalParameterization
from cnnvis_cli.ascent.regularizers import (
    REGULARIZERS,
    Blur,
    ClipContribution,
    ClipNorm,
    Decay,
    Regularizer,
    TotalVariation,
    phase_of,
)
from cnnvis_cli.ascent.steps import STEPS, Constant, Progress, StepPolicy
from cnnvis_cli.ascent.typical import TypicalParameterization
from cnnvis_cli.errors import UsageError
from cnnvis_cli.registry import Registry, unknown
from cnnvis_cli.validation import read_settings


class Updater(Protocol):
    """Makes the next images of N ascents that began together."""

    @property
    def style(self) -> Style: ...

    @property
    def state(self) -> Sequence[Tensor]:
        """The tensors that it changes, in place."""

    @property
    def wanders(self) -> bool:
        """Whether an ascent continues without a gradient, in case it finds one later."""

    def phase(self, age: int) -> Hashable:
        """Return all that `advance` uses of the step's number: in equal phases it does the same."""

    def advance(self, x: Tensor, value: Tensor, gradient: Tensor, age: int) -> Tensor:
        """Return the next images, (N, 3, h, w), from the last ones, their values and gradients.

        It may overwrite `x`.
        """

    def plain(self, age: int) -> bool:
        """Return whether this step shows the picture itself, not a jittered one."""

    def keep(self, which: Sequence[int]) -> Updater:
        """Return the updater of some of the ascents."""

    @property
    def progress(self) -> Sequence[Tensor]:
        """The tensors (N, ...) that steps change, which a later process needs to continue."""

    def resume(self, age: int) -> None:
        """Go on after `age` steps, from the tensors of `progress` as they are now."""

    @property
    def transparency(self) -> Tensor | None:
        """The sums of absolute gradients, (N, h, w), where it keeps them."""


class Parameterization(Protocol):
    """What an image is made of while it is optimized."""

    def begin(
        self, style: Style, start: Tensor, mean: Tensor, seeds: Sequence[int]
    ) -> tuple[Tensor, Updater]:
        """Return the first images and the updater that makes the next; `start` is (N, 3, h, w)."""


@dataclass(frozen=True)
class PixelParameterization:
    """The image is its pixels, as in Yosinski et al. 2015."""

    def begin(
        self, style: Style, start: Tensor, mean: Tensor, seeds: Sequence[int]
    ) -> tuple[Tensor, Updater]:
        canvas = (1, *start.shape[1:])  # a bound for each pixel: clamping by channel is slow
        black, white = (
            bound.expand(canvas).contiguous(memory_format=torch.channels_last)
            for bound in (-mean, 255 - mean)
        )
        updater = PixelUpdater(style, black, white)
        return start.clamp(updater.low, updater.high), updater


@dataclass(frozen=True)
class PixelUpdater:
    """Makes a step along the gradient, applies each regularizer in order, clips to 0..255."""

    style: Style
    low: Tensor  # (1, 3, h, w) black, mean-subtracted
    high: Tensor  # white

    @property
    def state(self) -> Sequence[Tensor]:
        return ()

    @property
    def wanders(self) -> bool:
        return False

    def phase(self, age: int) -> Hashable:
        return phase_of(self.style.regularizers, age)

    def advance(self, x: Tensor, value: Tensor, gradient: Tensor, age: int) -> Tensor:
        x = self.style.step.along(x, value, gradient)
        for regularizer in self.style.regularizers:
            x = regularizer(x, gradient, age)
        return x.clamp_(self.low, self.high)

    def plain(self, age: int) -> bool:
        return True

    def keep(self, which: Sequence[int]) -> Updater:
        return self

    @property
    def progress(self) -> Sequence[Tensor]:
        return ()

    def resume(self, age: int) -> None:
        pass

    @property
    def transparency(self) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Style:
    """An ordered list of regularizers with a step policy and a number of iterations."""

    name: str
    regularizers: tuple[Regularizer, ...]
    step: StepPolicy
    iterations: int
    look: str = ""
    image: Parameterization = field(default_factory=PixelParameterization)

    def with_step(self, step: StepPolicy) -> Style:
        return replace(self, step=step)

    @property
    def calibrates(self) -> bool:
        """Whether it uses a step policy."""
        return isinstance(self.image, PixelParameterization)

    @property
    def accentuates(self) -> bool:
        """Return whether ascents begin at a photograph and stay near it."""
        return isinstance(self.image, AccentParameterization)

    @property
    def measures(self) -> bool:
        """Return whether the style needs measurements of a run's images."""
        return isinstance(self.image, MacoParameterization | TypicalParameterization)

    def parameters(self) -> dict[str, Any]:
        """Return all that defines the style, as plain values for the record."""
        return {
            "regularizers": [_part_record(part) for part in self.regularizers],
            "step": _part_record(self.step),
            "iterations": self.iterations,
            "image": _part_record(self.image),
        }


def _part_record(part: Any) -> dict[str, Any]:
    kind = type(part).__name__.removesuffix("Parameterization")
    measured = isinstance(part, MacoParameterization | TypicalParameterization)
    stated = part.record if measured else asdict(part)
    return {"kind": _STORED.get(kind, kind), **stated}


_STORED = {"Pixel": "Pixels"}  # its name in version 1 of the files


STYLES: Registry[Style] = Registry("style")


def _table_row(
    name: str, theta: tuple[float, ...], step: StepPolicy, iterations: int, look: str
) -> None:
    """Register a row of Table 1: theta is decay, b_width, b_every, n_pct, c_pct.

    Iterations and step policy are not in the table; they are the toolbox's own.
    """
    STYLES.register(name)(Style(name, table_1(*theta), step, iterations, look))


def table_1(
    decay: float, width: float, every: float, norm: float, contribution: float
) -> tuple[Regularizer, ...]:
    """Return the paper's four regularizers in its order, with the columns of Table 1."""
    return (
        Decay(decay),
        Blur(width, int(every)),
        ClipNorm(norm),
        ClipContribution(contribution),
    )


_table_row("1", (0, 0.5, 4, 50, 0), Progress(100, 2), 500, "a sparse set of important regions")
_table_row("2", (0.3, 0, 0, 20, 0), Constant(100), 750, "high frequencies")
_table_row("3", (0.0001, 1.0, 4, 0, 0), Constant(100), 1000, "smooth; most images of the paper")
_table_row("4", (0, 0.5, 4, 0, 90), Progress(1e8, 2), 1000, "only what matters")

STYLES.register("fourier")(
    Style(
        "fourier",
        (),
        Constant(0),
        512,
        "the modern reference: Olah et al. 2017",
        FourierParameterization(),
    )
)

STYLES.register("natural")(
    Style(
        "natural",
        (TotalVariation(0.1),),
        Constant(0),
        256,
        "colours and spectrum of photographs, robust to moves and grain",
        NaturalParameterization(),
    )
)

STYLES.register("maco")(
    Style(
        "maco",
        (),
        Constant(0),
        256,
        "phases alone, with the magnitudes of the run's own images: Fel et al. 2023",
        MacoParameterization(),
    )
)

STYLES.register("accent")(
    Style(
        "accent",
        (),
        Constant(0),
        128,
        "a photograph in which what the unit answers to is accentuated: Hamblin et al. 2024",
        AccentParameterization(),
    )
)

STYLES.register("typical")(
    Style(
        "typical",
        (TotalVariation(0.1),),
        Constant(0),
        256,
        "natural, with the layers below as the run's own images leave them: after Yin et al. 2020",
        TypicalParameterization(),
    )
)


VARIANTS = ("mean", "softmax", "sum", "direction", "min")
"""What follows a style's name if something else than a unit's value is maximised."""


def base_style(group: str) -> str:
    """Return the style of a group of a file, without the words for what is maximised."""
    words = group.split("-")
    while len(words) > 1 and words[-1] in VARIANTS:
        words.pop()
    return "-".join(words)


FIRST_STYLES = ("natural", "1", "2", "3", "4")  # others follow in the order of the file


def ordered_styles(held: Iterable[str]) -> list[str]:
    """Return the names of styles as figures show them: natural, the paper's four, the others."""
    place = {name: number for number, name in enumerate(FIRST_STYLES)}
    return sorted(held, key=lambda name: place.get(base_style(name), len(place)))


def check_name(name: str) -> str:
    """Return the name if a user's own style can have it; otherwise raise `UsageError`."""
    if not re.fullmatch("[A-Za-z0-9_-]+", name):
        raise UsageError(f"style name {name!r}: use letters, digits, - and _ only")
    if name in STYLES:
        raise UsageError(f"style name {name!r} is a built-in style's; choose another")
    if name.rpartition("-")[2] in VARIANTS:
        raise UsageError(f"style name {name!r}: cnnvis adds such endings itself; choose another")
    return name


@dataclass(frozen=True)
class _Table:
    """The keys of a style in a plan."""

    iterations: int = field(default=1000, metadata={"ge": 1})
    step: Any = field(default_factory=lambda: {"kind": "constant", "rate": 100})
    regularizers: list[Any] = field(default_factory=list)


def read_style(name: str, table: Mapping[str, Any], place: str) -> Style:
    """Return a style from a plan: iterations, step and regularizers, each with its ``kind``.

    Raise `UsageError` for a key or a kind that does not exist. ``--step paper`` uses its step.
    """
    where = f"{place}: [styles.{name}]"
    read: _Table = read_settings(_Table, table, where)
    regularizers = tuple(_read_part(REGULARIZERS, part, where) for part in read.regularizers)
    return Style(name, regularizers, _read_part(STEPS, read.step, where), read.iterations)


def _read_part(registry: Registry[Any], table: Any, where: str) -> Any:
    """Return a registered dataclass from its ``kind`` and its fields."""
    if not isinstance(table, Mapping) or "kind" not in table:
        raise UsageError(f"{where}: a {registry.kind} is a table with its kind, from {[*registry]}")
    kind, numbers = str(table["kind"]), {k: v for k, v in table.items() if k != "kind"}
    if kind not in registry:
        raise unknown(registry.kind, kind, registry, place=where)
    return read_settings(registry[kind], numbers, f"{where}: {kind}")
