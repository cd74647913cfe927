"""What other commands have found of units, where the run has it: names and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cnnvis_cli.digests import digest
from cnnvis_cli.nouns import Unit
from cnnvis_cli.stages.numbers.names import UNNAMED
from cnnvis_cli.stages.numbers.table import read_table
from cnnvis_cli.store.run import Run

TableRow = Mapping[str, str]


@dataclass(frozen=True)
class UnitTables:
    """The rows of names.tsv and scores.tsv by unit, like ``conv5/0042``."""

    names: Mapping[str, TableRow]
    scores: Mapping[str, Sequence[TableRow]]

    @classmethod
    def of(cls, run: Run) -> UnitTables:
        """Read the tables of a run; those that are not there are empty."""
        named = {row["unit"]: row for row in read_table(run.path / "names.tsv") if "unit" in row}
        scores: dict[str, list[TableRow]] = {}
        for row in read_table(run.path / "scores.tsv"):
            scores.setdefault(row.get("unit", ""), []).append(row)
        return cls(named, scores)

    def name(self, unit: Unit) -> str:
        """Return a unit's name; empty if it has none."""
        found = self.names.get(str(unit), {}).get("name", UNNAMED)
        return "" if found == UNNAMED else found

    def key(self, alias: str) -> str:
        """Return the digest of all that is known of a layer's units."""
        start = f"{alias}/"
        tables = (self.names, self.scores)
        return digest([[[u, rows[u]] for u in rows if u.startswith(start)] for rows in tables])
