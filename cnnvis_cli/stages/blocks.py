"""Units in blocks: what is computed, kept and published together.

How units are cut into blocks follows from what is asked for alone, so every process and every
shard that works on the same agrees. A block says which units it holds, so pieces of interrupted
work serve whichever selection comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from cnnvis_cli.digests import digest
from cnnvis_cli.store.parts import Arrays, Parts

Takes = Callable[[int], bool]  # whether a block of this number is one's own


class Block(NamedTuple):
    """The part that is to hold some units."""

    name: str
    units: tuple[int, ...]


@dataclass(frozen=True)
class Blocks:
    """The blocks of a layer, up to `size` units each; every part has its channels in ``unit``."""

    parts: Parts
    size: int

    def missing(self, asked: Sequence[int], done: Collection[int], takes: Takes) -> list[Block]:
        """Blocks for the units that are neither done nor in a part yet, of those one takes."""
        held = {*done, *self.units()}
        cut = [asked[i : i + self.size] for i in range(0, len(asked), self.size)]
        left = [
            tuple(unit for unit in units if unit not in held)
            for number, units in enumerate(cut)
            if takes(number)
        ]
        return [Block(f"{units[0]:06d}-{digest(units)}", units) for units in left if units]

    def units(self) -> list[int]:
        """Return the channels of all blocks that are kept, sorted."""
        return sorted(self._places())

    def __iter__(self) -> Iterator[Arrays]:
        """The units one after the other, in pieces: arrays of neighbours of one block."""
        places = self._places()
        read = lru_cache(maxsize=4)(self.parts.__getitem__)
        for name, row in groupby(sorted(places), key=lambda unit: places[unit][0]):
            rows = [places[unit][1] for unit in row]
            yield {column: values[rows] for column, values in read(name).items()}

    def _places(self) -> dict[int, tuple[str, int]]:
        """In which part each channel is, and in which row of it."""
        found: dict[int, tuple[str, int]] = {}
        for name in self.parts.names():
            for row, unit in enumerate(self._units_of(name)):
                found.setdefault(unit, (name, row))
        return found

    def _units_of(self, name: str) -> list[int]:
        try:
            units: Any = self.parts.read(name, ("unit",))["unit"]
        except KeyError:  # damaged, and set aside
            return []
        return list(np.asarray(units).tolist())
