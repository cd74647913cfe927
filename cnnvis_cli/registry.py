"""Tables of names: extensions are entries, and an unknown name is an error with the nearest one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import TypeVar

from cnnvis_cli.errors import UsageError

Thing = TypeVar("Thing")
Decorated = TypeVar("Decorated")


def unknown(kind: str, name: str, known: Iterable[str], place: str = "") -> UsageError:
    """Return the error for a name that does not exist, with the nearest one that does.

    >>> print(unknown("layer", "cnv5", ["conv4", "conv5"], place="alexnet"))
    alexnet has no layer 'cnv5'; did you mean 'conv5'?
    """
    start = f"{place} has no {kind}" if place else f"there is no {kind}"
    return UsageError(f"{start} {name!r}; {remedy(name, list(known))}")


def remedy(name: str, known: list[str]) -> str:
    """Return the advice for a name that does not exist: the nearest one, or some that do."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"choose from: {_first_names(known)}"


def _first_names(names: list[str], most: int = 12) -> str:
    """Return the first names, and the number of all if there are more."""
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class Registry(Mapping[str, Thing]):
    """A table from names to things that knows their kind.

    Looking up an unknown name raises `UsageError` with the nearest one.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, Thing] = {}

    def register(self, name: str) -> Callable[[Decorated], Decorated]:
        """Register the decorated thing under `name`."""

        def keep(thing: Decorated) -> Decorated:
            self._things[name] = thing  # type: ignore[assignment]
            return thing

        return keep

    def __getitem__(self, name: str) -> Thing:
        if name not in self._things:
            raise unknown(self.kind, name, self._things)
        return self._things[name]

    def require(self, name: str) -> None:
        """Raise `UsageError` for a name that is not there."""
        self[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)
