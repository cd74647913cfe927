"""Units in blocks: what is computed, kept and published together.

A block says which units it holds, so pieces of interrupted work serve whichever selection comes
next, and everything that is finished is published. A sparse selection fills its blocks like any
other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cnnvis_cli.store.parts import Arrays, Parts


@dataclass(frozen=True)
class Blocks:
    """The blocks of a layer, up to `size` units each; every part has its channels in ``unit``."""

    parts: Parts
    size: int

    def missing(self, units: Iterable[int]) -> list[tuple[int, list[int]]]:
        """Blocks for those of the `units` that none holds yet: their numbers and channels."""
        held = set(self.units())
        left = [unit for unit in units if unit not in held]
        blocks = [left[i : i + self.size] for i in range(0, len(left), self.size)]
        return list(enumerate(blocks, start=self.parts.next_number()))

    def units(self) -> list[int]:
        """The channels of all blocks that are kept, sorted."""
        return sorted(unit for arrays in self for unit in arrays["unit"].tolist())

    def __iter__(self) -> Iterator[Arrays]:
        numbers = range(self.parts.next_number())
        return (self.parts[number] for number in numbers if number in self.parts)
