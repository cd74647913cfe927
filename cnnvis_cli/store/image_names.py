"""The names of single images' files in a run: no two images have one name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path

from cnnvis_cli.digests import digest
from cnnvis_cli.store.run import Run

SECTION = "images"  # of run.json: where the image of each name is
LONGEST_NAME = 120  # characters of a name: file systems take 255, and more is appended


def names_in(run: Run, paths: Sequence[str]) -> list[str]:
    """Return a file name for each path that no other image has, here or among the run's files.

    One that the run knows keeps its name. Others have the shortest ending of their path that no
    other one here has, or a longer one where the run has files of another image under that name.
    """
    taken: dict[str, str] = {}
    for notes in run.all_notes():
        taken |= notes.get(SECTION, {})
    known = {str(place): name for name, place in taken.items()}
    names = []
    for path, short in zip(paths, shortest_names(paths), strict=True):
        place = _absolute(path)
        name = known.get(place) or _free(place, short, taken)
        taken[name] = place
        names.append(name)
    return names


def note_names(run: Run, names: Sequence[str], paths: Sequence[str]) -> None:
    """Note in run.json which image has which name."""
    places = map(_absolute, paths)
    run.note(SECTION, run.noted().get(SECTION, {}) | dict(zip(names, places, strict=True)))


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _free(place: str, short: str, taken: Mapping[str, str]) -> str:
    """Return the first name for a place that is its own or nobody's, from the short one on."""
    return next(name for name in _endings(place, short) if taken.get(name, place) == place)


def _endings(place: str, short: str) -> Iterator[str]:
    """Yield a short name, longer endings of the place, then numbered ones without end."""
    yield short
    parts = [_plain(part) for part in Path(place).with_suffix("").parts[1:]]
    for depth in range(1, len(parts) + 1):
        end = "_".join(parts[-depth:])
        if len(end) > len(short):
            yield _short_name(end)
    for number in count(2):
        yield f"{short}_{number}"


def shortest_names(paths: Sequence[str]) -> list[str]:
    """Return a file name for each path: its shortest ending that no other one has."""
    parts = [list(map(_plain, Path(path).with_suffix("").parts)) for path in paths]
    names = [""] * len(paths)
    for depth in range(1, max(map(len, parts), default=1) + 1):
        ends = ["_".join(part[-depth:]) for part in parts]
        often = Counter(ends)
        for i, end in enumerate(ends):
            if not names[i] and often[end] == 1:
                names[i] = end
    for i, part in enumerate(parts):
        names[i] = _short_name(names[i] or f"{'_'.join(part)}_{i}")
    return names


def _short_name(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 17]}-{digest(name)}"


def _plain(part: str) -> str:
    """Return a piece of a path in a form valid in any file name."""
    return re.sub(r"[^\w.+-]+", "_", part, flags=re.ASCII).strip("._-") or "image"
