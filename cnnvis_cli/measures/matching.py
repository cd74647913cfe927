"""Units of a layer matched with those of another network's: correlations, errors and chance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cnnvis_cli.arrays import Doubles, Floats
from cnnvis_cli.measures.likeness import (
    alignment,
    alignment_error,
    best_of_shuffled,
    correlation_errors,
    correlations,
    dependence,
    pairs,
)
from cnnvis_cli.nouns import Unit

BEYOND_CHANCE = 0.99  # quantile of the best correlations of shuffled images


@dataclass(frozen=True)
class LayerMatch:
    """A layer of the first run beside its counterpart in the second."""

    layer: str
    counterpart: str
    cka: float
    cka_error: float  # its standard error over the images
    cka_control: float  # with the images of the second run shuffled
    units: int
    survive: float  # share of units with a best correlation beyond chance
    survive_error: float  # its standard error over the units
    chance: float  # the correlation that one in a hundred units reaches with shuffled images
    median: float  # of the units' best correlations


@dataclass(frozen=True)
class UnitMatch:
    """A unit of the first run, the most similar one of the counterpart, and its partner."""

    unit: str
    best: str
    correlation: float
    error: float  # its standard error over the images
    survives: bool
    partner: str  # where each unit has one at most; empty without one
    partner_correlation: float


def match_layers(
    x: Floats, y: Floats, names: tuple[str, str], cka: float, order: NDArray[np.int64]
) -> tuple[LayerMatch, list[UnitMatch]]:
    """Return how a layer and its units match their counterpart, by centred values (N, C).

    `order` (N,) is a random order of the images, for what chance gives.
    """
    found = correlations(x, y)
    best, largest = found.argmax(axis=1), found.max(axis=1)
    chance = float(np.quantile(best_of_shuffled(x, y, order), BEYOND_CHANCE))
    share = float((largest > chance).mean())
    own = dependence(x, x) * dependence(y, y)
    match = LayerMatch(
        *names,
        cka=cka,
        cka_error=alignment_error(x, y, order),
        cka_control=alignment(x, y[order], own),
        units=len(best),
        survive=share,
        survive_error=(share * (1 - share) / len(best)) ** 0.5,
        chance=chance,
        median=float(np.median(largest)),
    )
    errors = correlation_errors(x, y[:, best], order)
    return match, list(_unit_matches(names, found, errors, chance))


def _unit_matches(
    names: tuple[str, str], found: Doubles, errors: Doubles, chance: float
) -> Iterator[UnitMatch]:
    """Yield each unit's best match in the counterpart, and its partner."""
    layer, other = names
    partner = dict(zip(*(side.tolist() for side in pairs(found)), strict=True))
    for unit, best in enumerate(found.argmax(axis=1).tolist()):
        mate, largest = partner.get(unit), float(found[unit, best])
        yield UnitMatch(
            unit=str(Unit(layer, unit)),
            best=str(Unit(other, best)),
            correlation=largest,
            error=float(errors[unit]),
            survives=largest > chance,
            partner="" if mate is None else str(Unit(other, mate)),
            partner_correlation=float("nan" if mate is None else found[unit, mate]),
        )
