"""The cost of an ascent's step on a device, a pretended one: launches and waits.

Counted over the steps that a long ascent has more than a short one: both begin and end alike.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

SHORT, LONG = 64, 160  # steps; see `counted`
CHECK = 32  # steps between looks for ascents without gradient
LAUNCHES = 20  # per step, at most


@pytest.fixture(scope="module")
def costs() -> dict[str, dict[str, float]]:
    """Return what was measured before, since measuring takes seconds."""
    return {}


@pytest.fixture
def a_step(
    measured: Callable[..., dict[str, dict[str, float]]], costs: dict[str, dict[str, float]]
) -> Callable[[str, str], float]:
    """Return a function from a style and a kind of cost to that cost of the further steps."""
    if not costs:
        costs |= measured("counted.py")

    def more(style: str, kind: str) -> float:
        return costs[f"{style} {LONG}"][kind] - costs[f"{style} {SHORT}"][kind]

    return more


@pytest.mark.parametrize(
    "style", ["1", "2", "3", "4", "fourier", "natural", "typical", "maco", "accent"]
)
def test_an_ascent_waits_only_to_look_for_the_dead(
    style: str, a_step: Callable[[str, str], float]
) -> None:
    assert a_step(style, "waits") <= (LONG - SHORT) / CHECK


@pytest.mark.parametrize(
    "style", ["1", "2", "3", "4", "fourier", "natural", "typical", "maco", "accent"]
)
def test_a_step_is_a_few_launches(style: str, a_step: Callable[[str, str], float]) -> None:
    assert a_step(style, "launches") <= LAUNCHES * (LONG - SHORT)
