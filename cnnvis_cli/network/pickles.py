"""Small files that take forever to unpickle, found by weighing what they would build.

torch's safe unpickler builds tuples, lists and dictionaries from a file's instructions. Some
hundred bytes can describe a tuple that holds another one twice, thirty times over: as a key of a
dictionary it would be hashed for days.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

MOST_VISITS = 20_000_000  # visits of values, which take seconds; a training state has some 100,000
TUPLE_DEPTH = 100  # of tuples in tuples; hashing recurses, and a training state has 3


class TooHeavy(Exception):
    """A pickle that would take too long to build."""


@dataclass
class _Thing:
    """A value by what a visit of all that it holds costs; a list or dictionary grows."""

    weight: int = 1
    depth: int = 0  # of tuples in it


class _Weighing:
    """The stack machine of torch's unpickler, with weights in the place of values."""

    def __init__(self) -> None:
        self.stack: list[_Thing] = []
        self.marks: list[list[_Thing]] = []
        self.memo: dict[int, _Thing] = {}
        self.work = 0

    def step(self, name: str, argument: Any) -> bool:
        """Follow one instruction; return whether it is one that torch's unpickler knows."""
        if name in _PUSHED:
            self.stack.append(_Thing())
        elif name in _TUPLES:
            self._tuple(self._pop(_TUPLES[name]))
        elif name == "TUPLE":
            self._tuple(self._pop_mark())
        elif name == "MARK":
            self.marks.append(self.stack)
            self.stack = []
        elif name in _GROWING:
            several = name in ("APPENDS", "SETITEMS")
            self._grow(self._pop_mark() if several else self._pop(_GROWING[name]))
        elif name in ("REDUCE", "NEWOBJ", "BUILD", "BINPERSID"):
            self._call(1 if name == "BINPERSID" else 2)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        else:
            return name == "PROTO"
        return True

    def _pop(self, count: int) -> list[_Thing]:
        found = [self.stack.pop() for _ in range(count)]
        return found[::-1]

    def _pop_mark(self) -> list[_Thing]:
        found, self.stack = self.stack, self.marks.pop()
        return found

    def _visit(self, things: list[_Thing]) -> int:
        weight = sum(thing.weight for thing in things)
        self.work += weight
        if self.work > MOST_VISITS:
            raise TooHeavy
        return weight

    def _tuple(self, things: list[_Thing]) -> None:
        made = _Thing(1 + self._visit(things), 1 + max((t.depth for t in things), default=0))
        if made.depth > TUPLE_DEPTH:
            raise TooHeavy
        self.stack.append(made)

    def _grow(self, things: list[_Thing]) -> None:
        self.stack[-1].weight += self._visit(things)

    def _call(self, count: int) -> None:
        weight = self._visit(self._pop(count))
        self.stack.append(_Thing(weight))  # at most what went into it


_PUSHED = frozenset(
    [
        "GLOBAL",
        "NONE",
        "NEWFALSE",
        "NEWTRUE",
        "EMPTY_TUPLE",
        "EMPTY_LIST",
        "EMPTY_DICT",
        "EMPTY_SET",
        "BININT",
        "BININT1",
        "BININT2",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINSTRING",
        "LONG1",
    ]
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_GROWING = {"APPEND": 1, "APPENDS": 0, "SETITEM": 2, "SETITEMS": 0}


def weigh(file: IO[bytes]) -> bool:
    """Follow one pickle without building it; return whether it was followed to its end.

    The file then stands behind it. Raise `TooHeavy` if building it would take too long.
    """
    machine = _Weighing()
    try:
        for name, argument in _instructions(file):
            if name == "STOP":
                return True
            if not machine.step(name, argument):
                return False  # torch's unpickler stops here as well
    except TooHeavy:
        raise
    except (ValueError, LookupError, EOFError, OverflowError, MemoryError, struct.error):
        pass  # damaged, which torch will say better
    return False


def _instructions(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    for operation, argument, _ in pickletools.genops(file):
        yield operation.name, argument
