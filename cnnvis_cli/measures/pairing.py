"""Units of two runs side by side, and which of a layer's are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

from cnnvis_cli.nouns import Unit

BEST, MIDDLE, LOST = 6, 3, 6  # pairs of a layer that are shown


@dataclass(frozen=True)
class UnitPair:
    """A unit of the first run, the most similar one of the second, and their correlation."""

    unit: Unit
    best: Unit
    correlation: float
    survives: bool


@dataclass(frozen=True)
class ShownTwins:
    """A layer's units that are shown: the best matches, some about the median, and the lost."""

    alias: str
    pairs: Sequence[UnitPair]

    @cached_property
    def matched(self) -> list[UnitPair]:
        kept = filter(attrgetter("survives"), self.pairs)
        return sorted(kept, key=attrgetter("correlation"), reverse=True)

    @property
    def best(self) -> list[UnitPair]:
        """The best of each unit that is a counterpart, so that they differ."""
        found: dict[Unit, UnitPair] = {}
        for pair in self.matched:
            found.setdefault(pair.best, pair)
        return list(found.values())[:BEST]

    @property
    def middle(self) -> list[UnitPair]:
        """Those about the median, those above left out."""
        best = set(self.best)
        rest = [pair for pair in self.matched if pair not in best]
        first = max(0, len(rest) // 2 - MIDDLE // 2)
        return rest[first : first + MIDDLE]

    @property
    def lost(self) -> list[UnitPair]:
        """Those that are least like any unit."""
        gone = [pair for pair in self.pairs if not pair.survives]
        return sorted(gone, key=attrgetter("correlation"))[:LOST]

    @property
    def shown(self) -> list[UnitPair]:
        """In the order of their places in the sheets."""
        return [*self.best, *self.middle, *self.lost]
