"""The styles of a plan: which exist, and which of them it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cnnvis_cli.ascent.steps import CALIBRATED, Constant, Normalized, Progress01, StepPolicy
from cnnvis_cli.ascent.styles import STYLES, VARIANTS, Style, check_name, read_style
from cnnvis_cli.errors import UsageError
from cnnvis_cli.registry import unknown
from cnnvis_cli.settings import OptimizePlan, Plan
from cnnvis_cli.stages.optimize.start import STARTS


def asked_styles(plan: Plan) -> list[Style]:
    """Return the styles of the plan, with the steps that it gives them.

    Raise `UsageError` for one that does not exist, and for a step that none of them makes.
    """
    step, known = _given_step(plan.optimize), known_styles(plan)
    styles = [_asked_style(name, known, step, plan.optimize) for name in plan.optimize.style]
    if plan.optimize.step != "calibrated" and not any(style.calibrates for style in styles):
        names = ", ".join(style.name for style in styles)
        raise UsageError(
            f"--step {plan.optimize.step}: style {names} has steps of its own; leave --step out, "
            "or name a style that takes it, such as --style 3"
        )
    return styles


def known_styles(plan: Plan) -> dict[str, Style]:
    """Return all styles by name: the built-in ones, the run directory's own, and the plan's."""
    kept = Path(plan.folder) / "styles.toml"
    own = {**(_read_kept(kept) if kept.is_file() else {}), **plan.styles}
    for name in own:
        check_name(name)
    return {**STYLES, **{name: read_style(name, table, "styles") for name, table in own.items()}}


def _read_kept(path: Path) -> dict[str, Any]:
    """Return the styles that a search has kept in the run directory."""
    return dict(Plan.make(path, {}).styles)


def _asked_style(
    name: str, known: Mapping[str, Style], step: StepPolicy | None, settings: OptimizePlan
) -> Style:
    """Return a style as the plan wants it."""
    if name not in known:
        raise unknown("style", name, known)
    style = known[name]
    if settings.iterations:
        style = replace(style, iterations=settings.iterations)
    if style.accentuates:
        if settings.start in STARTS:
            raise UsageError(f"style {name} begins with a photograph; add --start PHOTO")
        return style
    if not style.calibrates:
        if settings.start != "noise":
            raise UsageError(
                f"--start {settings.start}: style {name} has a start of its own; leave it out, "
                "or name styles that take it in a command of their own"
            )
        return style
    own = isinstance(style.step, Normalized) and step is not SOFTMAX_STEP
    return style if step is None or own else style.with_step(step)


def _given_step(settings: OptimizePlan) -> StepPolicy | None:
    """Return the step that the plan gives; None where it is the style's own."""
    if settings.step == "calibrated" and settings.softmax:
        return SOFTMAX_STEP
    if settings.step in ("calibrated", "paper"):
        return CALIBRATED if settings.step == "calibrated" else None
    with suppress(ValueError):
        rate = float(settings.step)
        if 0 < rate < float("inf"):
            return Constant(rate)
    raise UsageError(f"--step {settings.step!r}: use calibrated, paper, or a number above 0")


SOFTMAX_STEP = Progress01(max_rate=1e8, early=0.03, late=0.1)  # probabilities end at 1


def variant(settings: OptimizePlan) -> str:
    """Return what is added to a style's name where another value than a unit's is climbed."""
    asked = (
        settings.mean,
        settings.softmax,
        settings.sum,
        settings.direction,
        settings.minimise,
    )
    return "".join(f"-{word}" for word, yes in zip(VARIANTS, asked, strict=True) if yes)
