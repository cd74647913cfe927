"""Numbers and probabilities as figures write them, one way everywhere."""

from __future__ import annotations

from collections.abc import Callable

MOST_DIGITS = 6


def four_digits(value: float) -> str:
    """Return a number with four digits, or all digits before the point: never 1e+04."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(share: float, digits: int = 1) -> str:
    """Return a share of 1 in per cent; one that rounds to none or all of it is told from these."""
    step = 10.0 ** -(digits + 2)
    if 0 < share < step:
        return f"< {step:.{digits}%}"
    if 1 - step / 2 <= share < 1:
        return f"> {1 - step:.{digits}%}"
    return f"{share:.{digits}%}"


def percent_between(low: float, high: float) -> Callable[[float], str]:
    """Return how to write shares of a range, with the digits that tell its ends apart."""
    digits = 1
    while digits < MOST_DIGITS and low < high and percent(low, digits) == percent(high, digits):
        digits += 1
    return lambda share: percent(share, digits)
