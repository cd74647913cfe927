"""Units in blocks: computed, kept and published together.

The division of units into blocks depends only on what is requested, so all processes and shards
with the same work agree. A block records its units, so pieces of interrupted work serve any later
selection.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from cnnvis_cli.arrays import Arrays
from cnnvis_cli.digests import digest
from cnnvis_cli.stages.common.lists import in_groups
from cnnvis_cli.store.parts import Parts

Takes = Callable[[int], bool]  # whether a block of this number belongs to this shard


class Block(NamedTuple):
    """The part that will hold some units."""

    name: str
    units: tuple[int, ...]


@dataclass(frozen=True)
class Blocks:
    """The blocks of a layer, up to `size` units each; every part has its channels in ``unit``."""

    parts: Parts
    size: int

    def missing(self, asked: Sequence[int], done: Collection[int], takes: Takes) -> list[Block]:
        """Return blocks for the units that are neither done nor in a part, where it takes them."""
        held = {*done, *self.units()}
        blocks = []
        for number, units in enumerate(in_groups(asked, self.size)):
            left = tuple(unit for unit in units if unit not in held)
            if left and takes(number):
                blocks.append(Block(f"{left[0]:06d}-{digest(left)}", left))
        return blocks

    def units(self) -> list[int]:
        """Return the channels of all stored blocks, sorted."""
        return sorted(self._places())

    def __iter__(self) -> Iterator[Arrays]:
        """Yield the units in order, in pieces: arrays of neighbours of one block."""
        places = self._places()
        read = lru_cache(maxsize=4)(self.parts.__getitem__)
        for name, row in groupby(sorted(places), key=lambda unit: places[unit][0]):
            rows = [places[unit][1] for unit in row]
            yield {column: values[rows] for column, values in read(name).items()}

    def _places(self) -> dict[int, tuple[str, int]]:
        """Return the part of each channel, and its row there."""
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
