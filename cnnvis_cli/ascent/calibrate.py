"""The step of a layer, found from a short probe.

The paper's rates belong to CaffeNet's gradients: on another network or layer the same rate gives
grey or saturated pictures. The rule here: the rate is the one at which, after 50 iterations, the
images of eight probe units have a median standard deviation of 4 grey levels, to two digits. It is
the same for every unit of the layer, and a function of network, layer, style and seed alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median

from torch import Tensor

from cnnvis_cli.ascent.climb import Ascent, Outcome
from cnnvis_cli.ascent.steps import Constant
from cnnvis_cli.ascent.styles import Style

CONTRAST = 4.0  # grey levels; healthy images of the authors' toolbox have 1.6 to 6
ITERATIONS = 50
UNITS = 8
ROUNDS = 6
TOLERANCE = 1.15  # the contrast need not be met closer than this factor


def probe_channels(channels: int) -> list[int]:
    """Evenly spaced channels of a layer for the probe."""
    count = min(UNITS, channels)
    return [i * channels // count for i in range(count)]


def calibrate(style: Style, gradient: float, ascend: Callable[[Style], Ascent]) -> Style:
    """The style with the constant rate that suits the layer.

    `gradient` is the probe's typical root mean square gradient at its first images; `ascend`
    runs the probe's ascents in a style. A layer without any gradient keeps the style's own step.
    """
    if not gradient:
        return style
    probe = replace(style, iterations=min(ITERATIONS, style.iterations))
    rate = CONTRAST / (gradient * probe.iterations)
    for _ in range(ROUNDS):
        rate = float(f"{rate:.2g}")
        contrast = _contrast(ascend(probe.with_step(Constant(rate))))
        if contrast is None:
            return style
        if 1 / TOLERANCE < contrast / CONTRAST < TOLERANCE:
            break
        rate *= min(max(CONTRAST / contrast, 0.01), 100.0)
    return style.with_step(Constant(float(f"{rate:.2g}")))


def _contrast(ascent: Ascent) -> float | None:
    """Median standard deviation of the last images of units with a gradient, in grey levels."""
    live: Tensor = ascent.outcome != int(Outcome.NO_GRADIENT)
    if not bool(live.any()):
        return None
    deviations: list[float] = ascent.last[live].flatten(1).std(dim=1).tolist()
    return median(deviations)
