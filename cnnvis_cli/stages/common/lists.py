"""What several stages do with lists: cut them into groups, name their members, align columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

Each = TypeVar("Each")


class Named(Protocol):
    """Anything with a name: an image, or an output of a network."""

    @property
    def name(self) -> str: ...


def in_groups(members: Sequence[Each], size: int) -> list[Sequence[Each]]:
    """Return neighbours in groups of `size`, of which the last may be smaller."""
    groups = []
    for first in range(0, len(members), size):
        groups.append(members[first : first + size])
    return groups


def names_of(members: Iterable[Named]) -> list[str]:
    """Return the members' names, in their order."""
    return [member.name for member in members]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines of text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        lines.append("  ".join(map(str.ljust, row, widths)).rstrip())
    return lines
