"""The step of a layer, found from a short probe.

The paper's rates belong to CaffeNet's gradients: on another network or layer the same rate gives
grey or saturated pictures. Larger rates also make harsher, less natural ones. So the rule takes the
smallest rate whose pictures stand out from the remaining noise of their start and activate their
unit most:

- What an ascent *adds* is the difference between its image and that of the same ascent at rate 0.
  In three quarters of eight probe units it must have a standard deviation of 0.4 grey levels, or
  of 2.5 times what the regularizers leave of the noise in all iterations, if that is more.
- Every probe unit must be the largest of its layer at its best image. Otherwise the rate is
  doubled, until what is added reaches 8 grey levels. (With this rule another network recognizes
  92 % of the images of the demo network's classes, and 51 % if only three quarters of the probe
  units have to lead: docs/measurements.md.)
- No more than 0.5 % of the probe's values may be clipped to 0..255.
- The probe runs 300 iterations, or all of them where the canvas is small and that is cheap.

The rate is rounded to two digits. It is the same for every unit of the layer, and depends only on
network, layer, style and seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cnnvis_cli.ascent.climb import Ascent, Outcome
from cnnvis_cli.ascent.regularizers import ClipContribution
from cnnvis_cli.ascent.steps import Constant
from cnnvis_cli.ascent.styles import Style

FAINTEST = 0.4  # grey levels; the authors' images of whole classes have about 1.6 in all
ABOVE_NOISE = 2.5
SLOWEST = 0.25  # the share of probe units whose images may be fainter
LARGEST_ADDITION = 8.0  # grey levels; larger additions are not tried just to make a unit lead
CLIPPED = 0.005
ITERATIONS = 300
SMALL_CANVAS = 32  # pixels; canvases up to this side are probed for all iterations
UNITS = 8
ROUNDS = 10
ADDITION_TOLERANCE = 1.2  # how closely the required addition must be met, as a factor


def probe_channels(channels: int, most: int = UNITS) -> list[int]:
    """Return evenly spaced channels of a layer for the probe."""
    count = min(most, channels)
    return [i * channels // count for i in range(count)]


@dataclass(frozen=True)
class Probe:
    """A few ascents of a layer: their start, and how to run them in any style."""

    start: Tensor  # (B, 3, H, W) mean-subtracted
    mean: Tensor  # (1, 3, 1, 1)
    gradient: float  # the median root mean square gradient at the start
    ascend: Callable[[Style], Sequence[Ascent]]


def calibrate(style: Style, probe: Probe) -> Style:
    """Return the style with the constant rate that suits the layer.

    A layer without a gradient keeps the style's own step.
    """
    iterations = style.iterations
    if max(probe.start.shape[2:]) > SMALL_CANVAS:
        iterations = min(iterations, ITERATIONS)
    short = replace(style, iterations=iterations)
    if not probe.gradient:
        return style
    wanted = max(FAINTEST, ABOVE_NOISE * remaining_noise(style, probe))
    still = _without_steps(short, probe)
    rate, ceiling = wanted / (probe.gradient * min(iterations, 100)), float("inf")
    for _ in range(ROUNDS):
        rate = float(f"{rate:.2g}")
        found = _measure(probe.ascend(short.with_step(Constant(rate))), still, probe.mean)
        if found is None:
            return style
        if found.clipped > CLIPPED:
            ceiling = rate = float(f"{rate / 2:.2g}")
        elif found.added < wanted / ADDITION_TOLERANCE:
            rate = rate * min(wanted / found.added, 30.0) if found.added else rate * 30
        elif found.leading < 1 and found.added < LARGEST_ADDITION:
            rate, wanted = rate * 2, found.added
        elif found.added > wanted * ADDITION_TOLERANCE and found.leading == 1:
            rate = rate * max(wanted / found.added, 0.01)
        else:
            break
        if rate >= ceiling:
            rate = ceiling
            break
    return style.with_step(Constant(float(f"{rate:.2g}")))


@dataclass(frozen=True)
class _Finding:
    """The result of a probe at some rate."""

    added: float  # grey levels that three quarters of the units reach or exceed
    leading: float  # the share of units that are the largest of their layer
    clipped: float  # the share of values outside 0..255


def _measure(found: Sequence[Ascent], still: Tensor, mean: Tensor) -> _Finding | None:
    live = [i for i, ascent in enumerate(found) if ascent.outcome is not Outcome.NO_GRADIENT]
    if not live:
        return None
    last = _last([found[i] for i in live])
    added = last - still[live].to(last)
    slowest = added.flatten(1).std(dim=1).quantile(SLOWEST)
    leading = sum(found[i].outcome is Outcome.LARGEST for i in live) / len(live)
    return _Finding(float(slowest), leading, _share_outside(last, mean))


def _last(found: Sequence[Ascent]) -> Tensor:
    """Return the last images of ascents that keep them: (N, 3, H, W)."""
    return torch.stack([ascent.last for ascent in found])


def _without_steps(style: Style, probe: Probe) -> Tensor:
    """Return the final images of the ascents at rate 0, on the CPU: (B, 3, H, W).

    The network is run only where a regularizer needs gradients.
    """
    if any(isinstance(r, ClipContribution) and r.percentile for r in style.regularizers):
        return _last(probe.ascend(style.with_step(Constant(0.0))))
    return _regularized(style, probe.start).cpu()


def _regularized(style: Style, x: Tensor) -> Tensor:
    """Return the images after all iterations without any steps."""
    nothing = torch.zeros_like(x)
    for i in range(style.iterations - 1):
        for regularizer in style.regularizers:
            x = regularizer(x, nothing, i)
    return x


def remaining_noise(style: Style, probe: Probe) -> float:
    """Return the deviation, in grey levels, of the start after all iterations without steps."""
    return float(_regularized(style, probe.start[:2]).std())


def _share_outside(image: Tensor, mean: Tensor) -> float:
    """Return the share of values outside 0..255."""
    shown = image + mean.to(image)
    return float(((shown <= 0) | (shown >= 255)).float().mean())
