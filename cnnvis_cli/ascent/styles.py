"""Named settings of the ascent: the four rows of Table 1 of Yosinski et al. 2015."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from cnnvis_cli.ascent.regularizers import Blur, ClipContribution, ClipNorm, Decay, Regularizer
from cnnvis_cli.ascent.steps import Constant, Progress, StepPolicy
from cnnvis_cli.registry import Registry


@dataclass(frozen=True)
class Style:
    """An ordered list of regularizers with a step policy and a number of iterations."""

    name: str
    regularizers: tuple[Regularizer, ...]
    step: StepPolicy
    iterations: int
    look: str = ""

    def with_step(self, step: StepPolicy) -> Style:
        return replace(self, step=step)

    def parameters(self) -> dict[str, Any]:
        """All that defines the style, as plain values for the record."""
        return {
            "regularizers": [_described(part) for part in self.regularizers],
            "step": _described(self.step),
            "iterations": self.iterations,
        }


def _described(part: Any) -> dict[str, Any]:
    return {"kind": type(part).__name__, **asdict(part)}


STYLES: Registry[Style] = Registry("style")


def _row(name: str, theta: tuple[float, ...], step: StepPolicy, iterations: int, look: str) -> None:
    """A row of Table 1: theta is decay, b_width, b_every, n_pct, c_pct.

    Iterations and step policy are not in the table; they are the toolbox's own.
    """
    decay, width, every, norm, contribution = theta
    regularizers = (
        Decay(decay),
        Blur(width, int(every)),
        ClipNorm(norm),
        ClipContribution(contribution),
    )
    STYLES.register(name)(Style(name, regularizers, step, iterations, look))


_row("1", (0, 0.5, 4, 50, 0), Progress(100, 2), 500, "a sparse set of important regions")
_row("2", (0.3, 0, 0, 20, 0), Constant(100), 750, "high frequencies")
_row("3", (0.0001, 1.0, 4, 0, 0), Constant(100), 1000, "smooth; most images of the paper")
_row("4", (0, 0.5, 4, 0, 90), Progress(1e8, 2), 1000, "only what matters")
