"""Units in blocks on a fixed grid of channels: what is computed, kept and published together.

A block's number depends on its channels alone, so that pieces of interrupted work serve whichever
selection of units comes next; everything that is finished is published.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cnnvis_cli.nouns import Layer
from cnnvis_cli.report import Report
from cnnvis_cli.store.parts import Arrays, Parts


@dataclass(frozen=True)
class Blocks:
    """The blocks of a layer, `size` channels each; every part has its channels in ``unit``."""

    parts: Parts
    layer: Layer
    size: int

    def fill(
        self, units: list[int], compute: Callable[[list[int]], Arrays], report: Report, what: str
    ) -> None:
        """Compute the blocks that lack any of the `units`, and keep them."""
        blocks: dict[int, set[int]] = defaultdict(set)
        for unit in units:
            blocks[unit // self.size].add(unit)
        todo = {
            number: sorted(wanted | held)
            for number, wanted in blocks.items()
            if not wanted <= (held := self._held(number))
        }
        total = sum(len(channels) for channels in todo.values())
        for number in report.track(todo, what, total, "units", self.size):
            self.parts[number] = compute(todo[number])

    def units(self) -> list[int]:
        """The channels of all blocks that are kept, sorted."""
        return [unit for number in self._numbers() for unit in sorted(self._held(number))]

    def __iter__(self) -> Iterator[Arrays]:
        return (self.parts[number] for number in self._numbers() if number in self.parts)

    def _numbers(self) -> range:
        return range(-(-self.layer.channels // self.size))

    def _held(self, number: int) -> set[int]:
        try:
            return set(self.parts[number]["unit"].tolist())
        except KeyError:
            return set()
