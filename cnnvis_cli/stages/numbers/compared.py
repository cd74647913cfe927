"""What a comparison of two runs finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cnnvis_cli.arrays import Doubles, Floats
from cnnvis_cli.measures.matching import LayerMatch, UnitMatch
from cnnvis_cli.measures.pairing import UnitPair
from cnnvis_cli.nouns import Unit
from cnnvis_cli.store.run import Record, Run


@dataclass(frozen=True)
class ComparedRun:
    """One of the runs: its layers' values over the images that both have, centred."""

    run: Run
    record: Record
    layers: dict[str, Floats]  # (N, C) each

    @property
    def title(self) -> str:
        return f"{self.record['model']} ({self.run.path.name})"


@dataclass(frozen=True)
class Comparison:
    """All that is known of two runs, before anything is drawn."""

    one: ComparedRun
    two: ComparedRun
    count: int  # images that both have
    likeness: Doubles  # of each layer of the first with each of the second
    layers: Sequence[LayerMatch]
    units: Sequence[UnitMatch]

    @cached_property
    def pairs(self) -> dict[str, list[UnitPair]]:
        """Each layer's units beside those that they are most like."""
        found: dict[str, list[UnitPair]] = {}
        for each in self.units:
            unit, best = Unit.parse(each.unit), Unit.parse(each.best)
            pair = UnitPair(unit, best, each.correlation, each.survives)
            found.setdefault(unit.layer, []).append(pair)
        return found
