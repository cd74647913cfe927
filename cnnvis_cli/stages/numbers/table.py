"""Tables of numbers: one line per row, columns set apart by tabs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnvis_cli.report import printable
from cnnvis_cli.stages.common.lists import aligned
from cnnvis_cli.store.inside import read_regular
from cnnvis_cli.store.publish import publish

TableRow = Mapping[str, Any]
UNNAMED = "unnamed"  # a unit of which chance would say as much


def shown_table(rows: Sequence[TableRow]) -> str:
    """Return rows as text to read, in aligned columns under their names."""
    return "\n".join(aligned(_cells(rows))) if rows else "none"


def _cells(rows: Sequence[TableRow]) -> list[list[str]]:
    """Return the names of the columns and the rows as text; numbers with four digits."""
    cells = [list(rows[0])] if rows else []
    cells += [list(map(_cell, row.values())) for row in rows]
    return cells


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(str(value))  # which leaves no tab or line break


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table as text; none if there is no such file, or it is no table."""
    try:
        head, *lines = read_regular(path).decode("utf-8", "surrogateescape").splitlines()
        return [dict(zip(head.split("\t"), line.split("\t"), strict=True)) for line in lines]
    except (FileNotFoundError, ValueError):
        return []


def publish_table(path: Path, rows: Sequence[TableRow]) -> None:
    """Write a table with tabs between its columns, unless it is there already.

    Raise `StorageError`.
    """
    lines = map("\t".join, _cells(rows))
    content = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    if not path.is_file() or read_regular(path) != content:
        publish(path, content)
