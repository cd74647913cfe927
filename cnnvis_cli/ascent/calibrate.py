"""The step of a layer, found from a short probe.

The paper's rates belong to CaffeNet's gradients: on another network or layer the same rate gives
grey or saturated pictures. Larger rates also make harder, less natural ones. So the rule is the
smallest rate whose pictures stand out from what is left of the noise that they started from, and
mean their unit:

- What an ascent *adds* is the difference between its image and that of the same ascent at rate 0.
  In three quarters of eight probe units it must have a standard deviation of 0.4 grey levels, or
  of 2.5 times what the regularizers leave of the noise in all iterations, if that is more.
- Every probe unit must be the largest of its layer at its best image. Where one is not, the rate
  is doubled, until what is added reaches 8 grey levels. (Of the images of the demo network's
  classes another network recognizes 92 % so, and 51 % if only three quarters of the probe units
  have to lead: docs/measurements.md.)
- No more than 0.5 % of the probe's values may be clipped to 0..255.
- It is measured after 300 iterations, or after all where the canvas is small and that is cheap.

The rate is rounded to two digits. It is the same for every unit of the layer, and a function of
network, layer, style and seed alone.
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
STRONGEST = 8.0  # grey levels; more is not tried for the sake of leading
CLIPPED = 0.005
ITERATIONS = 300
SMALL = 32  # pixels; canvases up to this side are probed for all iterations
UNITS = 8
ROUNDS = 10
TOLERANCE = 1.2  # what is added need not be met closer than this factor


def probe_channels(channels: int, most: int = UNITS) -> list[int]:
    """Evenly spaced channels of a layer for the probe."""
    count = min(most, channels)
    return [i * channels // count for i in range(count)]


@dataclass(frozen=True)
class Probe:
    """A few ascents of a layer: where they start, and how to run them in any style."""

    start: Tensor  # (B, 3, H, W) mean-subtracted
    mean: Tensor  # (1, 3, 1, 1)
    gradient: float  # the median root mean square gradient at the start
    ascend: Callable[[Style], Sequence[Ascent]]


def calibrate(style: Style, probe: Probe) -> Style:
    """The style with the constant rate that suits the layer.

    A layer that no gradient gets through keeps the style's own step.
    """
    iterations = style.iterations
    if max(probe.start.shape[2:]) > SMALL:
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
        elif found.added < wanted / TOLERANCE:
            rate = rate * min(wanted / found.added, 30.0) if found.added else rate * 30
        elif found.leading < 1 and found.added < STRONGEST:
            rate, wanted = rate * 2, found.added
        elif found.added > wanted * TOLERANCE and found.leading == 1:
            rate = rate * max(wanted / found.added, 0.01)
        else:
            break
        if rate >= ceiling:
            rate = ceiling
            break
    return style.with_step(Constant(float(f"{rate:.2g}")))


@dataclass(frozen=True)
class _Finding:
    """What a probe at some rate gave."""

    added: float  # grey levels that the slowest quarter of the units falls short of
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
    return _Finding(float(slowest), leading, _clipped(last, mean))


def _last(found: Sequence[Ascent]) -> Tensor:
    """Where ascents ended, (N, 3, H, W); they are made so that this is kept."""
    return torch.stack([ascent.last for ascent in found])


def _without_steps(style: Style, probe: Probe) -> Tensor:
    """The images that the ascents would end with at rate 0, on the CPU: (B, 3, H, W).

    The network is asked only where a regularizer looks at gradients.
    """
    if any(isinstance(r, ClipContribution) and r.percentile for r in style.regularizers):
        return _last(probe.ascend(style.with_step(Constant(0.0))))
    return _regularized(style, probe.start).cpu()


def _regularized(style: Style, x: Tensor) -> Tensor:
    """Images after all iterations without any steps."""
    nothing = torch.zeros_like(x)
    for i in range(style.iterations - 1):
        for regularizer in style.regularizers:
            x = regularizer(x, nothing, i)
    return x


def remaining_noise(style: Style, probe: Probe) -> float:
    """Standard deviation, in grey levels, of the start after all iterations without any steps."""
    return float(_regularized(style, probe.start[:2]).std())


def _clipped(image: Tensor, mean: Tensor) -> float:
    """The share of values outside 0..255."""
    shown = image + mean.to(image)
    return float(((shown <= 0) | (shown >= 255)).float().mean())
