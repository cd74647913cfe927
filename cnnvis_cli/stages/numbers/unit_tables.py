"""What other commands have found of units, where the run has it: names and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cnnvis_cli.digests import digest
from cnnvis_cli.nouns import Unit
from cnnvis_cli.stages.numbers.table import UNNAMED, read_table
from cnnvis_cli.store.run import Run

NAME_COLUMNS = ("name", "area", "error", "chance", "images", "best")
SCORE_COLUMNS = ("explanation", "score", "error", "control")
TableRow = Mapping[str, str]


@dataclass(frozen=True)
class UnitTables:
    """The rows of names.tsv and scores.tsv by unit, like ``conv5/0042``."""

    names: Mapping[str, TableRow]
    scores: Mapping[str, Sequence[TableRow]]

    @classmethod
    def of(cls, run: Run) -> UnitTables:
        """Read the tables of a run; those that are not there are empty."""
        paths = [run.path / name for name in ("names.tsv", "scores.tsv")]
        return _read(*paths, *map(_stamp, paths))

    def name(self, unit: Unit) -> str:
        """Return a unit's name; empty if it has none."""
        found = self.names.get(str(unit), {}).get("name", UNNAMED)
        return "" if found == UNNAMED else found

    def score(self, unit: Unit) -> float:
        """Return how well a unit's strongest and weakest images explain it; NaN if unknown."""
        for row in self.scores.get(str(unit), ()):
            if row.get("explanation") == "images":
                return float(row.get("score", "nan"))
        return float("nan")

    def record(self, unit: Unit) -> dict[str, Any]:
        """Return the page's data: a unit's name with its numbers, and its scores."""
        found: dict[str, Any] = {}
        named, scores = self.names.get(str(unit)), self.scores.get(str(unit))
        if named:
            found["named"] = {name: named.get(name, "") for name in NAME_COLUMNS}
            if "clip" in named:
                found["named"] |= {"score": named.get("score", ""), "clip": named["clip"]}
        if scores:
            found["scores"] = [[row.get(name, "") for name in SCORE_COLUMNS] for row in scores]
        return found

    def key(self, alias: str) -> str:
        """Return the digest of all that is known of a layer's units."""
        known: list[list[list[Any]]] = []
        for rows in (self.names, self.scores):
            known.append(
                [[unit, row] for unit, row in rows.items() if unit.startswith(f"{alias}/")]
            )
        return digest(known)


@lru_cache(maxsize=2)
def _read(names: Path, scores: Path, *_: tuple[int, int]) -> UnitTables:
    """Return the tables of two files; their size and time tell whether they are known already."""
    named = {row["unit"]: row for row in read_table(names) if "unit" in row}
    scored: dict[str, list[TableRow]] = {}
    for row in read_table(scores):
        scored.setdefault(row.get("unit", ""), []).append(row)
    return UnitTables(named, scored)


def _stamp(path: Path) -> tuple[int, int]:
    if not path.is_file():
        return 0, 0
    found = path.stat()
    return found.st_size, found.st_mtime_ns
