"""The strongest connections of each unit: with which units before and after it, and how strong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from cnnvis_cli.arrays import Floats, Int64s
from cnnvis_cli.network.wiring import Wiring

FEW = 5  # connections of each sign


class Connection(NamedTuple):
    """A connection with a unit of another layer (its number in the network)."""

    layer: int
    unit: int
    value: float
    kernel: Floats | None = None  # (height, width)


def extremes(values: Floats, few: int = FEW) -> Int64s:
    """Return the places of the largest values above 0, then of the lowest below 0: (n,)."""
    order = np.argsort(-values, kind="stable")
    above = order[:few][values[order[:few]] > 0]
    below = order[::-1][:few]
    return np.concatenate([above, below[values[below] < 0]])


def fed_by_weight(wiring: Wiring, unit: int) -> list[Connection]:
    """Return the units with the largest share of a unit's expanded weights, by sign."""
    expanded = wiring.expanded(unit)
    whole = float(np.abs(expanded).sum()) or 1.0
    share, first = expanded.sum(axis=(1, 2)) / whole, wiring.inputs(unit).start
    found = []
    for place in extremes(share).tolist():
        channel = first + place
        if wiring.source[channel] >= 0:
            ends = int(wiring.source[channel]), int(wiring.unit[channel])
            found.append(Connection(*ends, float(share[place]), expanded[place]))
    return found


def fed_in_images(wiring: Wiring, unit: int, parts: Floats) -> list[Connection]:
    """Return the units that add most to a unit's values, and that take most from them.

    `parts` (channels of a group) are what each input channel adds on average.
    """
    first, found = wiring.inputs(unit).start, []
    for place in extremes(parts).tolist():
        channel = first + place
        if wiring.source[channel] >= 0:
            ends = int(wiring.source[channel]), int(wiring.unit[channel])
            found.append(Connection(*ends, float(parts[place])))
    return found


def feeds(wired: Mapping[int, Wiring]) -> dict[tuple[int, int], list[Connection]]:
    """Return, by layer and unit, the units that it feeds with the largest share of their weights.

    `wired` has the layers by their number in the network.
    """
    found: dict[tuple[int, int], list[Connection]] = {}
    for number, wiring in wired.items():
        for end, connection in _fed_from(number, wiring):
            found.setdefault(end, []).append(connection)
    kept = {}
    for end, each in found.items():
        chosen = extremes(np.array([connection.value for connection in each], np.float32))
        kept[end] = [each[place] for place in chosen.tolist()]
    return kept


def _fed_from(number: int, wiring: Wiring) -> Iterator[tuple[tuple[int, int], Connection]]:
    """Yield each input's source and one unit of the layer that it feeds most, or least."""
    shares = np.zeros((len(wiring.weight), len(wiring.source)), np.float32)
    for unit in range(len(shares)):
        expanded, inputs = wiring.expanded(unit), wiring.inputs(unit)
        whole = float(np.abs(expanded).sum()) or 1.0
        shares[unit, inputs.start : inputs.stop] = expanded.sum(axis=(1, 2)) / whole
    for channel in np.flatnonzero(wiring.source >= 0).tolist():
        end = int(wiring.source[channel]), int(wiring.unit[channel])
        for unit in extremes(shares[:, channel]).tolist():
            yield end, Connection(number, unit, float(shares[unit, channel]))
