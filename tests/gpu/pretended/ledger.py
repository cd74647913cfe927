"""What is counted: launches, copies and waits of one process, and those of all of them together."""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from .surroundings import COUNTED

COUNTS: Counter[str] = Counter()
"""``launches`` (also by device, ``launches cuda:0``), ``waits``, ``event waits``, ``replays``,
``captured`` launches, and of copies ``h2d``, ``h2d pageable``, ``d2h``, ``p2p`` and the bytes."""
LINES: Counter[str] = Counter()  # of waits: why, and where in cnnvis
OPERATIONS: Counter[str] = Counter()  # of launches: the operation's name


class Told(NamedTuple):
    """What some processes have counted together."""

    counts: Counter[str]
    lines: Counter[str]
    operations: Counter[str]
    processes: int  # that launched anything


def told(folder: Path) -> Told:
    """Return what the processes of a command have written into its folder, added up."""
    sums = Told(Counter(), Counter(), Counter(), 0)
    processes = 0
    for path in folder.glob("*.json"):
        found = json.loads(path.read_text())
        processes += bool(found[0].get("launches"))
        for known, more in zip(sums[:3], found, strict=True):
            known.update(more)
    return sums._replace(processes=processes)


def where() -> str:
    """Name the innermost line of cnnvis that is running."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if "cnnvis_cli/" in path:
            return f"{path.split('cnnvis_cli/')[-1]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


def count_wait(why: str) -> None:
    COUNTS["waits"] += 1
    LINES[f"{why} at {where()}"] += 1


def count_launch(name: str, device: Any, size: int) -> None:
    COUNTS["launches"] += 1
    COUNTS[f"launches {device}"] += 1
    COUNTS["bytes"] += size
    OPERATIONS[name] += 1


def keep_counts() -> None:
    """Have this process, and its forks for themselves, write what they count when they end.

    The folder is asked for then, so that a fork may have another one.
    """
    leave = os._exit

    def written() -> None:
        if folder := os.environ.get(COUNTED):
            path = Path(folder) / f"{os.getpid()}.json"
            path.write_text(json.dumps([COUNTS, LINES, OPERATIONS]))

    def written_first(code: int) -> None:
        written()
        leave(code)

    def begun_anew() -> None:
        for counter in (COUNTS, LINES, OPERATIONS):
            counter.clear()

    atexit.register(written)
    os._exit = written_first  # type: ignore[assignment]
    os.register_at_fork(after_in_child=begun_anew)
