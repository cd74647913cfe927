"""What an ascent asks of a device: launches and waits by the step, on a pretended one.

Counted over the steps that a long ascent has more than a short one: what begins and ends ascents
is in both.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

SHORT, LONG = 64, 160  # steps; see `counted`
CHECK = 32  # steps from one look at which ascents have no gradient to the next
LAUNCHES = 20  # a step, at most


@pytest.fixture(scope="module")
def costs() -> dict[str, dict[str, float]]:
    """What was found before, since it takes seconds."""
    return {}


@pytest.fixture
def a_step(
    measured: Callable[..., dict[str, dict[str, float]]], costs: dict[str, dict[str, float]]
) -> Callable[[str, str], float]:
    """Return a function from a style and a kind of cost to what all further steps cost."""
    if not costs:
        costs |= measured("counted.py")

    def more(style: str, kind: str) -> float:
        return costs[f"{style} {LONG}"][kind] - costs[f"{style} {SHORT}"][kind]

    return more


@pytest.mark.parametrize("style", ["1", "2", "3", "4", "fourier"])
def test_an_ascent_waits_only_to_look_for_the_dead(
    style: str, a_step: Callable[[str, str], float]
) -> None:
    assert a_step(style, "waits") <= (LONG - SHORT) / CHECK


@pytest.mark.parametrize("style", ["1", "2", "3", "4", "fourier"])
def test_a_step_is_a_few_launches(style: str, a_step: Callable[[str, str], float]) -> None:
    assert a_step(style, "launches") <= LAUNCHES * (LONG - SHORT)
